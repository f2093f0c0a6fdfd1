/* Round robin over the endpoints in the order of the file, as a module in C. `report_failure` is counted and `explain`
 * tells it, and one setting, `first`, says which endpoint starts.
 *
 *     cc -std=c11 -O2 -fPIC -shared -fvisibility=hidden -I lb-api/include -o libmod_c_round.so tests/c-module/round.c
 */
#include "lb_module.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(literal) ((struct lb_str){(const uint8_t *)(literal), sizeof(literal) - 1})

/* One cluster's instance. */
struct round {
    uint32_t n_endpoints;
    atomic_uint_fast64_t turn;
};

/* One request's trylist, in the host's storage. */
struct list {
    uint32_t at;
    uint32_t failures;
};

static uint32_t info(struct lb_info *info)
{
    if (info->size < sizeof(*info)) {
        return LB_STATUS_REFUSED;
    }
    info->abi_major = LB_ABI_MAJOR;
    info->abi_minor = LB_ABI_MINOR;
    info->trylist_size = sizeof(struct list);
    info->trylist_align = _Alignof(struct list);
    info->id = TEXT("c_round");
    info->version = TEXT("1.0.0");
    info->summary = TEXT("round robin in the order of the file, in C");
    return LB_STATUS_OK;
}

static int is(struct lb_str text, const char *expected)
{
    return text.len == strlen(expected) && memcmp(text.ptr, expected, text.len) == 0;
}

static uint32_t build(const struct lb_build_cx *cx, void **balancer)
{
    uint64_t first = 0;
    uint32_t status = LB_STATUS_OK;

    for (size_t i = 0; i < cx->n_settings; i++) {
        const struct lb_setting *setting = lb_setting_at(cx, i);

        if (!is(setting->path, "first")) {
            cx->errors->error(cx->errors->ctx, setting->path, TEXT("unknown setting (this module has \"first\")"));
            status = LB_STATUS_REFUSED;
        } else if (setting->kind != LB_SETTING_INTEGER || setting->integer < 0 ||
                   (uint64_t)setting->integer >= cx->n_endpoints) {
            cx->errors->error(cx->errors->ctx, setting->path, TEXT("expected the index of an endpoint, from 0"));
            status = LB_STATUS_REFUSED;
        } else {
            first = (uint64_t)setting->integer;
        }
    }
    if (status != LB_STATUS_OK) {
        return status;
    }

    struct round *round = malloc(sizeof(*round));
    if (round == NULL) {
        cx->errors->error(cx->errors->ctx, (struct lb_str){NULL, 0}, TEXT("out of memory"));
        return LB_STATUS_REFUSED;
    }
    round->n_endpoints = (uint32_t)cx->n_endpoints;
    atomic_init(&round->turn, first);
    *balancer = round;
    return LB_STATUS_OK;
}

static uint32_t load_balance(const void *balancer, const struct lb_request *request, void *trylist)
{
    /* The balancer is shared by all threads; its turn is the one thing in it that changes. */
    struct round *round = (struct round *)(uintptr_t)balancer;
    struct list *list = trylist;

    (void)request;
    list->at = (uint32_t)(atomic_fetch_add_explicit(&round->turn, 1, memory_order_relaxed) % round->n_endpoints);
    list->failures = 0;
    return LB_STATUS_OK;
}

static uint32_t next(const void *balancer, void *trylist, const struct lb_next_cx *cx, struct lb_answer *answer)
{
    const struct round *round = balancer;
    struct list *list = trylist;

    for (uint32_t step = 0; step < round->n_endpoints; step++) {
        uint32_t endpoint = (list->at + step) % round->n_endpoints;

        if (!lb_tried(cx, endpoint)) {
            list->at = endpoint;
            answer->kind = LB_NEXT_ENDPOINT;
            answer->endpoint = endpoint;
            return LB_STATUS_OK;
        }
    }
    answer->kind = LB_NEXT_EXHAUSTED;
    return LB_STATUS_OK;
}

static uint32_t report_failure(const void *balancer, void *trylist, const struct lb_failure *failure)
{
    struct list *list = trylist;

    (void)balancer;
    (void)failure;
    list->failures++;
    return LB_STATUS_OK;
}

static uint32_t finish(const void *balancer, void *trylist, const struct lb_outcome *outcome)
{
    (void)balancer;
    (void)trylist;
    (void)outcome;
    return LB_STATUS_OK;
}

static uint32_t drop_trylist(const void *balancer, void *trylist)
{
    (void)balancer;
    (void)trylist;
    return LB_STATUS_OK;
}

static uint32_t explain(const void *balancer, void *trylist, const struct lb_sink *sink)
{
    const struct list *list = trylist;
    char text[64];
    int len = snprintf(text, sizeof(text), "at %u after %u failures", (unsigned)list->at, (unsigned)list->failures);

    (void)balancer;
    sink->write(sink->ctx, (struct lb_str){(const uint8_t *)text, (size_t)len});
    return LB_STATUS_OK;
}

static uint32_t drop_balancer(void *balancer)
{
    free(balancer);
    return LB_STATUS_OK;
}

static const struct lb_module module = {
    .size = sizeof(module),
    .abi_major = LB_ABI_MAJOR,
    .abi_minor = LB_ABI_MINOR,
    .info = info,
    .build = build,
    .load_balance = load_balance,
    .next = next,
    .report_failure = report_failure,
    .finish = finish,
    .drop_trylist = drop_trylist,
    .explain = explain,
    .drop_balancer = drop_balancer,
};

const struct lb_module *const lb_module = &module;
