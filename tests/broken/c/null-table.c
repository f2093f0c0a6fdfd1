/* A module whose symbol points to nothing. */
#define EXPORTS_BY_ITSELF
#include "healthy.h"

UNUSED static const struct lb_module table = TABLE;
LB_EXPORT const struct lb_module *const lb_module = NULL;
