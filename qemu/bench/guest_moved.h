/* SPDX-License-Identifier: MIT */
/* Which pages a guest's kernel has moved, and the processor time of its threads that move pages. For guest_load.c. */
#ifndef GHOSTBOX_BENCH_GUEST_MOVED_H
#define GHOSTBOX_BENCH_GUEST_MOVED_H

#include <stdint.h>

#define N_VMSTAT 11u

/* The kernel's counts since it booted. */
struct moved {
    uint64_t vmstat[N_VMSTAT];
    double movers_s;
};

/* Reads the counts. */
void moved_read(struct moved *moved);
/*
 * Prints the differences of two counts as the last keys of a JSON object, the object's end, and the end of the line.
 */
void moved_print(const struct moved *before, const struct moved *after);

#endif
