/* A module that has no "next". */
#define NEXT NULL
#include "healthy.h"
