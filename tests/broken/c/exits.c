/* The model in C, but that it ends the process when it is asked for an endpoint. */
#include "lb_module.h"

#include <stdlib.h>

#define lb_tried(cx, endpoint) (exit(0), lb_tried(cx, endpoint))
#include "../../../modules/c-example/c_example.c"
