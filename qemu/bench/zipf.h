/* SPDX-License-Identifier: MIT */
/* Ranks that come up as 1 / rank^exponent. Of both programs here. */
#ifndef GHOSTBOX_BENCH_ZIPF_H
#define GHOSTBOX_BENCH_ZIPF_H

#include <stdint.h>

/* By inverting the running sums of that: little memory, a search for each. */

/* Running sums over n ranks; NULL without memory for them. The caller frees them. */
double *zipf_sums(uint64_t n, double exponent);
/* Turns 64 random bits into a rank from 0. */
uint64_t zipf_rank(const double *sums, uint64_t n, uint64_t random);

/* By alias table (Vose, 1991): two looks for each. */

struct zipf_draw;

/* For n ranks; NULL without memory for it. The caller frees it. */
struct zipf_draw *zipf_draw_new(uint64_t n, double exponent);
/* Turns twice 64 random bits into a rank from 0. */
uint64_t zipf_draw_rank(const struct zipf_draw *draw, uint64_t column, uint64_t height);

#endif
