/* A module whose version goes on through all memory. */
#define VERSION_TEXT ((struct lb_str){(const uint8_t *)"1", SIZE_MAX})
#include "healthy.h"
