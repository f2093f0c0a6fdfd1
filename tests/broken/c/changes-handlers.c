/* The model in C, but `finish` takes over a signal that the host handles. */
#include "model.h"

#include <signal.h>

static uint32_t wrong_finish(const void *instance, void *list, const struct lb_outcome *outcome)
{
    signal(SIGSEGV, SIG_IGN);
    return finish(instance, list, outcome);
}

SPOILED(spoiled.finish = wrong_finish);
