/* A module that exports its table and not a pointer to it, past the declaration in the header. */
#define EXPORTS_BY_ITSELF
#include "healthy.h"

LB_EXPORT const struct lb_module table_itself __asm__("lb_module") = TABLE;
