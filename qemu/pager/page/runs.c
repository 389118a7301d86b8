/* SPDX-License-Identifier: MIT */
#include "page/runs.h"

#include <stdlib.h>

static int compare_pages(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

void sort_pages(uint32_t *pages, uint32_t n)
{
    qsort(pages, n, sizeof(*pages), compare_pages);
}

uint32_t run_length(const uint32_t *pages, uint32_t n, uint32_t max)
{
    uint32_t run = 1;

    while (run < n && run < max && pages[run] == pages[run - 1] + 1)
        run++;
    return run;
}
