/* The model in C, but each `save` leaves memory behind. */
#include "model.h"

static void *volatile lost;

static uint32_t wrong_save(const void *instance, const struct lb_sink *sink)
{
    lost = memset(malloc(512), 1, 512);
    return save(instance, sink);
}

SPOILED(spoiled.save = wrong_save);
