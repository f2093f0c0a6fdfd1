/* A module whose version is at an address where nothing is. */
#define VERSION_TEXT ((struct lb_str){(const uint8_t *)16, 5})
#include "healthy.h"
