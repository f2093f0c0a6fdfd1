/* A module with nothing wrong, for others to spoil: each defines what is to be different, and includes this. */
#include "lb_module.h"

#ifndef ID
#define ID "broken"
#endif
#ifndef VERSION
#define VERSION "1.0.0"
#endif
#ifndef VERSION_TEXT
#define VERSION_TEXT TEXT(VERSION)
#endif
#ifndef TABLE_SIZE
#define TABLE_SIZE sizeof(struct lb_module)
#endif
#ifndef TABLE_MAJOR
#define TABLE_MAJOR LB_ABI_MAJOR
#endif
#ifndef TABLE_MINOR
#define TABLE_MINOR LB_ABI_MINOR
#endif
#ifndef INFO_MINOR
#define INFO_MINOR TABLE_MINOR
#endif
#ifndef INFO_STATUS
#define INFO_STATUS LB_STATUS_OK
#endif
#ifndef TRYLIST_SIZE
#define TRYLIST_SIZE 0
#endif
#ifndef TRYLIST_ALIGN
#define TRYLIST_ALIGN 1
#endif
#ifndef INFO
#define INFO info
#endif
#ifndef NEXT
#define NEXT next
#endif
#ifndef SAVE
#define SAVE NULL
#endif
#ifndef ANSWER_KIND
#define ANSWER_KIND LB_NEXT_ENDPOINT
#endif
#ifndef NEXT_STATUS
#define NEXT_STATUS LB_STATUS_OK
#endif

#define TEXT(text) ((struct lb_str){(const uint8_t *)(text), sizeof(text) - 1})
#define UNUSED __attribute__((unused))

static UNUSED uint32_t info(struct lb_info *info)
{
    info->abi_major = TABLE_MAJOR;
    info->abi_minor = INFO_MINOR;
    info->trylist_size = TRYLIST_SIZE;
    info->trylist_align = TRYLIST_ALIGN;
    info->id = TEXT(ID);
    info->version = VERSION_TEXT;
    info->summary = TEXT("answers the first endpoint");
    return INFO_STATUS;
}

static uint32_t build(UNUSED const struct lb_build_cx *cx, UNUSED void **balancer)
{
    return LB_STATUS_OK;
}

static uint32_t load_balance(UNUSED const void *balancer, UNUSED const struct lb_request *request, UNUSED void *trylist)
{
    return LB_STATUS_OK;
}

static UNUSED uint32_t next(UNUSED const void *balancer, UNUSED void *trylist, UNUSED const struct lb_next_cx *cx,
                            struct lb_answer *answer)
{
    answer->kind = ANSWER_KIND;
    answer->endpoint = 0;
    return NEXT_STATUS;
}

static uint32_t report_failure(UNUSED const void *balancer, UNUSED void *trylist, UNUSED const struct lb_failure *failure)
{
    return LB_STATUS_OK;
}

static uint32_t finish(UNUSED const void *balancer, UNUSED void *trylist, UNUSED const struct lb_outcome *outcome)
{
    return LB_STATUS_OK;
}

static uint32_t drop_trylist(UNUSED const void *balancer, UNUSED void *trylist)
{
    return LB_STATUS_OK;
}

static uint32_t drop_balancer(UNUSED void *balancer)
{
    return LB_STATUS_OK;
}

#define TABLE                                                                                                          \
    {                                                                                                                  \
        .size = TABLE_SIZE, .abi_major = TABLE_MAJOR, .abi_minor = TABLE_MINOR, .info = INFO, .build = build,          \
        .load_balance = load_balance, .next = NEXT, .report_failure = report_failure, .finish = finish,                \
        .drop_trylist = drop_trylist, .save = SAVE, .drop_balancer = drop_balancer                                     \
    }

#ifndef EXPORTS_BY_ITSELF
static const struct lb_module table = TABLE;
LB_EXPORT const struct lb_module *const lb_module = &table;
#endif
