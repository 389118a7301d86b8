/* SPDX-License-Identifier: MIT */
/*
 * Buckets: each value below 16 ns has one; above, each power of two has 16, by the four bits after the leading one.
 * Readers may see counters of different moments, but each counter is whole.
 */
#include "histogram.h"

#define SUB_BITS  4
#define SUB_COUNT (1u << SUB_BITS)

static unsigned bucket_index(uint64_t ns)
{
    if (ns < SUB_COUNT) {
        return (unsigned)ns;
    }
    unsigned exponent = 63u - (unsigned)__builtin_clzll(ns);
    unsigned sub = (unsigned)(ns >> (exponent - SUB_BITS)) & (SUB_COUNT - 1);
    unsigned index = (exponent - SUB_BITS + 1) * SUB_COUNT + sub;
    return index < HISTOGRAM_BUCKETS ? index : HISTOGRAM_BUCKETS - 1;
}

static uint64_t bucket_upper_ns(unsigned index)
{
    if (index < SUB_COUNT) {
        return index;
    }
    unsigned shift = index / SUB_COUNT - 1;
    uint64_t sub = index % SUB_COUNT;
    return ((SUB_COUNT + sub + 1) << shift) - 1;
}

static uint64_t counter_load(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Adds by a load and a store, because only one thread writes: an atomic addition would cost more. */
static void counter_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, counter_load(counter) + n, memory_order_relaxed);
}

void histogram_add(struct histogram *histogram, uint64_t ns)
{
    counter_add(&histogram->buckets[bucket_index(ns)], 1);
    counter_add(&histogram->sum_ns, ns);
    counter_add(&histogram->count, 1);
    if (ns > counter_load(&histogram->max_ns)) {
        atomic_store_explicit(&histogram->max_ns, ns, memory_order_relaxed);
    }
}

uint64_t histogram_quantile_ns(const struct histogram *histogram, double q)
{
    uint64_t total = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        total += counter_load(&histogram->buckets[i]);
    }
    if (total == 0) {
        return 0;
    }
    uint64_t max_ns = counter_load(&histogram->max_ns);
    double rank = q * (double)total;
    uint64_t seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += counter_load(&histogram->buckets[i]);
        if (seen > 0 && (double)seen >= rank) {
            uint64_t upper_ns = bucket_upper_ns(i);
            return upper_ns < max_ns ? upper_ns : max_ns;
        }
    }
    return max_ns;
}

static json_t *microseconds(uint64_t ns)
{
    return json_real((double)ns / 1000.0);
}

json_t *histogram_to_json(const struct histogram *histogram)
{
    json_t *buckets = json_array();
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        uint64_t n = counter_load(&histogram->buckets[i]);
        if (n > 0) {
            json_array_append_new(buckets, json_pack("[o, I]", microseconds(bucket_upper_ns(i)), (json_int_t)n));
        }
    }
    uint64_t count = counter_load(&histogram->count);
    double mean_us = count > 0 ? (double)counter_load(&histogram->sum_ns) / (double)count / 1000.0 : 0.0;
    return json_pack("{s:I, s:f, s:o, s:o, s:o, s:o, s:o}", "count", (json_int_t)count, "mean_us", mean_us, "p50_us",
                     microseconds(histogram_quantile_ns(histogram, 0.5)), "p99_us",
                     microseconds(histogram_quantile_ns(histogram, 0.99)), "p999_us",
                     microseconds(histogram_quantile_ns(histogram, 0.999)), "max_us",
                     microseconds(counter_load(&histogram->max_ns)), "buckets", buckets);
}
