/* The model in C, but the first `finish` never returns. */
#include "model.h"

#include <unistd.h>

static uint32_t wrong_finish(UNUSED const void *instance, UNUSED void *list, UNUSED const struct lb_outcome *outcome)
{
    while (pause() == -1) {
    }
    return 0;
}

SPOILED(spoiled.finish = wrong_finish);
