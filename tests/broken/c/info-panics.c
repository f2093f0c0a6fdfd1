/* A module that says that it panicked when it is asked what it is. */
#define INFO_STATUS LB_STATUS_PANICKED
#include "healthy.h"
