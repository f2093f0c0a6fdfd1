/* c_example: round robin in C, and the model for whoever writes a module in C. In C++ it is `cpp_example.cpp`.
 *
 * Build, from the top of the checkout:
 *
 *     cc -std=c11 -Wall -Wextra -O2 -fPIC -shared -fvisibility=hidden -I lb-api/include -o libmod_c_example.so modules/c-example/c_example.c
 *
 * Test and use:
 *
 *     trylist module test ./libmod_c_example.so --skips-unavailable
 *
 *     [load_module]
 *     c_example = "/path/to/libmod_c_example.so"
 *
 *     [[cluster]]
 *     module = "c_example"
 *     settings = { first = 0, start_header = "x-start" }
 *
 * Idea. Each request starts one server further than the one before it, and goes on from there while tries fail. A server
 * that is not available is skipped as long as there are others. A reload goes on with the next server, and so does an instance
 * that takes over in the same process when servers come and go. By hand, for servers a, b, c: the first request
 * goes to a, the second to b, the third to c, the fourth to a; if b is down, the second goes to c.
 *
 * Settings.
 *     first         index of the server that gets the first request after a start, from 0; 0 by default
 *     start_header  name of a request header; a request that has it, with the index of a server as its value, starts
 *                   there and takes no turn. Off by default.
 *
 * When: servers of equal strength. When not: weights, which it does not know (`round_robin` does).
 *
 * What a module must get right, and where it is done here:
 *   - no globals that change: two clusters are two instances (`struct balancer`), and nothing is shared between them;
 *   - servers come and go: `build` then gets the instance that the new one replaces (`previous`), which is still in use and is
 *     dropped later. State that both need is counted by its users (`struct turns`) and keyed by the id of a server, because indices
 *     differ. Counters of a server are those that this `build` got, and are not looked up in the instance before;
 *   - threads: `load_balance` and `next` run on many threads at once on one instance, so what changes in it is atomic
 *     (`turn`), and the rest is written by `build` alone. A trylist is never used by two threads at once;
 *   - errors: `build` tells everything that is wrong to the sink, then refuses once. It prints nothing and never exits;
 *   - memory: what `build` makes, `drop_balancer` frees. The trylist lives in the host's storage; what it points to, if
 *     anything, `drop_trylist` frees, which comes exactly once, with or without `finish`;
 *   - text is a pointer and a length, without a NUL at its end, and valid for the time of the call: copy what is kept;
 *   - it ends: every endpoint is answered once at most, then LB_NEXT_EXHAUSTED.
 */
#include "lb_module.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A literal as the ABI's text. */
#define TEXT(literal) ((struct lb_str){(const uint8_t *)(literal), sizeof(literal) - 1})

/* ---- state ------------------------------------------------------------------------------------------------------- */

/* The turns, shared by all instances that follow one another: a turn is taken once, whichever of them takes it. The last one
 * frees them. */
struct turns {
    atomic_size_t n_users;
    /* The one thing that requests change. Relaxed is enough: nothing else is published by it. */
    atomic_uint_fast64_t turn;
};

/* An endpoint: its id, which it has in every instance, and its live numbers, which are its own as long as this instance lives. */
struct endpoint {
    uint64_t id;
    const struct lb_counters *counters;
};

/* The instance for one cluster. */
struct balancer {
    struct turns *turns;
    /* The server of turn 0. */
    uint64_t first;
    /* Copied, and kept to the end of the instance, because the host reads `needs` for as long. Absent when off. */
    struct lb_str start_header;
    size_t n_endpoints;
    struct endpoint endpoints[];
};

/* One request's trylist: where the next try begins to look. */
struct trylist {
    uint32_t at;
    uint32_t n_failures;
};

/* ---- settings ---------------------------------------------------------------------------------------------------- */

struct settings {
    uint64_t first;
    struct lb_str start_header;
};

static int is(struct lb_str text, const char *expected)
{
    return text.len == strlen(expected) && memcmp(text.ptr, expected, text.len) == 0;
}

