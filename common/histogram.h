/* SPDX-License-Identifier: MIT */
/* Latency histogram with logarithmic buckets (16 a power of two: at most 6 % error), lock-free for one writer. */
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

void histogram_add(struct histogram *histogram, uint64_t ns);
/* q in [0, 1]; 0 when empty. */
uint64_t histogram_quantile_ns(const struct histogram *histogram, double q);
/* {"count", "mean_us", "p50_us", "p99_us", "p999_us", "max_us", "buckets": [[upper_bound_us, n], …]} (non-empty only)
 */
json_t *histogram_to_json(const struct histogram *histogram);

#endif
