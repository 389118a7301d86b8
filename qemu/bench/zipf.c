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

/* Returns the first rank whose running sum is above the random value. */
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

struct zipf_draw {
    uint64_t n;
    struct column {
        double own;     /* the part of the column that belongs to its own rank */
        uint64_t other; /* the rank to which the rest belongs */
    } columns[];
};

/* Makes columns of equal height: a rank with more weight than the mean fills up columns of ranks with less. */
struct zipf_draw *zipf_draw_new(uint64_t n, double exponent)
{
    struct zipf_draw *draw = malloc(sizeof(*draw) + n * sizeof(draw->columns[0]));
    double sum = 0;
    uint64_t large = 0;

    if (!draw)
        return NULL;
    draw->n = n;
    for (uint64_t rank = 0; rank < n; rank++)
        sum += draw->columns[rank].own = 1.0 / pow((double)(rank + 1), exponent);
    for (uint64_t rank = 0; rank < n; rank++) {
        draw->columns[rank].own *= (double)n / sum;
        draw->columns[rank].other = rank;
    }
    /*
     * Weights fall with the rank, so the last ranks have less than the mean. A rank that has given so much away that
     * it has less than the mean itself is filled up next.
     */
    for (uint64_t small = n - 1; small > large; small--) {
        uint64_t needy = small;

        while (draw->columns[needy].own < 1.0 && large < small) {
            draw->columns[needy].other = large;
            draw->columns[large].own -= 1.0 - draw->columns[needy].own;
            if (draw->columns[large].own >= 1.0)
                break;
            needy = large++;
        }
    }
    return draw;
}

uint64_t zipf_draw_rank(const struct zipf_draw *draw, uint64_t column, uint64_t height)
{
    const struct column *drawn = &draw->columns[column % draw->n];

    return (double)(height >> 11) / (double)(1ull << 53) < drawn->own ? column % draw->n : drawn->other;
}
