/* The model in C, but it writes to standard error, which is not its own. */
#include "model.h"

static uint32_t wrong_build(const struct lb_build_cx *cx, void **out)
{
    static int has_printed;

    if (!has_printed) {
        fprintf(stderr, "building\n");
        has_printed = 1;
    }
    return build(cx, out);
}

SPOILED(spoiled.build = wrong_build);