static void refuse(const struct lb_build_cx *cx, struct lb_str path, struct lb_str why, uint32_t *status)
{
    cx->errors->error(cx->errors->ctx, path, why);
    *status = LB_STATUS_REFUSED;
}

/* Reads all settings, so that an operator hears of all mistakes in one run. Unknown keys are mistakes. */
static uint32_t read_settings(const struct lb_build_cx *cx, struct settings *settings)
{
    uint32_t status = LB_STATUS_OK;

    for (size_t i = 0; i < cx->n_settings; i++) {
        const struct lb_setting *setting = lb_setting_at(cx, i);

        if (is(setting->path, "first")) {
            if (setting->kind == LB_SETTING_INTEGER && setting->integer >= 0 &&
                (uint64_t)setting->integer < cx->n_endpoints) {
                settings->first = (uint64_t)setting->integer;
            } else {
                refuse(cx, setting->path, TEXT("expected the index of an endpoint, from 0"), &status);
            }
        } else if (is(setting->path, "start_header")) {
            if (setting->kind == LB_SETTING_STRING && setting->text.len > 0) {
                settings->start_header = setting->text;
            } else {
                refuse(cx, setting->path, TEXT("expected the name of a request header"), &status);
            }
        } else {
            refuse(cx, setting->path, TEXT("unknown setting, expected \"first\" or \"start_header\""), &status);
        }
    }
    return status;
}

/* ---- calls ------------------------------------------------------------------------------------------------------- */

static uint32_t info(struct lb_info *info)
{
    info->abi_major = LB_ABI_MAJOR;
    info->abi_minor = LB_ABI_MINOR;
    info->trylist_size = sizeof(struct trylist);
    info->trylist_align = _Alignof(struct trylist);
    info->id = TEXT("c_example");
    info->version = TEXT("1.0.0");
    info->summary = TEXT("round robin over the servers in the order of the file, in C");
    return LB_STATUS_OK;
}

/* What `save` writes, in the byte order of this machine: a reload stays on it. `form` says whose bytes they are; give them
 * another one when the struct changes. */
struct saved {
    uint64_t form;
    uint64_t turn;
};

#define SAVED_FORM UINT64_C(0x635f6578616d7031)

static size_t server_of(const struct balancer *balancer, uint64_t turn)
{
    return (size_t)((turn + balancer->first) % balancer->n_endpoints);
}

/* Where a new instance's turns begin: where an earlier process stood, or at the setting. */
static uint64_t first_turn(const struct lb_build_cx *cx, uint64_t first)
{
    struct saved saved;

    /* Saved bytes may be damaged or another version's: check all that is used of them. */
    if (cx->saved.ptr != NULL && cx->saved.len == sizeof(saved)) {
        memcpy(&saved, cx->saved.ptr, sizeof(saved));
        if (saved.form == SAVED_FORM) {
            return saved.turn;
        }
    }
    return first;
}

static int by_id(const void *a, const void *b)
{
    const struct endpoint *one = *(const struct endpoint *const *)a, *other = *(const struct endpoint *const *)b;

    return (one->id > other->id) - (one->id < other->id);
}

/* Index in the new instance of the server whose turn it is in the previous one, or of the first behind it that stays. 0 if none
 * stays, or there is no memory to find out. */
static size_t next_of(const struct balancer *balancer, const struct balancer *previous, uint64_t turn)
{
    const struct endpoint **sorted = malloc(balancer->n_endpoints * sizeof(*sorted));
    size_t begin = server_of(previous, turn), found = 0;

    if (sorted == NULL) {
        return 0;
    }
    for (size_t i = 0; i < balancer->n_endpoints; i++) {
        sorted[i] = &balancer->endpoints[i];
    }
    qsort(sorted, balancer->n_endpoints, sizeof(*sorted), by_id);
    for (size_t i = 0; i < previous->n_endpoints; i++) {
        const struct endpoint *its = &previous->endpoints[(begin + i) % previous->n_endpoints];
        const struct endpoint **same = bsearch(&its, sorted, balancer->n_endpoints, sizeof(*sorted), by_id);

        if (same != NULL) {
            found = (size_t)(*same - balancer->endpoints);
            break;
        }
    }
    free(sorted);
    return found;
}

