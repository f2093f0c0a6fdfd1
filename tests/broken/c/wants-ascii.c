/* The model in C, but it refuses requests whose path is not ASCII. */
#include "model.h"

static uint32_t wrong_load_balance(const void *instance, const struct lb_request *request, void *list)
{
    for (size_t i = 0; i < request->path.len; i++) {
        if (request->path.ptr[i] > 0x7f) {
            return LB_STATUS_REFUSED;
        }
    }
    return load_balance(instance, request, list);
}

SPOILED(spoiled.load_balance = wrong_load_balance);
