/* A module that was linked without one of its parts. */
void this_is_defined_nowhere(void);

#include "healthy.h"

LB_EXPORT void uses_it(void)
{
    this_is_defined_nowhere();
}
