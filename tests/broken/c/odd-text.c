/* A module whose version is no UTF-8. */
#define VERSION "1.0 \xff"
#include "healthy.h"
