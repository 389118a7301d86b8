/* SPDX-License-Identifier: MIT */
/* What a guest's kernel has moved, and the processor time of its threads that do so. Of guest_load.c. */
#ifndef GHOSTBOX_BENCH_GUEST_MOVED_H
#define GHOSTBOX_BENCH_GUEST_MOVED_H

#include <stdint.h>

#define N_VMSTAT 11u

/* What it has done since it booted. */
struct moved {
    uint64_t vmstat[N_VMSTAT];
    double movers_s;
};

void moved_read(struct moved *moved);
/* Prints what was moved between two looks as the last keys of a JSON object, its end, and the end of the line. */
void moved_print(const struct moved *before, const struct moved *after);

#endif
