/* lb_module.h: what a balancer module for Trylist is, in C. The Rust side says the same in lb-api/src/wire.rs, and a
 * test compares every size, offset and constant of the two.
 *
 * A module is a shared object that exports one symbol:
 *
 *     LB_EXPORT const lb_module_table *const lb_module = &my_table;
 *
 *     cc -std=c11 -O2 -fPIC -shared -fvisibility=hidden -o libmod_mine.so mine.c
 *
 * A request's life: load_balance, then next for each try (and report_failure where a try could not be established, and
 * observe for the events asked for), then finish, at most once, and drop_trylist, always last and exactly once.
 *
 * Rules that hold for all structs and calls:
 * - A struct that may grow starts with its size in bytes as its sender compiled it; a receiver reads only what that size
 *   covers. Fields are only ever added at the end. lb_str, lb_pair and lb_address have no size and never grow. A host is
 *   never of a lower minor than the modules that it takes, so that a module may read every field that this header has.
 * - Elements of an array of sized structs are as far apart as the stride beside it says, not as sizeof says: use
 *   lb_endpoint_at() and lb_setting_at().
 * - Kinds are numbers, and kinds are added. One that is not known is treated as the default that its list names.
 * - Text is UTF-8 unless it came from the network (paths, header values, keys), and never ends in a NUL.
 * - Times are nanoseconds of one monotonic clock; its zero means nothing.
 * - Pointers are valid for the time of the call unless the field says otherwise.
 * - Any call may come from any thread, calls on one balancer run at the same time, calls on one trylist never do.
 * - No call may unwind (C++: catch everything) or longjmp out of itself. A module does no I/O, starts no threads, and
 *   reads no clock and no random source: its arguments have time and random values.
 */
#ifndef LB_MODULE_H
#define LB_MODULE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The ABI that this header describes. Hosts of the same major take modules of the same and of lower minors. */
#define LB_ABI_MAJOR 1u
#define LB_ABI_MINOR 0u

/* Makes the module's one symbol visible, whatever the compiler hides by default. */
#if defined(__GNUC__)
#define LB_EXPORT __attribute__((visibility("default")))
#else
#define LB_EXPORT
#endif

/* Bytes that somebody else owns. A null ptr means absent, which is not the same as empty. */
struct lb_str {
    /* First byte, or null where the text is absent. */
    const uint8_t *ptr;
    /* Length in bytes. */
    size_t len;
};

/* A name and its value. */
struct lb_pair {
    /* The name. */
    struct lb_str name;
    /* The value. */
    struct lb_str value;
};

/* An IP address and port, or none yet. */
struct lb_address {
    /* One of the LB_ADDRESS_* constants. */
    uint32_t family;
    /* Port, in host byte order. */
    uint16_t port;
    /* Zero. */
    uint16_t reserved;
    /* The address in network byte order; IPv4 uses the first four bytes. */
    uint8_t bytes[16];
};

/* No address: a name that is not resolved (yet), or a Unix socket. */
#define LB_ADDRESS_NONE 0u
/* IPv4. */
#define LB_ADDRESS_V4 4u
/* IPv6. */
#define LB_ADDRESS_V6 6u

/* An endpoint index that means "none". */
#define LB_NO_ENDPOINT UINT32_MAX

/* ---- what a call returns ----------------------------------------------------------------------------------------- */

/* The call did what it was asked. */
#define LB_STATUS_OK 0u
/* build refused; the reasons went to its error sink. Any unknown status is read as this. */
#define LB_STATUS_REFUSED 1u
/* The module broke inside the call (in Rust: panicked); message and place went to lb_host_api.panicked (to the error
 * sink in build). After this a trylist gets only its drop. */
#define LB_STATUS_PANICKED 2u

/* ---- what the module says of itself ------------------------------------------------------------------------------ */

