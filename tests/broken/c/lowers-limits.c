/* The model in C, but `build` lowers a limit of the process. */
#include "model.h"

#include <sys/resource.h>

static uint32_t wrong_build(const struct lb_build_cx *cx, void **out)
{
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 500;
    setrlimit(RLIMIT_NOFILE, &limit);
    return build(cx, out);
}

SPOILED(spoiled.build = wrong_build);
