/* The model in C, but the first `build` starts a thread that stays. */
#include "model.h"

#include <pthread.h>
#include <unistd.h>

static void *wait_for_ever(UNUSED void *argument)
{
    while (pause() == -1) {
    }
    return 0;
}

static uint32_t wrong_build(const struct lb_build_cx *cx, void **out)
{
    static pthread_t thread;

    if (thread == 0) {
        pthread_create(&thread, NULL, wait_for_ever, NULL);
    }
    return build(cx, out);
}

SPOILED(spoiled.build = wrong_build);