/* What a module says of itself, once a load. Text is static. */
struct lb_info {
    /* Size of this struct. */
    uint32_t size;
    /* ABI major number that the module was built for. */
    uint32_t abi_major;
    /* ABI minor number that the module was built for. */
    uint32_t abi_minor;
    /* Bytes that one trylist needs; the host provides them in place up to LB_TRYLIST_IN_PLACE. */
    uint32_t trylist_size;
    /* Alignment of one trylist: a power of two, 16 at most. */
    uint32_t trylist_align;
    /* Zero. */
    uint32_t reserved;
    /* Module ID, snake_case; the name after which load_module asks. */
    struct lb_str id;
    /* Version of the module itself, for people. */
    struct lb_str version;
    /* One line on what it does. */
    struct lb_str summary;
};

/* Trylists up to this many bytes live inside the host's own request; larger ones cost an allocation a
 * request. */
#define LB_TRYLIST_IN_PLACE 128u
/* Alignment of the storage that the host provides for a trylist. */
#define LB_TRYLIST_ALIGN 16u

/* ---- what is balanced -------------------------------------------------------------------------------------------- */

/* The live numbers of one endpoint: written by the host, read by modules without a call. One slot never
 * moves and is never freed, so reading it is allowed for the life of the process. It belongs to its endpoint while an instance that
 * was built with it lives. Afterwards it means nothing: it says down, weight 0 and none in flight, or has another endpoint's numbers.
 * What instances share is keyed by the endpoint's id, and each reads the counters of its own build. */
struct lb_counters {
    /* Size of this struct. */
    uint32_t size;
    /* One of the LB_STATE_* constants. Any state but LB_STATE_AVAILABLE gets no requests now. */
    uint32_t state;
    /* Weight in 16.16 fixed point, with slow start and run-time changes applied. 65536 is a weight of 1. */
    uint32_t effective_weight;
    /* Requests on their way to this endpoint, from the accepted answer to the end of the try. */
    uint32_t in_flight;
    /* Of the process's other generations that still run, as last reported. */
    uint32_t in_flight_older;
    /* Bits 0 to 30 (mask with 0x7fffffff): requests it may have in flight at once, as in force now; 0 means
     * no limit. Bit 31 is the host's: it is set while the endpoint is on trial after an ejection, when it takes
     * one request at a time. A module that does not mask it sees a limit that is never reached. */
    uint32_t max_in_flight;
    /* Smoothed time to the response headers, nanoseconds; 0 while nothing is known. */
    uint64_t latency_ns;
};

/* The endpoint takes requests. */
#define LB_STATE_AVAILABLE 0u
/* Active health checks fail. */
#define LB_STATE_DOWN 1u
/* Ejected for what its traffic showed. */
#define LB_STATE_EJECTED 2u
/* Marked by the operator: finishes what runs, takes nothing new but requests of its sessions, which the host alone brings. A
 * module never answers such an endpoint. */
#define LB_STATE_DRAINING 3u

/* Live numbers of the cluster as one instance sees it: they count the endpoints of that instance, and mean nothing once it was
 * dropped. Never moves and is never freed, like lb_counters. */
struct lb_cluster_state {
    /* Size of this struct. */
    uint32_t size;
    /* Endpoints in LB_STATE_AVAILABLE. */
    uint32_t n_available;
    /* Rises after every change of an endpoint's state or effective weight: whoever made a table from
     * them compares the epoch of then with the epoch of now. Loads acquire, the host's stores release. */
    uint64_t epoch;
};

/* One endpoint. The text and pairs are valid for the time of build; of the counters see struct lb_counters. */
struct lb_endpoint {
    /* Size of this struct; also the stride of a slice of them, unless the sender names a larger one. */
    uint32_t size;
    /* Configured weight, 1 to 65,535. */
    uint32_t weight;
    /* Stable over reloads: made of cluster, URL as written, occurrence of that URL, and address. */
    uint64_t id;
    /* The URL as written in the configuration. */
    struct lb_str url;
    /* Host name or address as written, without brackets; the path of a Unix socket. */
    struct lb_str name;
    /* The resolved address, where it is known; its port is the endpoint's port. */
    struct lb_address address;
    /* Port as written or the scheme's default; 0 for a Unix socket. */
    uint32_t port;
    /* Zero. */
    uint32_t reserved;
    /* Metadata pairs in the order of the file. */
    const struct lb_pair *metadata;
    /* How many. */
    size_t n_metadata;
    /* The live numbers. */
    const struct lb_counters *counters;
};

