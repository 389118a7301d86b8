/* SPDX-License-Identifier: MIT */
#include "bench.h"

#include "common/histogram.h"

#include <stdlib.h>
#include <string.h>

void samples_create(struct samples *samples, uint64_t capacity)
{
    *samples = (struct samples){calloc(capacity ? capacity : 1, sizeof(uint64_t)), 0, capacity};
    if (!samples->ns)
        fail("out of memory");
    memset(samples->ns, 1, capacity * sizeof(uint64_t)); /* so that no page fault of this array is measured */
}

void samples_free(struct samples *samples)
{
    free(samples->ns);
}

void samples_append(struct samples *into, const struct samples *from)
{
    if (into->capacity - into->n < from->n)
        fail("a bug: no room for %llu samples", (unsigned long long)from->n);
    memcpy(into->ns + into->n, from->ns, from->n * sizeof(uint64_t));
    into->n += from->n;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

static json_t *quantile_us(const struct samples *samples, double q)
{
    uint64_t at = (uint64_t)(q * (double)samples->n);

    return json_real(samples->n ? (double)samples->ns[at < samples->n ? at : samples->n - 1] / 1000.0 : 0.0);
}

json_t *samples_to_json(struct samples *samples)
{
    struct histogram *histogram = calloc(1, sizeof(*histogram));

    if (!histogram)
        fail("out of memory");
    qsort(samples->ns, samples->n, sizeof(uint64_t), compare);
    for (uint64_t i = 0; i < samples->n; i++)
        histogram_add(histogram, samples->ns[i]);
    json_t *result = histogram_to_json(histogram); /* the quantiles are rounded, and replaced below by exact ones */

    free(histogram);
    json_object_set_new(result, "p50_us", quantile_us(samples, 0.5));
    json_object_set_new(result, "p99_us", quantile_us(samples, 0.99));
    json_object_set_new(result, "p999_us", quantile_us(samples, 0.999));
    return result;
}
