/* A module that was built for a later minor of the ABI than this host knows. */
#define TABLE_MINOR (LB_ABI_MINOR + 1)
#include "healthy.h"
