/* The model in C, but two threads may read a turn before either has written the next one. */
#include "model.h"

static uint32_t wrong_load_balance(const void *instance, UNUSED const struct lb_request *request, void *list)
{
    const struct balancer *balancer = instance;
    struct trylist *trylist = list;
    uint64_t turn = atomic_load_explicit(&balancer->turns->turn, memory_order_relaxed);

    trylist->n_failures = 0;
    trylist->at = (uint32_t)server_of(balancer, turn);
    atomic_store_explicit(&balancer->turns->turn, turn + 1, memory_order_relaxed);
    return LB_STATUS_OK;
}

SPOILED(spoiled.load_balance = wrong_load_balance);
