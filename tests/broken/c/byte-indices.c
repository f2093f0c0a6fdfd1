/* The model in C, but it keeps the index of an endpoint in a byte. */
#include "model.h"

static uint32_t wrong_next(const void *instance, void *list, const struct lb_next_cx *cx, struct lb_answer *answer)
{
    uint32_t status = next(instance, list, cx, answer);

    answer->endpoint = (uint8_t)answer->endpoint;
    return status;
}

SPOILED(spoiled.next = wrong_next);