/* ---- build ------------------------------------------------------------------------------------------------------- */

/* One value of the module's own settings table, flattened. */
struct lb_setting {
    /* Size of this struct; also the stride, as for lb_endpoint. */
    uint32_t size;
    /* One of the LB_SETTING_* constants. */
    uint32_t kind;
    /* Where it stands: keys joined by dots (a key that is not of A-Za-z0-9_- in TOML's basic quotes),
     * array elements as [0]: choices, tiers[1].name, labels."a.b". Tables and arrays stand before their
     * elements. */
    struct lb_str path;
    /* The text of a string. */
    struct lb_str text;
    /* An integer; a boolean as 0 or 1; the number of elements of a table or an array. */
    int64_t integer;
    /* A float. */
    double real;
};

/* A table; integer is its number of keys. */
#define LB_SETTING_TABLE 1u
/* An array; integer is its number of elements. */
#define LB_SETTING_ARRAY 2u
/* A string in text. Dates and times arrive as strings too. */
#define LB_SETTING_STRING 3u
/* An integer. */
#define LB_SETTING_INTEGER 4u
/* A float. */
#define LB_SETTING_FLOAT 5u
/* A boolean. */
#define LB_SETTING_BOOLEAN 6u

/* Where build reports what is wrong with its settings: any number of errors, then LB_STATUS_REFUSED. */
struct lb_error_sink {
    /* Size of this struct. */
    uint32_t size;
    /* Zero. */
    uint32_t reserved;
    /* To be passed back. */
    void *ctx;
    /* path is a lb_setting.path, or empty where no single setting is at fault. Both are copied. */
    void (*error)(void *ctx, struct lb_str path, struct lb_str text);
};

/* Where save and explain write. */
struct lb_sink {
    /* Size of this struct. */
    uint32_t size;
    /* Zero. */
    uint32_t reserved;
    /* To be passed back. */
    void *ctx;
    /* Appends a copy of these bytes. */
    void (*write)(void *ctx, struct lb_str bytes);
};

/* What the host does for a balancer. It outlives the balancer; every call may come from any thread. */
struct lb_host_api {
    /* Size of this struct. */
    uint32_t size;
    /* Zero. */
    uint32_t reserved;
    /* To be passed back. */
    void *ctx;
    /* Writes a line to the host's log under the balancer's name. level is one of the LB_LOG_* constants. */
    void (*log)(void *ctx, uint32_t level, struct lb_str text);
    /* Tells message and place of a panic that the module caught, before it returns LB_STATUS_PANICKED. */
    void (*panicked)(void *ctx, struct lb_str text);
};

/* A request or a start failed. */
#define LB_LOG_ERROR 1u
/* Recovered, but someone should look. */
#define LB_LOG_WARN 2u
/* Start, stop, change. Any unknown level is read as this. */
#define LB_LOG_INFO 3u
/* Details. */
#define LB_LOG_DEBUG 4u

/* What a balancer wants gathered for it; the host gathers nothing else. build fills it in; the names
 * stay valid until the balancer is dropped. */
struct lb_needs {
    /* Size of this struct, set by the host before the call: the module writes no field beyond it. */
    uint32_t size;
    /* LB_NEEDS_* bits. */
    uint32_t flags;
    /* LB_EVENT_* bits as 1 << LB_EVENT_X; without any, observe is never called. */
    uint32_t events;
    /* Zero. */
    uint32_t reserved;
    /* Names of request headers, any case. */
    const struct lb_str *request_headers;
    /* How many. */
    size_t n_request_headers;
    /* Names of response headers, any case. */
    const struct lb_str *response_headers;
    /* How many. */
    size_t n_response_headers;
};

/* lb_request.key is wanted. */
#define LB_NEEDS_KEY 1u

