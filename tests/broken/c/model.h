/* The model in C, for modules that replace some of its calls: include this, define what is wrong, and end with SPOILED. */
#define lb_module model_of_c
#include "../../../modules/c-example/c_example.c"
#undef lb_module

#define UNUSED __attribute__((unused))

/* Exports the model's table with these changes of `spoiled`. */
#define SPOILED(changes)                                                                                               \
    static lb_module_table spoiled;                                                                             \
    static __attribute__((constructor)) void spoil(void)                                                               \
    {                                                                                                                  \
        spoiled = table;                                                                                               \
        changes;                                                                                                       \
    }                                                                                                                  \
    LB_EXPORT const lb_module_table *const lb_module = &spoiled
