/* The model in C, but for memory that each `next` takes and nobody gives back. */
#include "lb_module.h"

#include <stdlib.h>

static void *volatile lost;

#define lb_tried(cx, endpoint) ((lost = malloc(32)), lb_tried(cx, endpoint))
#include "../../../modules/c-example/c_example.c"
