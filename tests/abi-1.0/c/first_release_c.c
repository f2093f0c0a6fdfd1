/* A module of the first release of the ABI, with that release's header beside it. Neither is ever changed: what they
 * rest on is what every host of this major promises. It uses all that 1.0 has, and tells at the end of each request what it
 * was told, so that a test sees whether it still means the same. */
#include "lb_module.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT(literal) ((struct lb_str){(const uint8_t *)(literal), sizeof(literal) - 1})

struct balancer {
    atomic_uint_fast64_t turn;
    const struct lb_host_api *host;
    const struct lb_cluster_state *state;
    size_t n_endpoints;
    const struct lb_counters *endpoints[];
};

struct trylist {
    uint32_t at;
    uint32_t n_asked;
    uint32_t n_failures;
    uint32_t n_connected;
    uint32_t n_heads;
    uint32_t n_ended;
    uint32_t last_result;
    char load[16];
};

static const struct lb_str request_headers[] = {{(const uint8_t *)"x-start", 7}};
static const struct lb_str response_headers[] = {{(const uint8_t *)"x-load", 6}};

static int is(struct lb_str text, const char *expected)
{
    return text.len == strlen(expected) && memcmp(text.ptr, expected, text.len) == 0;
}

static void say(const struct balancer *balancer, const char *text, int len)
{
    balancer->host->log(balancer->host->ctx, LB_LOG_INFO, (struct lb_str){(const uint8_t *)text, (size_t)len});
}

static uint32_t info(struct lb_info *info)
{
    info->abi_major = LB_ABI_MAJOR;
    info->abi_minor = LB_ABI_MINOR;
    info->trylist_size = sizeof(struct trylist);
    info->trylist_align = _Alignof(struct trylist);
    info->id = TEXT("first_release_c");
    info->version = TEXT("1.0.0");
    info->summary = TEXT("in C, of the first release of the ABI");
    return LB_STATUS_OK;
}

static uint32_t build(const struct lb_build_cx *cx, void **out)
{
    uint64_t first = 0;
    uint32_t status = LB_STATUS_OK;
    uint32_t weights = 0;
    char line[128];

    for (size_t i = 0; i < cx->n_settings; i++) {
        const struct lb_setting *setting = lb_setting_at(cx, i);

        if (is(setting->path, "first") && setting->kind == LB_SETTING_INTEGER && setting->integer >= 0) {
            first = (uint64_t)setting->integer;
        } else {
            cx->errors->error(cx->errors->ctx, setting->path, TEXT("expected the setting \"first\" and an index"));
            status = LB_STATUS_REFUSED;
        }
    }
    if (status != LB_STATUS_OK) {
        return status;
    }
    struct balancer *balancer = malloc(sizeof(*balancer) + cx->n_endpoints * sizeof(balancer->endpoints[0]));
    if (balancer == NULL) {
        cx->errors->error(cx->errors->ctx, TEXT(""), TEXT("out of memory"));
        return LB_STATUS_REFUSED;
    }
    atomic_init(&balancer->turn, first);
    balancer->host = cx->host;
    balancer->state = cx->state;
    balancer->n_endpoints = cx->n_endpoints;
    for (size_t i = 0; i < cx->n_endpoints; i++) {
        const struct lb_endpoint *endpoint = lb_endpoint_at(cx, i);

        balancer->endpoints[i] = endpoint->counters;
        weights += endpoint->weight;
    }
    cx->needs->flags = LB_NEEDS_KEY;
    cx->needs->events = 1u << LB_EVENT_CONNECTED | 1u << LB_EVENT_RESPONSE_HEADERS | 1u << LB_EVENT_TRY_ENDED;
    cx->needs->request_headers = request_headers;
    cx->needs->n_request_headers = 1;
    cx->needs->response_headers = response_headers;
    cx->needs->n_response_headers = 1;
    say(balancer, line,
        snprintf(line, sizeof(line), "built %.*s: %zu endpoints, weights %u, saved %d", (int)cx->cluster.len,
                 (const char *)cx->cluster.ptr, cx->n_endpoints, weights, cx->saved.ptr != NULL));
    *out = balancer;
    return LB_STATUS_OK;
}

