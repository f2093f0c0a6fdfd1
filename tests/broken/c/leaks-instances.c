/* The model in C, but for instances that are never freed. */
#include <stdlib.h>

#define free(instance) ((void)(instance))
#include "../../../modules/c-example/c_example.c"
