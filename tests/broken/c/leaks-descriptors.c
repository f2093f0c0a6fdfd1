/* The model in C, but `explain` opens a file and leaves it so, the first few times. */
#include "model.h"

#include <fcntl.h>

static uint32_t wrong_explain(const void *instance, void *list, const struct lb_sink *sink)
{
    static atomic_int n_opened;

    if (atomic_fetch_add(&n_opened, 1) < 10) {
        (void)open("/dev/null", O_RDONLY);
    }
    return explain(instance, list, sink);
}

SPOILED(spoiled.explain = wrong_explain);