/* What build gets. */
struct lb_build_cx {
    /* Size of this struct. */
    uint32_t size;
    /* Zero. */
    uint32_t reserved;
    /* Name of the cluster. */
    struct lb_str cluster;
    /* All endpoints of the instance in configuration order; their index is their name in every other
     * call. */
    const struct lb_endpoint *endpoints;
    /* How many; at least 1. */
    size_t n_endpoints;
    /* Bytes from one endpoint to the next. */
    size_t endpoint_stride;
    /* The module's settings table, flattened. */
    const struct lb_setting *settings;
    /* How many. */
    size_t n_settings;
    /* Bytes from one setting to the next. */
    size_t setting_stride;
    /* The cluster's live numbers, of this instance alone. */
    const struct lb_cluster_state *state;
    /* The instance that this one replaces, of the same load of the same module, borrowed for the time of
     * the call and still in use; or null. Its endpoints may be others, in another order. */
    const void *previous;
    /* What an instance of an earlier generation saved; absent where there is none, and where
     * there is a previous instance. A build that refuses or panics with
     * it is called once more without. */
    struct lb_str saved;
    /* The host's services. */
    const struct lb_host_api *host;
    /* Where to report errors. */
    const struct lb_error_sink *errors;
    /* To be filled in. */
    struct lb_needs *needs;
};

/* ---- a request --------------------------------------------------------------------------------------------------- */

/* The downstream's request. Valid until the trylist is dropped. */
struct lb_request {
    /* Size of this struct. */
    uint32_t size;
    /* Endpoint that the host tries first by itself (stickiness), or LB_NO_ENDPOINT. */
    uint32_t preferred;
    /* Method, as sent. */
    struct lb_str method;
    /* http or https, as the client spoke to the listener. */
    struct lb_str scheme;
    /* Host and port as asked for; absent in an HTTP/1.0 request without Host. */
    struct lb_str authority;
    /* Path, before any mapping by the route. */
    struct lb_str path;
    /* Query without the question mark; absent where there is no question mark. */
    struct lb_str query;
    /* Address of the client. */
    struct lb_address client;
    /* The cluster's key of this request, absent unless asked for (LB_NEEDS_KEY) and present in the
     * request. */
    struct lb_str key;
    /* Values of the request headers asked for, in the order asked, the first line of each; absent is not
     * empty. */
    const struct lb_str *headers;
    /* How many: as many as were asked for. */
    size_t n_headers;
};

/* What next gets. */
struct lb_next_cx {
    /* Size of this struct. */
    uint32_t size;
    /* Tries made so far in this request. */
    uint32_t n_tries;
    /* The time now. */
    uint64_t now_ns;
    /* Uniform random bits, fresh for this call. */
    uint64_t random;
    /* Bit i % 64 of word i / 64 is set for each endpoint that was answered before in this request, tried
     * or declined; but not for one that was declined before the request waited in the queue: it may have come
     * free. May be shorter than the endpoints: bits beyond n_tried_words are 0. */
    const uint64_t *tried;
    /* How many words; 0 on the first call. */
    size_t n_tried_words;
    /* The request. */
    const struct lb_request *request;
};

/* What next answers. The host sets size before the call. */
struct lb_answer {
    /* Size of this struct. */
    uint32_t size;
    /* One of the LB_NEXT_* constants; any other is a fault. */
    uint32_t kind;
    /* Index of the endpoint, for LB_NEXT_ENDPOINT. */
    uint32_t endpoint;
    /* Zero. */
    uint32_t reserved;
};

/* Try this endpoint. */
#define LB_NEXT_ENDPOINT 1u
/* There is none left for this request. */
#define LB_NEXT_EXHAUSTED 2u
/* All are full: queue by the cluster's policy and ask again. */
#define LB_NEXT_BUSY 3u

/* Why a try did not reach the server; nothing of the request was sent. */
struct lb_failure {
    /* Size of this struct. */
    uint32_t size;
    /* One of the LB_FAILURE_* constants. */
    uint32_t kind;
    /* The endpoint. */
    uint32_t endpoint;
    /* The try's number within the request, from 1. */
    uint32_t try_id;
    /* errno where there is one, else 0. */
    int32_t os_error;
    /* Zero. */
    uint32_t reserved;
    /* The time now. */
    uint64_t now_ns;
    /* How long the try took. */
    uint64_t elapsed_ns;
};

