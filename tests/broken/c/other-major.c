/* A module for the next major of the ABI. */
#define TABLE_MAJOR (LB_ABI_MAJOR + 1)
#include "healthy.h"
