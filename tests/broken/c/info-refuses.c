/* A module that returns a failure when it is asked what it is. */
#define INFO_STATUS LB_STATUS_REFUSED
#include "healthy.h"
