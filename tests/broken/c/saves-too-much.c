/* The model in C, but it saves 65 MiB. */
#include "model.h"

static uint32_t wrong_save(UNUSED const void *instance, const struct lb_sink *sink)
{
    static const uint8_t megabyte[1 << 20];

    for (int i = 0; i < 65; i++) {
        sink->write(sink->ctx, (struct lb_str){megabyte, sizeof(megabyte)});
    }
    return LB_STATUS_OK;
}

SPOILED(spoiled.save = wrong_save);
