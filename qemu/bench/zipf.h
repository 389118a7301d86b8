/* SPDX-License-Identifier: MIT */
/* Ranks that come up as 1 / rank^exponent, by inverting the sums of that. Of both programs here. */
#ifndef GHOSTBOX_BENCH_ZIPF_H
#define GHOSTBOX_BENCH_ZIPF_H

#include <stdint.h>

/* Running sums over n ranks; NULL without memory for them. The caller frees them. */
double *zipf_sums(uint64_t n, double exponent);
/* Turns 64 random bits into a rank from 0. */
uint64_t zipf_rank(const double *sums, uint64_t n, uint64_t random);

#endif
