/* A module that exports its table and not a pointer to it. */
#define EXPORTS_BY_ITSELF
#include "healthy.h"

LB_EXPORT const struct lb_module lb_module = TABLE;