/* The name did not resolve. */
#define LB_FAILURE_RESOLVE 1u
/* The connection was refused or failed. Any unknown kind is read as this. */
#define LB_FAILURE_CONNECT 2u
/* No connection within the time allowed. */
#define LB_FAILURE_CONNECT_TIMEOUT 3u
/* The TLS handshake failed. */
#define LB_FAILURE_TLS 4u
/* The proxy itself lacked something (descriptors, ports): says nothing about the endpoint. */
#define LB_FAILURE_LOCAL 5u

/* How a try goes on; only for balancers that asked for it in lb_needs.events. */
struct lb_event {
    /* Size of this struct. */
    uint32_t size;
    /* One of the LB_EVENT_* constants; a module ignores those it does not know. */
    uint32_t kind;
    /* The try's number within the request, from 1. */
    uint32_t try_id;
    /* The endpoint. */
    uint32_t endpoint;
    /* HTTP status, 0 before there is one. */
    uint32_t status;
    /* For LB_EVENT_TRY_ENDED: one of the LB_TRY_* constants; else 0. */
    uint32_t result;
    /* The time now. */
    uint64_t now_ns;
    /* From the accepted answer to the connection; 0 for one that was kept alive. */
    uint64_t connect_ns;
    /* From the accepted answer to the response headers; 0 before. */
    uint64_t first_byte_ns;
    /* From the accepted answer to now. */
    uint64_t total_ns;
    /* Bytes sent to the endpoint so far, heads included. */
    uint64_t bytes_sent;
    /* Bytes received from it so far, heads included. */
    uint64_t bytes_received;
    /* Values of the response headers asked for, in the order asked; only for LB_EVENT_RESPONSE_HEADERS. */
    const struct lb_str *headers;
    /* How many. */
    size_t n_headers;
};

/* A connection stands (a new one, or one kept alive). */
#define LB_EVENT_CONNECTED 1u
/* The response headers are here. */
#define LB_EVENT_RESPONSE_HEADERS 2u
/* The try is over; also for one that failed to connect, and for one that was sent and is then retried. */
#define LB_EVENT_TRY_ENDED 3u

/* The response was complete. */
#define LB_TRY_SERVED 1u
/* It could not be established; report_failure said why. */
#define LB_TRY_NOT_ESTABLISHED 2u
/* The connection ended before a response. */
#define LB_TRY_CLOSED_EARLY 3u
/* What came was not HTTP. Any unknown result is read as this. */
#define LB_TRY_BAD_RESPONSE 4u
/* No response, or no more of it, within the time allowed. */
#define LB_TRY_TIMED_OUT 5u
/* The response broke off in its body. */
#define LB_TRY_BROKEN 6u
/* The client went away, or its request broke off. */
#define LB_TRY_ABORTED 7u

/* How a request ended, told at most once. */
struct lb_outcome {
    /* Size of this struct. */
    uint32_t size;
    /* One of the LB_OUTCOME_* constants. */
    uint32_t kind;
    /* Endpoint of the last try that was established, or LB_NO_ENDPOINT. */
    uint32_t endpoint;
    /* HTTP status that the client got; 0 where it got none. */
    uint32_t status;
    /* Tries made. */
    uint32_t n_tries;
    /* Zero. */
    uint32_t reserved;
    /* The time now. */
    uint64_t now_ns;
    /* Of the last try, as in lb_event. */
    uint64_t connect_ns;
    /* Of the last try, as in lb_event. */
    uint64_t first_byte_ns;
    /* From load_balance to now. */
    uint64_t total_ns;
    /* Bytes sent to endpoints, heads included. */
    uint64_t bytes_sent;
    /* Bytes received from endpoints, heads included. */
    uint64_t bytes_received;
};

