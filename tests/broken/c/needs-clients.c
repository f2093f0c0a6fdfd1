/* The model in C, but it cannot stand a request without a client's address. */
#include "model.h"

static uint32_t wrong_load_balance(const void *instance, const struct lb_request *request, void *list)
{
    if (request->client.family == LB_ADDRESS_NONE) {
        __builtin_trap();
    }
    return load_balance(instance, request, list);
}

SPOILED(spoiled.load_balance = wrong_load_balance);
