/* The model in C, but it takes only endpoints with an IPv4 address. */
#include "model.h"

static uint32_t wrong_build(const struct lb_build_cx *cx, void **out)
{
    for (size_t i = 0; i < cx->n_endpoints; i++) {
        if (lb_endpoint_at(cx, i)->address.family != LB_ADDRESS_V4) {
            cx->errors->error(cx->errors->ctx, TEXT(""), TEXT("an endpoint has no IPv4 address"));
            return LB_STATUS_REFUSED;
        }
    }
    return build(cx, out);
}

SPOILED(spoiled.build = wrong_build);
