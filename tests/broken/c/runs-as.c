/* Right in all that it does, but that opening it leaves a file in $RUNS_AS that is named after the user it was opened as. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

__attribute__((constructor)) static void opened(void)
{
    const char *folder = getenv("RUNS_AS");
    char path[4096];
    if (!folder)
        return;
    snprintf(path, sizeof path, "%s/%u", folder, (unsigned)geteuid());
    FILE *file = fopen(path, "w");
    if (file)
        fclose(file);
}

#define ID "runs_as"
#include "healthy.h"
