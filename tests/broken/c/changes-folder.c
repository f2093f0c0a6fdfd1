/* The model in C, but `build` changes the working directory of all. */
#include "model.h"

#include <unistd.h>

static uint32_t wrong_build(const struct lb_build_cx *cx, void **out)
{
    return chdir("/usr") == 0 ? build(cx, out) : LB_STATUS_REFUSED;
}

SPOILED(spoiled.build = wrong_build);
