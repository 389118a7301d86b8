/* SPDX-License-Identifier: MIT */
#include "zipf.h"

#include <math.h>
#include <stdlib.h>

double *zipf_sums(uint64_t n, double exponent)
{
    double *sums = malloc(n * sizeof(*sums)), sum = 0;

    for (uint64_t rank = 0; sums && rank < n; rank++)
        sums[rank] = sum += 1.0 / pow((double)(rank + 1), exponent);
    return sums;
}

/* The first rank whose sum is above the value. */
uint64_t zipf_rank(const double *sums, uint64_t n, uint64_t random)
{
    double value = (double)(random >> 11) / (double)(1ull << 53) * sums[n - 1];
    uint64_t low = 0, high = n - 1;

    while (low < high) {
        uint64_t middle = (low + high) / 2;

        if (sums[middle] > value)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}
