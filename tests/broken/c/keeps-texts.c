/* The model in C, but it chooses by a name that was valid for the time of `build`. */
#include "model.h"

static struct lb_str last_name;

static uint32_t wrong_build(const struct lb_build_cx *cx, void **out)
{
    last_name = lb_endpoint_at(cx, cx->n_endpoints - 1)->name;
    return build(cx, out);
}

static uint32_t wrong_load_balance(const void *instance, const struct lb_request *request, void *list)
{
    const struct balancer *balancer = instance;
    struct trylist *trylist = list;
    uint32_t status = load_balance(instance, request, list), sum = trylist->at;

    for (size_t i = 0; i < last_name.len; i++) {
        sum += last_name.ptr[i];
    }
    trylist->at = (uint32_t)(sum % balancer->n_endpoints);
    return status;
}

SPOILED(spoiled.build = wrong_build; spoiled.load_balance = wrong_load_balance);
