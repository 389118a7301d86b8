/* SPDX-License-Identifier: MIT */
#include "base/fault_points.h"

#ifdef GHOSTBOX_FAULT_POINTS
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const names[] = {
#define X(name) #name,
    FAULT_POINTS(X)
#undef X
};

static int chosen = -1;
static atomic_int left = 1;

__attribute__((constructor)) static void read_environment(void)
{
    const char *wish = getenv("GHOSTBOX_CRASH_AT");

    if (!wish)
        return;
    size_t length = strcspn(wish, ":");

    for (int i = 0; i < FAULT_POINT_COUNT; i++)
        if (strlen(names[i]) == length && memcmp(names[i], wish, length) == 0)
            chosen = i;
    if (chosen < 0) {
        fprintf(stderr, "GHOSTBOX_CRASH_AT: no fault point '%.*s'\n", (int)length, wish);
        exit(EXIT_FAILURE);
    }
    if (wish[length] == ':')
        left = atoi(wish + length + 1);
}

void fault_point_reached(enum fault_point point)
{
    if ((int)point == chosen && atomic_fetch_sub(&left, 1) == 1)
        kill(getpid(), SIGKILL);
}
#else
typedef int fault_points_are_off; /* ISO C forbids an empty translation unit */
#endif
