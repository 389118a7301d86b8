/* SPDX-License-Identifier: MIT */
/* Commands that touch pages and measure how long that takes. */
#include "client.h"

#include <stdlib.h>
#include <sys/mman.h>

static int seq_read(struct call *call)
{
    uint64_t first, n, sum = 0, started_ns;

    call_pages(call, &first, &n);
    madvise(call->memory->words, call->memory->bytes, MADV_NORMAL);
    started_ns = now_ns();
    for (uint64_t page = first; page < first + n; page++)
        sum ^= word_load(&call->memory->words[page * WORDS_A_PAGE]);
    double seconds = (double)(now_ns() - started_ns) / 1e9;

    call_field(call, "pages", n);
    call_field(call, "sum", sum);
    call_field_double(call, "seconds", seconds);
    call_field_double(call, "bytes_per_s", (double)(n * PAGE_BYTES) / seconds);
    return 0;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Returns the first `count` pages of a random permutation of `n` pages. */
static uint32_t *choose_pages(uint64_t first, uint64_t n, uint64_t count, uint64_t seed)
{
    uint32_t *pages = malloc(n * sizeof(*pages));

    if (!pages)
        abort();
    for (uint64_t i = 0; i < n; i++)
        pages[i] = (uint32_t)(first + i);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t j = i + mix(seed ^ (i << 20)) % (n - i);
        uint32_t page = pages[i];

        pages[i] = pages[j];
        pages[j] = page;
    }
    return pages;
}

static void put_latency(struct call *call, uint64_t *ns, uint64_t count)
{
    uint64_t sum = 0;

    qsort(ns, count, sizeof(*ns), compare);
    for (uint64_t i = 0; i < count; i++)
        sum += ns[i];
    call_field(call, "p50_ns", ns[count / 2]);
    call_field(call, "p99_ns", ns[count * 99 / 100]);
    call_field(call, "p999_ns", ns[count * 999 / 1000]);
    call_field(call, "mean_ns", sum / count);
}

static int random_read(struct call *call)
{
    uint64_t first, n, seed = call_number(call, "seed", 1), sum = 0;

    call_pages(call, &first, &n);
    uint64_t count = call_number(call, "count", n);

    if (count == 0 || count > n)
        return call_fail(call, "count must be from 1 to %llu", (unsigned long long)n);
    /* Otherwise the kernel would read a file's page together with its neighbours. */
    madvise(call->memory->words, call->memory->bytes, MADV_RANDOM);
    uint32_t *pages = choose_pages(first, n, count, seed);
    uint64_t *ns = malloc(count * sizeof(*ns));

    if (!ns)
        abort();
    uint64_t started_ns = now_ns();

    for (uint64_t i = 0; i < count; i++) {
        uint64_t before_ns = now_ns();

        sum ^= word_load(&call->memory->words[(uint64_t)pages[i] * WORDS_A_PAGE + i % WORDS_A_PAGE]);
        ns[i] = now_ns() - before_ns;
    }
    call_field(call, "count", count);
    call_field(call, "sum", sum);
    call_field_double(call, "seconds", (double)(now_ns() - started_ns) / 1e9);
    put_latency(call, ns, count);
    free(ns);
    free(pages);
    return 0;
}

const struct command scan_commands[] = {{"seq-read", seq_read}, {"random-read", random_read}, {NULL, NULL}};
