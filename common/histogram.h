/* SPDX-License-Identifier: MIT */
/*
 * A histogram of latencies with logarithmic buckets, 16 for each power of two: a quantile is off by 6 % at most. One
 * thread may write without a lock while others read.
 */
#ifndef GHOSTBOX_HISTOGRAM_H
#define GHOSTBOX_HISTOGRAM_H

#include <jansson.h>
#include <stdatomic.h>
#include <stdint.h>

#define HISTOGRAM_BUCKETS 640 /* up to 2^40 ns */

struct histogram {
    _Atomic uint64_t count;
    _Atomic uint64_t sum_ns;
    _Atomic uint64_t max_ns;
    _Atomic uint64_t buckets[HISTOGRAM_BUCKETS];
};

/* Counts one latency. Only the histogram's writing thread may call it. */
void histogram_add(struct histogram *histogram, uint64_t ns);
/* Returns the quantile q, from 0 to 1; 0 if the histogram is empty. In any thread. */
uint64_t histogram_quantile_ns(const struct histogram *histogram, double q);
/*
 * Returns {"count", "mean_us", "p50_us", "p99_us", "p999_us", "max_us", "buckets": [[upper_bound_us, n], …]}. Empty
 * buckets are left out. In any thread.
 */
json_t *histogram_to_json(const struct histogram *histogram);

#endif
