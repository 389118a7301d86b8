/* SPDX-License-Identifier: MIT */
/*
 * Work on more memory than the cache holds: Zipf reads and writes, with or without a sequential scanner beside them,
 * and writes to random pages.
 *
 * The Zipf order is drawn before the clock starts, as a sequence that is run through again and again. Ranks are dealt
 * to pages at random, so that hot pages are no neighbours. Each write stores a new number, so that no page stays the
 * same.
 */
#include "bench.h"
#include "zipf.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define SEQUENCE_STEPS (1u << 20)
#define CLOCK_EVERY    32u

struct step {
    uint32_t page;
    uint16_t word;
    bool is_write;
};

struct scanner {
    pthread_t thread;
    const struct memory *memory;
    uint64_t first_page;
    _Atomic bool stop;
    _Atomic uint64_t n_pages;
};

static struct step *sequence_make(uint64_t n_pages, double exponent, uint64_t write_percent, uint64_t seed)
{
    struct step *steps = malloc(SEQUENCE_STEPS * sizeof(*steps));
    double *sums = zipf_sums(n_pages, exponent);
    uint32_t *page_of_rank = pages_shuffled(n_pages, n_pages, 1);
    uint64_t state = random_start(seed);

    if (!steps || !sums)
        fail("out of memory");
    for (uint64_t i = 0; i < SEQUENCE_STEPS; i++) {
        steps[i].page = page_of_rank[zipf_rank(sums, n_pages, random_next(&state))];
        steps[i].word = (uint16_t)(random_next(&state) % PAGE_WORDS);
        steps[i].is_write = random_next(&state) % 100 < write_percent;
    }
    free(page_of_rank);
    free(sums);
    return steps;
}

/* Runs the sequence from *position for so many milliseconds. Returns how many steps it has done. */
static uint64_t sequence_run(const struct memory *memory, const struct step *steps, uint64_t *position, uint64_t ms)
{
    uint64_t stop_at_ns = clock_ns() + ms * NS_PER_MS, n = 0;

    do {
        for (unsigned i = 0; i < CLOCK_EVERY; i++) {
            const struct step *step = &steps[(*position)++ % SEQUENCE_STEPS];
            volatile uint64_t *word = &memory->words[(uint64_t)step->page * PAGE_WORDS + step->word];

            if (step->is_write)
                *word = *position;
            else
                (void)*word;
        }
        n += CLOCK_EVERY;
    } while (clock_ns() < stop_at_ns);
    return n;
}

static void *scan(void *arg)
{
    struct scanner *scanner = arg;
    uint64_t n = scanner->memory->n_pages - scanner->first_page;

    for (uint64_t i = 0; !atomic_load_explicit(&scanner->stop, memory_order_relaxed); i++) {
        (void)scanner->memory->words[(scanner->first_page + i % n) * PAGE_WORDS];
        atomic_store_explicit(&scanner->n_pages, i + 1, memory_order_relaxed);
    }
    return NULL;
}

/* Makes a file, by which the caller learns that the warming is over. */
static void mark_make(const char *path)
{
    int fd = *path ? open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600) : -1;

    if (*path && fd < 0)
        fail_errno("cannot make %s", path);
    if (fd >= 0)
        close(fd);
}

static json_t *mix_run(const struct memory *memory, uint64_t array_pages, const struct step *steps, uint64_t warm_ms,
                       uint64_t ms, bool with_scanner, const char *mark)
{
    struct scanner scanner = {.memory = memory, .first_page = array_pages};
    uint64_t position = 0;

    for (uint64_t page = 0; page < array_pages;
         page++) /* reads all pages once, as a program that loads its data does */
        (void)memory->words[page * PAGE_WORDS];
    if (with_scanner && pthread_create(&scanner.thread, NULL, scan, &scanner) != 0)
        fail("cannot start a thread");
    sequence_run(memory, steps, &position, warm_ms);
    mark_make(mark);
    uint64_t scanned = atomic_load(&scanner.n_pages), started_ns = clock_ns();
    uint64_t n = sequence_run(memory, steps, &position, ms);
    double seconds = (double)(clock_ns() - started_ns) / NS_PER_S;

    scanned = atomic_load(&scanner.n_pages) - scanned;
    atomic_store(&scanner.stop, true);
    if (with_scanner)
        pthread_join(scanner.thread, NULL);
    return json_pack("{s:I, s:I, s:f, s:f, s:f}", "count", (json_int_t)n, "count_with_warming", (json_int_t)position,
                     "seconds", seconds, "per_s", (double)n / seconds, "scanned_bytes_per_s",
                     (double)(scanned * PAGE_BYTES) / seconds);
}

json_t *mix_zipf(struct arguments *args)
{
    struct memory memory;
    double exponent = (double)argument_number(args, "zipf", 90, 1000) / 100.0;
    uint64_t array_bytes = argument_size(args, "array", 0);
    uint64_t write_percent = argument_number(args, "write_percent", 10, 100);
    uint64_t ms = argument_number(args, "ms", 1000, MS_MAX);
    uint64_t warm_ms = argument_number(args, "warm_ms", 500, MS_MAX);
    uint64_t seed = argument_number(args, "seed", 1, UINT64_MAX);
    bool with_scanner = argument_number(args, "scan", 0, 1) == 1;
    const char *mark = argument_text(args, "mark", "");

    memory_map(&memory, args);
    uint64_t array_pages = array_bytes ? array_bytes / PAGE_BYTES : memory.n_pages;

    if (array_pages == 0 || array_pages > memory.n_pages || (with_scanner && array_pages == memory.n_pages))
        fail("array must be a part of the memory, and a scanner needs memory behind it");
    struct step *steps = sequence_make(array_pages, exponent, write_percent, seed);
    json_t *result = mix_run(&memory, array_pages, steps, warm_ms, ms, with_scanner, mark);

    free(steps);
    return result;
}

struct writer {
    pthread_t thread;
    const struct memory *memory;
    uint64_t count, seed;
};

static void *write_random(void *arg)
{
    const struct writer *writer = arg;
    uint64_t state = random_start(writer->seed);

    for (uint64_t i = 0; i < writer->count; i++) {
        uint64_t value = random_next(&state);
        uint64_t page = value % writer->memory->n_pages;

        writer->memory->words[page * PAGE_WORDS + (value >> 40) % PAGE_WORDS] = value;
    }
    return NULL;
}

json_t *mix_write(struct arguments *args)
{
    struct writer writers[THREADS_MAX];
    struct memory memory;
    uint64_t count = argument_number(args, "count", 1000, UINT32_MAX);
    uint64_t n = argument_number(args, "threads", 1, THREADS_MAX);

    memory_map(&memory, args);
    if (n == 0 || count < n)
        fail("threads must be from 1, and count from threads");
    uint64_t started_ns = clock_ns();

    for (uint64_t i = 0; i < n; i++) {
        writers[i] = (struct writer){.memory = &memory, .count = count / n, .seed = i + 1};
        if (pthread_create(&writers[i].thread, NULL, write_random, &writers[i]) != 0)
            fail("cannot start a thread");
    }
    for (uint64_t i = 0; i < n; i++)
        pthread_join(writers[i].thread, NULL);
    double seconds = (double)(clock_ns() - started_ns) / NS_PER_S;

    return json_pack("{s:I, s:f, s:f}", "count", (json_int_t)(count - count % n), "seconds", seconds, "per_s",
                     (double)(count - count % n) / seconds);
}