/* Shares the turns of the instance before, or begins to count. 0 if there is no memory. */
static int take_turns(const struct lb_build_cx *cx, struct balancer *balancer, uint64_t first)
{
    const struct balancer *previous = cx->previous;

    if (previous != NULL) {
        uint64_t turn = atomic_load_explicit(&previous->turns->turn, memory_order_relaxed);
        uint64_t n = balancer->n_endpoints;

        balancer->turns = previous->turns;
        atomic_fetch_add_explicit(&balancer->turns->n_users, 1, memory_order_relaxed);
        balancer->first = (next_of(balancer, previous, turn) + n - turn % n) % n;
        return 1;
    }
    balancer->first = 0;
    balancer->turns = malloc(sizeof(*balancer->turns));
    if (balancer->turns == NULL) {
        return 0;
    }
    atomic_init(&balancer->turns->n_users, 1);
    atomic_init(&balancer->turns->turn, first_turn(cx, first));
    return 1;
}

static uint32_t build(const struct lb_build_cx *cx, void **out)
{
    struct settings settings = {0, {NULL, 0}};

    if (read_settings(cx, &settings) != LB_STATUS_OK) {
        return LB_STATUS_REFUSED;
    }

    /* One allocation: the instance, its endpoints, and the header's name behind them. */
    size_t n_bytes = sizeof(struct balancer) + cx->n_endpoints * sizeof(struct endpoint);
    struct balancer *balancer = malloc(n_bytes + settings.start_header.len);
    if (balancer == NULL) {
        cx->errors->error(cx->errors->ctx, TEXT(""), TEXT("out of memory"));
        return LB_STATUS_REFUSED;
    }
    balancer->n_endpoints = cx->n_endpoints;
    for (size_t i = 0; i < cx->n_endpoints; i++) {
        const struct lb_endpoint *endpoint = lb_endpoint_at(cx, i);

        balancer->endpoints[i] = (struct endpoint){endpoint->id, endpoint->counters};
    }
    if (!take_turns(cx, balancer, settings.first)) {
        free(balancer);
        cx->errors->error(cx->errors->ctx, TEXT(""), TEXT("out of memory"));
        return LB_STATUS_REFUSED;
    }

    balancer->start_header = (struct lb_str){NULL, 0};
    if (settings.start_header.len > 0) {
        uint8_t *name = (uint8_t *)balancer + n_bytes;

        memcpy(name, settings.start_header.ptr, settings.start_header.len);
        balancer->start_header = (struct lb_str){name, settings.start_header.len};
        /* The host gathers what is asked for here, and nothing else. */
        cx->needs->request_headers = &balancer->start_header;
        cx->needs->n_request_headers = 1;
    }
    *out = balancer;
    return LB_STATUS_OK;
}

/* The header's value as an index: decimal digits and no more. It came from the network, so that anything may be in it. */
static int index_of(struct lb_str text, size_t n_endpoints, uint32_t *index)
{
    uint64_t value = 0;

    if (text.ptr == NULL || text.len == 0 || text.len > 9) {
        return 0;
    }
    for (size_t i = 0; i < text.len; i++) {
        if (text.ptr[i] < '0' || text.ptr[i] > '9') {
            return 0;
        }
        value = value * 10 + (uint64_t)(text.ptr[i] - '0');
    }
    *index = (uint32_t)value;
    return value < n_endpoints;
}

static uint32_t load_balance(const void *instance, const struct lb_request *request, void *list)
{
    const struct balancer *balancer = instance;
    struct trylist *trylist = list;

    trylist->n_failures = 0;
    /* Headers come in the order in which `build` asked for them; this module asked for one at most. */
    if (request->n_headers == 1 && index_of(request->headers[0], balancer->n_endpoints, &trylist->at)) {
        return LB_STATUS_OK;
    }
    trylist->at =
        (uint32_t)server_of(balancer, atomic_fetch_add_explicit(&balancer->turns->turn, 1, memory_order_relaxed));
    return LB_STATUS_OK;
}

