/* SPDX-License-Identifier: MIT */
/* Zipf's law: ranks that are drawn with a weight of 1 / rank^exponent. Both programs of this folder use it. */
#ifndef GHOSTBOX_BENCH_ZIPF_H
#define GHOSTBOX_BENCH_ZIPF_H

#include <stdint.h>

/* Drawing by running sums of the weights: it takes little memory, and a binary search for each draw. */

/* Returns the running sums of the weights of n ranks, which the caller frees; NULL if there is no memory. */
double *zipf_sums(uint64_t n, double exponent);
/* Turns 64 random bits into a rank, from 0 on. */
uint64_t zipf_rank(const double *sums, uint64_t n, uint64_t random);

/* Drawing by an alias table (Vose, 1991): it takes one look into the table for each draw. */

struct zipf_draw;

/* Returns the table for n ranks, which the caller frees; NULL if there is no memory. */
struct zipf_draw *zipf_draw_new(uint64_t n, double exponent);
/* Turns twice 64 random bits into a rank, from 0 on. */
uint64_t zipf_draw_rank(const struct zipf_draw *draw, uint64_t column, uint64_t height);

#endif
