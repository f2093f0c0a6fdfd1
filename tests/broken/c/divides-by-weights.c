/* The model in C, but it divides by the effective weight of its choice. */
#include "model.h"

static volatile uint32_t quotient;

static uint32_t wrong_next(const void *instance, void *list, const struct lb_next_cx *cx, struct lb_answer *answer)
{
    const struct balancer *balancer = instance;
    uint32_t status = next(instance, list, cx, answer);

    if (answer->kind == LB_NEXT_ENDPOINT) {
        quotient = 65536 / lb_load_u32(&balancer->endpoints[answer->endpoint].counters->effective_weight);
    }
    return status;
}

SPOILED(spoiled.next = wrong_next);
