/* SPDX-License-Identifier: MIT */
/*
 * Measures what it costs to check a page: the pager's checksum of 4 KiB and, beside it, a copy of the same page. Both
 * run on pages that stay in the processor's cache, as pages do that have just come from the network.
 */
#include "bench.h"
#include "qemu/pager/page/checksum.h"

#include <stdlib.h>
#include <string.h>

#define WINDOW_PAGES 16u

static uint8_t *window_make(void)
{
    uint8_t *window = aligned_alloc(PAGE_BYTES, (size_t)WINDOW_PAGES * PAGE_BYTES);
    uint64_t state = random_start(1);

    if (!window)
        fail("out of memory");
    for (size_t i = 0; i < WINDOW_PAGES * PAGE_WORDS; i++) {
        uint64_t word = random_next(&state);

        memcpy(window + i * sizeof(word), &word, sizeof(word));
    }
    return window;
}

json_t *checksum_cost(struct arguments *args)
{
    uint64_t count = argument_number(args, "count", 100000, UINT32_MAX);

    arguments_check(args);
    if (count == 0)
        fail("count=0: at least one page is needed");
    uint8_t *window = window_make(), *copy = window_make();
    uint64_t began_ns = clock_ns();
    uint32_t sum = 0;

    for (uint64_t i = 0; i < count; i++)
        sum ^= checksum_page(window + i % WINDOW_PAGES * PAGE_BYTES);
    uint64_t summed_ns = clock_ns();

    for (uint64_t i = 0; i < count; i++) {
        memcpy(copy + i % WINDOW_PAGES * PAGE_BYTES, window + i % WINDOW_PAGES * PAGE_BYTES, PAGE_BYTES);
        __asm__ volatile("" ::"r"(copy) : "memory"); /* keeps the compiler from leaving the copy out */
    }
    uint64_t copied_ns = clock_ns();
    json_t *result =
        json_pack("{s:f, s:f, s:I}", "checksum_us", (double)(summed_ns - began_ns) / 1e3 / (double)count, "copy_us",
                  (double)(copied_ns - summed_ns) / 1e3 / (double)count, "sum", (json_int_t)sum);

    free(copy);
    free(window);
    return result;
}
