/* Saves what no SDK has wrapped, under the name of a module in Rust. */
#define ID "misbehaves"
#define SAVE save
#include "lb_module.h"

static uint32_t save(const void *balancer, const struct lb_sink *sink);

#include "healthy.h"

static uint32_t save(UNUSED const void *balancer, const struct lb_sink *sink)
{
    sink->write(sink->ctx, TEXT("rubbish"));
    return LB_STATUS_OK;
}
