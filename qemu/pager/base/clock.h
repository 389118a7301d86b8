/* SPDX-License-Identifier: MIT */
#ifndef GHOSTBOX_CLOCK_H
#define GHOSTBOX_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Monotonic time, ns. */
static inline uint64_t clock_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#endif
