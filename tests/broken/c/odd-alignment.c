/* A module whose trylist wants an alignment that there is not. */
#define TRYLIST_ALIGN 24
#include "healthy.h"
