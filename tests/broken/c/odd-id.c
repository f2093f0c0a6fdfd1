/* A module whose ID is none. */
#define ID "Round-Robin"
#include "healthy.h"
