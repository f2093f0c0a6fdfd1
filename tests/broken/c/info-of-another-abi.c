/* A module linked of objects that were compiled for different minors of the ABI. */
#define INFO_MINOR (LB_ABI_MINOR + 3)
#include "healthy.h"
