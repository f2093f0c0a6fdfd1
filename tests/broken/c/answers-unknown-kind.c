/* A module whose answers are of a kind that the ABI does not have. */
#define ID "answers_unknown_kind"
#define ANSWER_KIND 99
#include "healthy.h"
