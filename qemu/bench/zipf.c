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

struct zipf_draw {
    uint64_t n;
    struct column {
        double own; /* part of the column that is its own rank's */
        uint64_t other;
    } columns[];
};

/* Columns of mean height: what one rank has too much fills up those that have too little. */
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
    /* Weights fall with the rank, so those that have too little are the last ones. One that gave too much away has
     * too little itself, and is the next to be filled up. */
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
