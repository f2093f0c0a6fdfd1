/* A module whose "next" returns a status that the ABI does not have. */
#define ID "odd_status"
#define NEXT_STATUS 99
#include "healthy.h"