/* An endpoint's response went to the client whole, whatever its status. */
#define LB_OUTCOME_SERVED 1u
/* No endpoint was left, and none was tried. */
#define LB_OUTCOME_NO_ENDPOINT 2u
/* Every try failed. Any unknown outcome is read as this. */
#define LB_OUTCOME_FAILED 3u
/* The last try ran out of time. */
#define LB_OUTCOME_TIMED_OUT 4u
/* The response broke off in its body. */
#define LB_OUTCOME_BROKEN 5u
/* The client went away, or its request broke off. */
#define LB_OUTCOME_ABORTED 6u

/* ---- the calls --------------------------------------------------------------------------------------------------- */

/* A module's calls. balancer is what build made, trylist the storage that load_balance filled in. Every call returns a
 * LB_STATUS_*. Those marked optional may be null. */
struct lb_module {
    /* Size of this struct. */
    uint32_t size;
    /* ABI major number that the module was built for. */
    uint32_t abi_major;
    /* ABI minor number that the module was built for. */
    uint32_t abi_minor;
    /* Zero. */
    uint32_t reserved;
    /* Fills in what the module says of itself. Once a load, before any other call. */
    uint32_t (*info)(struct lb_info *info);
    /* Makes an instance for one cluster, and says what it needs. */
    uint32_t (*build)(const struct lb_build_cx *cx, void **balancer);
    /* The hook: writes this request's trylist into trylist. Where it returns anything but LB_STATUS_OK there is none, and
     * none is dropped. */
    uint32_t (*load_balance)(const void *balancer, const struct lb_request *request, void *trylist);
    /* Answers with the endpoint for the next try. */
    uint32_t (*next)(const void *balancer, void *trylist, const struct lb_next_cx *cx, struct lb_answer *answer);
    /* A try could not be established. */
    uint32_t (*report_failure)(const void *balancer, void *trylist, const struct lb_failure *failure);
    /* A try goes on. Optional. */
    uint32_t (*observe)(const void *balancer, void *trylist, const struct lb_event *event);
    /* The request ended; at most once a trylist. */
    uint32_t (*finish)(const void *balancer, void *trylist, const struct lb_outcome *outcome);
    /* Gives up what the trylist owns; always last, exactly once. */
    uint32_t (*drop_trylist)(const void *balancer, void *trylist);
    /* Writes what the next generation's instance should know. Optional. */
    uint32_t (*save)(const void *balancer, const struct lb_sink *sink);
    /* Says in words why the trylist chose as it did. Optional. */
    uint32_t (*explain)(const void *balancer, void *trylist, const struct lb_sink *sink);
    /* Gives up the instance, when the last request on it has ended. */
    uint32_t (*drop_balancer)(void *balancer);
};

/* The same type by a name that is not the symbol's, which C++ needs. */
typedef struct lb_module lb_module_table;

/* The module's one symbol. */
extern LB_EXPORT const lb_module_table *const lb_module;

/* ---- helpers ----------------------------------------------------------------------------------------------------- */

/* The i-th endpoint, and the i-th setting. */
static inline const struct lb_endpoint *lb_endpoint_at(const struct lb_build_cx *cx, size_t i)
{
    return (const struct lb_endpoint *)(const void *)((const char *)cx->endpoints + i * cx->endpoint_stride);
}

static inline const struct lb_setting *lb_setting_at(const struct lb_build_cx *cx, size_t i)
{
    return (const struct lb_setting *)(const void *)((const char *)cx->settings + i * cx->setting_stride);
}

/* Whether an endpoint was answered before in this request. */
static inline int lb_tried(const struct lb_next_cx *cx, size_t endpoint)
{
    size_t word = endpoint / 64;
    return word < cx->n_tried_words && ((cx->tried[word] >> (endpoint % 64)) & 1) != 0;
}

/* Live numbers change while they are read. The epoch is read before what depends on it. */
#if defined(__GNUC__)
static inline uint32_t lb_load_u32(const uint32_t *live)
{
    return __atomic_load_n(live, __ATOMIC_RELAXED);
}

static inline uint64_t lb_load_u64(const uint64_t *live)
{
    return __atomic_load_n(live, __ATOMIC_ACQUIRE);
}
#endif

#ifdef __cplusplus
}
#endif

#endif
