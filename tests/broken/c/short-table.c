/* A module whose table ends before the calls that every module must have. */
#define TABLE_SIZE offsetof(struct lb_module, finish)
#include "healthy.h"