static uint32_t next(const void *instance, void *list, const struct lb_next_cx *cx, struct lb_answer *answer)
{
    const struct balancer *balancer = instance;
    struct trylist *trylist = list;
    uint32_t n = (uint32_t)balancer->n_endpoints;

    /* Twice round: first those that are available, then what is left. The host declines the latter, unless all are. */
    for (int any = 0; any <= 1; any++) {
        for (uint32_t step = 0; step < n; step++) {
            uint32_t endpoint = (trylist->at + step) % n;

            if (lb_tried(cx, endpoint)) {
                continue;
            }
            if (any || lb_load_u32(&balancer->endpoints[endpoint].counters->state) == LB_STATE_AVAILABLE) {
                trylist->at = endpoint;
                answer->kind = LB_NEXT_ENDPOINT;
                answer->endpoint = endpoint;
                return LB_STATUS_OK;
            }
        }
    }
    answer->kind = LB_NEXT_EXHAUSTED;
    return LB_STATUS_OK;
}

static uint32_t report_failure(const void *instance, void *list, const struct lb_failure *failure)
{
    struct trylist *trylist = list;

    (void)instance;
    (void)failure;
    trylist->n_failures++;
    return LB_STATUS_OK;
}

static uint32_t finish(const void *instance, void *list, const struct lb_outcome *outcome)
{
    (void)instance;
    (void)list;
    (void)outcome;
    return LB_STATUS_OK;
}

static uint32_t drop_trylist(const void *instance, void *list)
{
    /* It owns nothing. A trylist that does frees it here, and not in `finish`, which may not come. */
    (void)instance;
    (void)list;
    return LB_STATUS_OK;
}

static uint32_t explain(const void *instance, void *list, const struct lb_sink *sink)
{
    const struct trylist *trylist = list;
    char text[64];
    int len = snprintf(text, sizeof(text), "at %u after %u failures", (unsigned)trylist->at,
                       (unsigned)trylist->n_failures);

    (void)instance;
    sink->write(sink->ctx, (struct lb_str){(const uint8_t *)text, (size_t)len});
    return LB_STATUS_OK;
}

/* Comes while requests go on, before another process takes over and every few seconds. */
static uint32_t save(const void *instance, const struct lb_sink *sink)
{
    const struct balancer *balancer = instance;
    uint64_t turn = atomic_load_explicit(&balancer->turns->turn, memory_order_relaxed);
    struct saved saved = {SAVED_FORM, turn + balancer->first};

    sink->write(sink->ctx, (struct lb_str){(const uint8_t *)&saved, sizeof(saved)});
    return LB_STATUS_OK;
}

static uint32_t drop_balancer(void *instance)
{
    struct balancer *balancer = instance;

    /* The last user frees what is shared: it sees all that the others did before they left. */
    if (atomic_fetch_sub_explicit(&balancer->turns->n_users, 1, memory_order_acq_rel) == 1) {
        free(balancer->turns);
    }
    free(balancer);
    return LB_STATUS_OK;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

/* Calls that are left out are null. `observe`, `save` and `explain` are optional. This module asks for no events, so it has no
 * `observe`. */
static const lb_module_table table = {
    .size = sizeof(table),
    .abi_major = LB_ABI_MAJOR,
    .abi_minor = LB_ABI_MINOR,
    .info = info,
    .build = build,
    .load_balance = load_balance,
    .next = next,
    .report_failure = report_failure,
    .finish = finish,
    .drop_trylist = drop_trylist,
    .save = save,
    .explain = explain,
    .drop_balancer = drop_balancer,
};

/* The one symbol that a module exports: a pointer to the table, not the table. */
LB_EXPORT const lb_module_table *const lb_module = &table;
