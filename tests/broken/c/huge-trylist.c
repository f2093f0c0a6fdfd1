/* A module that wants a megabyte for every request. */
#define TRYLIST_SIZE (1u << 20)
#include "healthy.h"