static uint32_t load_balance(const void *instance, const struct lb_request *request, void *list)
{
    struct balancer *balancer = (struct balancer *)(uintptr_t)instance;
    struct trylist *trylist = list;

    memset(trylist, 0, sizeof(*trylist));
    if (request->n_headers == 1 && request->headers[0].ptr != NULL && request->headers[0].len == 1) {
        trylist->at = (uint32_t)(request->headers[0].ptr[0] - '0') % (uint32_t)balancer->n_endpoints;
        return LB_STATUS_OK;
    }
    trylist->at = (uint32_t)(atomic_fetch_add(&balancer->turn, 1) % balancer->n_endpoints);
    return LB_STATUS_OK;
}

static uint32_t next(const void *instance, void *list, const struct lb_next_cx *cx, struct lb_answer *answer)
{
    const struct balancer *balancer = instance;
    struct trylist *trylist = list;
    uint32_t n = (uint32_t)balancer->n_endpoints;

    trylist->n_asked++;
    for (uint32_t step = 0; step < n; step++) {
        uint32_t endpoint = (trylist->at + step) % n;

        if (!lb_tried(cx, endpoint) && (lb_load_u32(&balancer->endpoints[endpoint]->state) == LB_STATE_AVAILABLE ||
                                        lb_load_u32(&balancer->state->n_available) == 0)) {
            answer->kind = LB_NEXT_ENDPOINT;
            answer->endpoint = endpoint;
            return LB_STATUS_OK;
        }
    }
    answer->kind = LB_NEXT_EXHAUSTED;
    return LB_STATUS_OK;
}

static uint32_t report_failure(const void *instance, void *list, const struct lb_failure *failure)
{
    struct trylist *trylist = list;

    (void)instance;
    if (failure->kind == LB_FAILURE_CONNECT) {
        trylist->n_failures++;
    }
    return LB_STATUS_OK;
}

static uint32_t observe(const void *instance, void *list, const struct lb_event *event)
{
    struct trylist *trylist = list;

    (void)instance;
    if (event->kind == LB_EVENT_CONNECTED) {
        trylist->n_connected++;
    } else if (event->kind == LB_EVENT_RESPONSE_HEADERS) {
        trylist->n_heads++;
        if (event->n_headers == 1 && event->headers[0].ptr != NULL && event->headers[0].len < sizeof(trylist->load)) {
            memcpy(trylist->load, event->headers[0].ptr, event->headers[0].len);
        }
    } else if (event->kind == LB_EVENT_TRY_ENDED) {
        trylist->n_ended++;
        trylist->last_result = event->result;
    }
    return LB_STATUS_OK;
}

static uint32_t finish(const void *instance, void *list, const struct lb_outcome *outcome)
{
    const struct balancer *balancer = instance;
    const struct trylist *trylist = list;
    char line[256];

    say(balancer, line,
        snprintf(line, sizeof(line),
                 "outcome %u from %d, status %u, tries %u, sent %d, received %d; asked %u, failures %u, connected %u, "
                 "heads %u, ended %u, result %u, load \"%s\"",
                 outcome->kind, (int)outcome->endpoint, outcome->status, outcome->n_tries, outcome->bytes_sent > 0,
                 outcome->bytes_received > 0, trylist->n_asked, trylist->n_failures, trylist->n_connected,
                 trylist->n_heads, trylist->n_ended, trylist->last_result, trylist->load));
    return LB_STATUS_OK;
}

static uint32_t drop_trylist(const void *instance, void *list)
{
    (void)instance;
    memset(list, 0xa5, sizeof(struct trylist));
    return LB_STATUS_OK;
}

static uint32_t save(const void *instance, const struct lb_sink *sink)
{
    const struct balancer *balancer = instance;
    uint64_t turn = atomic_load(&balancer->turn);

    sink->write(sink->ctx, (struct lb_str){(const uint8_t *)&turn, sizeof(turn)});
    return LB_STATUS_OK;
}

static uint32_t explain(const void *instance, void *list, const struct lb_sink *sink)
{
    (void)instance;
    (void)list;
    sink->write(sink->ctx, TEXT("as 1.0 does"));
    return LB_STATUS_OK;
}

static uint32_t drop_balancer(void *instance)
{
    free(instance);
    return LB_STATUS_OK;
}

static const struct lb_module table = {
    .size = sizeof(table),
    .abi_major = LB_ABI_MAJOR,
    .abi_minor = LB_ABI_MINOR,
    .info = info,
    .build = build,
    .load_balance = load_balance,
    .next = next,
    .report_failure = report_failure,
    .observe = observe,
    .finish = finish,
    .drop_trylist = drop_trylist,
    .save = save,
    .explain = explain,
    .drop_balancer = drop_balancer,
};

LB_EXPORT const struct lb_module *const lb_module = &table;
