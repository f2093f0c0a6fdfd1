/* A module that says nothing of itself. */
#define INFO NULL
#include "healthy.h"
