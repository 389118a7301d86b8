/* SPDX-License-Identifier: MIT */
/* Touches pages once each: in random order, by one or more threads, or in order. */
#include "bench.h"

#include <pthread.h>
#include <stdlib.h>

struct toucher {
    pthread_t thread;
    const struct memory *memory;
    const uint32_t *pages;
    uint64_t count;
    pthread_barrier_t *start;
    struct samples samples;
    uint64_t started_ns, first_ns, ended_ns;
};

static void *touch(void *arg)
{
    struct toucher *t = arg;

    pthread_barrier_wait(t->start);
    t->started_ns = clock_ns();
    for (uint64_t i = 0; i < t->count; i++) {
        uint64_t before_ns = clock_ns();

        (void)t->memory->words[(uint64_t)t->pages[i] * PAGE_WORDS + i % PAGE_WORDS];
        uint64_t after_ns = clock_ns();

        t->samples.ns[i] = after_ns - before_ns;
        t->first_ns = t->first_ns ? t->first_ns : after_ns;
    }
    t->samples.n = t->count;
    t->ended_ns = clock_ns();
    return NULL;
}

/* Runs the threads. Each has its own part of the permutation, so that no page is touched twice. */
static void touchers_run(struct toucher *touchers, uint64_t n)
{
    pthread_barrier_t start;

    pthread_barrier_init(&start, NULL, (unsigned)n);
    for (uint64_t i = 0; i < n; i++) {
        touchers[i].start = &start;
        if (pthread_create(&touchers[i].thread, NULL, touch, &touchers[i]) != 0)
            fail("cannot start a thread");
    }
    for (uint64_t i = 0; i < n; i++)
        pthread_join(touchers[i].thread, NULL);
    pthread_barrier_destroy(&start);
}

static json_t *touchers_result(struct toucher *touchers, uint64_t n)
{
    struct samples all;
    uint64_t started_ns = UINT64_MAX, ended_ns = 0;

    samples_create(&all, n * touchers[0].count);
    for (uint64_t i = 0; i < n; i++) {
        samples_append(&all, &touchers[i].samples);
        started_ns = touchers[i].started_ns < started_ns ? touchers[i].started_ns : started_ns;
        ended_ns = touchers[i].ended_ns > ended_ns ? touchers[i].ended_ns : ended_ns;
    }
    double seconds = (double)(ended_ns - started_ns) / NS_PER_S;
    json_t *result = json_pack("{s:I, s:f, s:f, s:I, s:o}", "count", (json_int_t)all.n, "seconds", seconds, "per_s",
                               (double)all.n / seconds, "first_clock_ns", (json_int_t)touchers[0].first_ns, "latency",
                               samples_to_json(&all));

    samples_free(&all);
    return result;
}

json_t *touch_random(struct arguments *args)
{
    struct toucher touchers[THREADS_MAX];
    struct memory memory;
    uint64_t count = argument_number(args, "count", 1000, UINT32_MAX);
    uint64_t n = argument_number(args, "threads", 1, THREADS_MAX);
    uint64_t seed = argument_number(args, "seed", 1, UINT64_MAX);

    memory_map(&memory, args);
    if (n == 0 || count / n == 0 || count > memory.n_pages)
        fail("threads must be from 1, and count from threads to the %llu pages", (unsigned long long)memory.n_pages);
    uint32_t *pages = pages_shuffled(memory.n_pages, count, seed);

    for (uint64_t i = 0; i < n; i++) {
        touchers[i] = (struct toucher){.memory = &memory, .pages = pages + i * (count / n), .count = count / n};
        samples_create(&touchers[i].samples, touchers[i].count);
    }
    touchers_run(touchers, n);
    json_t *result = touchers_result(touchers, n);

    for (uint64_t i = 0; i < n; i++)
        samples_free(&touchers[i].samples);
    free(pages);
    return result;
}

json_t *touch_sequential(struct arguments *args)
{
    struct memory memory;

    memory_map(&memory, args);
    uint64_t started_ns = clock_ns();

    for (uint64_t page = 0; page < memory.n_pages; page++)
        (void)memory.words[page * PAGE_WORDS];
    double seconds = (double)(clock_ns() - started_ns) / NS_PER_S;

    return json_pack("{s:I, s:f, s:f}", "count", (json_int_t)memory.n_pages, "seconds", seconds, "bytes_per_s",
                     (double)memory.bytes / seconds);
}
