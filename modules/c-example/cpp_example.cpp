// cpp_example: fewest requests in flight, in C++, and the model for whoever writes a module in C++11 or later.
//
// Build, from the top of the checkout:
//
//     c++ -std=c++17 -Wall -Wextra -O2 -fPIC -shared -fvisibility=hidden -I lb-api/include -o libmod_cpp_example.so modules/c-example/cpp_example.cpp
//
// Test and use:
//
//     trylist module test ./libmod_cpp_example.so --skips-unavailable
//
//     [load_module]
//     cpp_example = "/path/to/libmod_cpp_example.so"
//
// Idea. Each try goes to the server with the fewest requests in flight, of those that are available and were not tried. Of equal
// ones the turn decides, which moves on with each request. A server that is full is passed over; where all are, the host waits.
//
// When: requests that differ in cost, servers of equal strength. When not: weights, which it does not know (`least_request` does).
// Settings: none. State: the turn, which an instance shares with the one that it replaces; a reload begins it anew.
//
// Differences from C, and where they are done here:
//   - no exception leaves a call: `guarded` turns each into a status;
//   - the instance that is replaced is still in use: what both need is shared by a `shared_ptr`;
//   - the instance is an object that `build` makes and `drop_balancer` deletes. The trylist is one too, made in the host's storage;
//   - the type of the table is `lb_module_table`: `lb_module` is the exported symbol.
#include "lb_module.h"

#include <atomic>
#include <memory>
#include <new>
#include <vector>

namespace {

lb_str text(const char *from)
{
    size_t len = 0;
    while (from[len] != '\0') {
        len++;
    }
    return {reinterpret_cast<const uint8_t *>(from), len};
}

// The instance for one cluster. Requests on many threads read it at once; only the turn changes.
class Balancer {
public:
    explicit Balancer(const lb_build_cx &cx)
        : turn(cx.previous != nullptr ? static_cast<const Balancer *>(cx.previous)->turn
                                      : std::make_shared<std::atomic<uint64_t>>(0))
    {
        counters.reserve(cx.n_endpoints);
        for (size_t i = 0; i < cx.n_endpoints; i++) {
            counters.push_back(lb_endpoint_at(&cx, i)->counters);
        }
    }

    uint32_t take_turn() const
    {
        return static_cast<uint32_t>(turn->fetch_add(1, std::memory_order_relaxed) % counters.size());
    }

    lb_answer choose(uint32_t begin, const lb_next_cx &cx) const
    {
        const uint32_t n = static_cast<uint32_t>(counters.size());
        uint32_t best = n, rest = n, fewest = UINT32_MAX;
        bool is_any_full = false;

        for (uint32_t step = 0; step < n; step++) {
            const uint32_t endpoint = (begin + step) % n;
            const lb_counters &its = *counters[endpoint];
            const uint32_t in_flight = lb_load_u32(&its.in_flight), most = lb_load_u32(&its.max_in_flight);

            if (lb_tried(&cx, endpoint)) {
                continue;
            }
            if (lb_load_u32(&its.state) != LB_STATE_AVAILABLE) {
                rest = rest == n ? endpoint : rest;
            } else if (most != 0 && in_flight >= most) {
                is_any_full = true;
            } else if (in_flight < fewest) {
                best = endpoint;
                fewest = in_flight;
            }
        }
        if (best != n) {
            return answer(LB_NEXT_ENDPOINT, best);
        }
        if (is_any_full) {
            return answer(LB_NEXT_BUSY, LB_NO_ENDPOINT);
        }
        // The host declines what is not available, unless all are.
        return rest != n ? answer(LB_NEXT_ENDPOINT, rest) : answer(LB_NEXT_EXHAUSTED, LB_NO_ENDPOINT);
    }

private:
    static lb_answer answer(uint32_t kind, uint32_t endpoint)
    {
        lb_answer it = {};
        it.size = sizeof(it);
        it.kind = kind;
        it.endpoint = endpoint;
        return it;
    }

    std::vector<const lb_counters *> counters;
    const std::shared_ptr<std::atomic<uint64_t>> turn;
};

// One request's trylist: where its tries begin to look.
struct Trylist {
    uint32_t begin;
};

const Balancer &balancer_of(const void *instance)
{
    return *static_cast<const Balancer *>(instance);
}

// No exception crosses the boundary.
template <typename Call> uint32_t guarded(Call call) noexcept
{
    try {
        call();
        return LB_STATUS_OK;
    } catch (...) {
        return LB_STATUS_PANICKED;
    }
}

uint32_t info(lb_info *info)
{
    info->abi_major = LB_ABI_MAJOR;
    info->abi_minor = LB_ABI_MINOR;
    info->trylist_size = sizeof(Trylist);
    info->trylist_align = alignof(Trylist);
    info->id = text("cpp_example");
    info->version = text("1.0.0");
    info->summary = text("fewest requests in flight, in C++");
    return LB_STATUS_OK;
}

uint32_t build(const lb_build_cx *cx, void **balancer)
{
    for (size_t i = 0; i < cx->n_settings; i++) {
        cx->errors->error(cx->errors->ctx, lb_setting_at(cx, i)->path, text("unknown setting: this module has none"));
    }
    if (cx->n_settings > 0) {
        return LB_STATUS_REFUSED;
    }
    return guarded([&] { *balancer = new Balancer(*cx); });
}

uint32_t load_balance(const void *balancer, const lb_request *, void *trylist)
{
    new (trylist) Trylist{balancer_of(balancer).take_turn()};
    return LB_STATUS_OK;
}

uint32_t next(const void *balancer, void *trylist, const lb_next_cx *cx, lb_answer *answer)
{
    const uint32_t size = answer->size;

    *answer = balancer_of(balancer).choose(static_cast<const Trylist *>(trylist)->begin, *cx);
    answer->size = size;
    return LB_STATUS_OK;
}

uint32_t report_failure(const void *, void *, const lb_failure *)
{
    return LB_STATUS_OK;
}

uint32_t finish(const void *, void *, const lb_outcome *)
{
    return LB_STATUS_OK;
}

uint32_t drop_trylist(const void *, void *trylist)
{
    static_cast<Trylist *>(trylist)->~Trylist();
    return LB_STATUS_OK;
}

uint32_t drop_balancer(void *balancer)
{
    delete static_cast<Balancer *>(balancer);
    return LB_STATUS_OK;
}

// In the order of the header. `observe`, `save` and `explain` are optional.
const lb_module_table table = {
    sizeof(lb_module_table), LB_ABI_MAJOR, LB_ABI_MINOR, 0, info, build, load_balance, next, report_failure, nullptr, finish,
    drop_trylist, nullptr, nullptr, drop_balancer,
};

} // namespace

// The header has declared it visible.
const lb_module_table *const lb_module = &table;
