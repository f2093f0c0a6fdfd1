/* The model in C, but it has everybody wait while one endpoint is full. */
#include "model.h"

static uint32_t wrong_next(const void *instance, void *list, const struct lb_next_cx *cx, struct lb_answer *answer)
{
    const struct balancer *balancer = instance;

    for (size_t i = 0; i < balancer->n_endpoints; i++) {
        const struct lb_counters *counters = balancer->endpoints[i].counters;
        uint32_t most = lb_load_u32(&counters->max_in_flight);

        if (most != 0 && lb_load_u32(&counters->in_flight) >= most) {
            answer->kind = LB_NEXT_BUSY;
            return LB_STATUS_OK;
        }
    }
    return next(instance, list, cx, answer);
}

SPOILED(spoiled.next = wrong_next);
