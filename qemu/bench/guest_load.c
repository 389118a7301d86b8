/* SPDX-License-Identifier: MIT */
/*
 * What `ghostbox bench --vm` runs in the guests: work on more memory than is local, by plain loads and stores.
 *
 * Static, so that it runs in any guest; copied there over SSH. It knows nothing of GhostBox or of swap. Phases are
 * named in the order in which they run, on one mapping:
 *
 *   ghostbox-guest-load memory bytes=N [ms=N] [warm_ms=N] [sort_bytes=N] fill scan random zipf sort
 *   ghostbox-guest-load file path=FILE bytes=N [ms=N] write warm scan
 *
 * fill    writes every word of anonymous memory, in order, for the first time
 * write   the same through a shared mapping of the file, made as large as that; then fsync
 * warm    reads a word of each cache line in order, once to the end
 * scan    the same, from the start again at the end, for ms
 * random  reads a word of pages drawn evenly, for ms
 * zipf    the same, drawn by Zipf's law (0.9), hot pages spread; for warm_ms, then measured for ms
 * sort    quicksort in place of records of 128 bytes by their first word: all of them, or the first sort_bytes
 *
 * Each phase prints a line of JSON: what it did, how long it took, and what the guest's kernel moved meanwhile
 * (/proc/vmstat).
 */
#include "zipf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES     4096u
#define PAGE_WORDS     (PAGE_BYTES / sizeof(uint64_t))
#define LINE_WORDS     8u
#define NS_PER_S       1000000000ull
#define NS_PER_MS      1000000ull
#define MS_MAX         3600000ull
#define BYTES_MAX      (1ull << 42)
#define CLOCK_EVERY    32u
#define ZIPF_EXPONENT  0.9
#define ZIPF_STEPS     (1u << 17)
#define SPREAD_PRIME   2654435761ull
#define INSERTION_MAX  16u
#define SORTED_SAMPLES 1000u
#define PHASES_MAX     16u

/* 2^64 / the golden ratio: successive multiples are spread evenly (Knuth, 6.4). */
#define GOLDEN 0x9e3779b97f4a7c15ull

struct record {
    uint64_t key;
    uint64_t rest[15];
};

struct load {
    volatile uint64_t *words;
    uint64_t bytes, n_pages;
    uint64_t ms, warm_ms, sort_bytes;
    int fd; /* of the file; -1: anonymous memory */
};

struct done {
    uint64_t count; /* pages read, bytes written or sorted */
    double seconds;
};

/* The lines of /proc/vmstat that tell pages moved between tiers or to swap; a kernel may lack some. */
static const char *const vmstat_names[] = {
    "pgpromote_success", "pgdemote_kswapd", "pgdemote_direct",  "pgdemote_khugepaged", "pswpin",
    "pswpout",           "pgmajfault",      "numa_hint_faults", "pgmigrate_fail",      "pgpromote_candidate",
};
#define N_VMSTAT (sizeof(vmstat_names) / sizeof(vmstat_names[0]))

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
    va_list args;

    fputs("ghostbox-guest-load: ", stderr);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static double seconds_since(uint64_t started_ns)
{
    return (double)(clock_ns() - started_ns) / (double)NS_PER_S;
}

/* splitmix64 (Vigna): no library call, and any state is as good as another. */
static uint64_t random_next(uint64_t *state)
{
    uint64_t value = *state += GOLDEN;

    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

static void vmstat_read(uint64_t values[N_VMSTAT])
{
    FILE *file = fopen("/proc/vmstat", "re");
    char name[64];
    uint64_t value;

    memset(values, 0, N_VMSTAT * sizeof(*values));
    if (!file)
        return;
    while (fscanf(file, "%63s %" SCNu64, name, &value) == 2)
        for (size_t i = 0; i < N_VMSTAT; i++)
            if (strcmp(name, vmstat_names[i]) == 0)
                values[i] = value;
    fclose(file);
}

/* A random key in front of each record; the rest of it differs from page to page. */
static struct done fill(const struct load *load)
{
    uint64_t started_ns = clock_ns(), state = 1, n_words = load->bytes / sizeof(uint64_t);

    for (uint64_t i = 0; i < n_words; i += sizeof(struct record) / sizeof(uint64_t)) {
        load->words[i] = random_next(&state);
        for (uint64_t j = 1; j < sizeof(struct record) / sizeof(uint64_t); j++)
            load->words[i + j] = i + j;
    }
    if (load->fd >= 0 && fsync(load->fd) < 0)
        fail("fsync: %s", strerror(errno));
    return (struct done){load->bytes, seconds_since(started_ns)};
}

static void page_read(volatile uint64_t *page)
{
    for (unsigned word = 0; word < PAGE_WORDS; word += LINE_WORDS)
        (void)page[word];
}

static struct done warm(const struct load *load)
{
    uint64_t started_ns = clock_ns();

    for (uint64_t n = 0; n < load->n_pages; n++)
        page_read(&load->words[n * PAGE_WORDS]);
    return (struct done){load->bytes, seconds_since(started_ns)};
}

static struct done scan(const struct load *load)
{
    uint64_t started_ns = clock_ns(), stop_ns = started_ns + load->ms * NS_PER_MS, n = 0;

    do {
        for (unsigned i = 0; i < CLOCK_EVERY; i++, n++)
            page_read(&load->words[n % load->n_pages * PAGE_WORDS]);
    } while (clock_ns() < stop_ns);
    return (struct done){n * PAGE_BYTES, seconds_since(started_ns)};
}

static struct done read_random(const struct load *load)
{
    uint64_t started_ns = clock_ns(), stop_ns = started_ns + load->ms * NS_PER_MS, n = 0, state = started_ns;

    do {
        for (unsigned i = 0; i < CLOCK_EVERY; i++, n++) {
            uint64_t value = random_next(&state);

            (void)load->words[value % load->n_pages * PAGE_WORDS + (value >> 40) % PAGE_WORDS];
        }
    } while (clock_ns() < stop_ns);
    return (struct done){n, seconds_since(started_ns)};
}

/* A rank's page is far from its neighbour's. */
static uint32_t *zipf_sequence(uint64_t n_pages)
{
    double *sums = zipf_sums(n_pages, ZIPF_EXPONENT);
    uint32_t *pages = malloc(ZIPF_STEPS * sizeof(*pages));
    uint64_t state = clock_ns();

    if (!sums || !pages)
        fail("out of memory");
    for (uint64_t i = 0; i < ZIPF_STEPS; i++)
        pages[i] = (uint32_t)(zipf_rank(sums, n_pages, random_next(&state)) * SPREAD_PRIME % n_pages);
    free(sums);
    return pages;
}

static uint64_t zipf_run(const struct load *load, const uint32_t *pages, uint64_t *position, uint64_t ms)
{
    uint64_t stop_ns = clock_ns() + ms * NS_PER_MS, n = 0;

    do {
        for (unsigned i = 0; i < CLOCK_EVERY; i++, n++)
            (void)load->words[(uint64_t)pages[(*position)++ % ZIPF_STEPS] * PAGE_WORDS];
    } while (clock_ns() < stop_ns);
    return n;
}

static struct done read_zipf(const struct load *load)
{
    uint32_t *pages = zipf_sequence(load->n_pages);
    uint64_t position = 0;

    zipf_run(load, pages, &position, load->warm_ms);
    uint64_t started_ns = clock_ns(), n = zipf_run(load, pages, &position, load->ms);
    double seconds = seconds_since(started_ns);

    free(pages);
    return (struct done){n, seconds};
}

static void records_swap(struct record *a, struct record *b)
{
    struct record kept = *a;

    *a = *b;
    *b = kept;
}

static void insertion_sort(struct record *records, uint64_t n)
{
    for (uint64_t i = 1; i < n; i++) {
        struct record moving = records[i];
        uint64_t at = i;

        for (; at > 0 && records[at - 1].key > moving.key; at--)
            records[at] = records[at - 1];
        records[at] = moving;
    }
}

static uint64_t median(uint64_t a, uint64_t b, uint64_t c)
{
    if ((a <= b) == (b <= c))
        return b;
    return (b <= a) == (a <= c) ? a : c;
}

/* Hoare's partition: [0, result] is not above [result + 1, n). */
static uint64_t partition(struct record *records, uint64_t n)
{
    uint64_t pivot = median(records[0].key, records[(n - 1) / 2].key, records[n - 2].key);
    uint64_t low = 0, high = n - 1;

    for (;;) {
        while (records[low].key < pivot)
            low++;
        while (records[high].key > pivot)
            high--;
        if (low >= high)
            return high;
        records_swap(&records[low++], &records[high--]);
    }
}

/* Recurses into the smaller part, so that the stack stays small. */
static void quicksort(struct record *records, uint64_t n)
{
    while (n > INSERTION_MAX) {
        uint64_t left = partition(records, n) + 1;

        if (left <= n - left) {
            quicksort(records, left);
            records += left;
            n -= left;
        } else {
            quicksort(records + left, n - left);
            n = left;
        }
    }
    insertion_sort(records, n);
}

static struct done sort(const struct load *load)
{
    struct record *records = (struct record *)load->words;
    uint64_t n = load->sort_bytes / sizeof(*records), started_ns = clock_ns(), state = started_ns;

    quicksort(records, n);
    double seconds = seconds_since(started_ns);

    for (unsigned i = 0; i < SORTED_SAMPLES; i++) {
        uint64_t at = random_next(&state) % (n - 1);

        if (records[at].key > records[at + 1].key)
            fail("record %" PRIu64 " is not in order after the sort", at);
    }
    return (struct done){load->sort_bytes, seconds};
}

static const struct phase {
    const char *name;
    struct done (*run)(const struct load *load);
    bool of_memory, of_file;
} phases[] = {
    {"fill", fill, true, false}, {"write", fill, false, true},         {"warm", warm, false, true},
    {"scan", scan, true, true},  {"random", read_random, true, false}, {"zipf", read_zipf, true, false},
    {"sort", sort, true, false},
};

static const struct phase *phase_find(const char *name, bool file)
{
    for (size_t i = 0; i < sizeof(phases) / sizeof(phases[0]); i++)
        if (strcmp(phases[i].name, name) == 0 && (file ? phases[i].of_file : phases[i].of_memory))
            return &phases[i];
    fail("there is no phase '%s'", name);
}

static void phase_run(const struct phase *phase, const struct load *load)
{
    uint64_t before[N_VMSTAT], after[N_VMSTAT];

    vmstat_read(before);
    struct done done = phase->run(load);

    vmstat_read(after);
    printf("{\"phase\": \"%s\", \"count\": %" PRIu64 ", \"seconds\": %.6f, \"per_s\": %.3f, \"vmstat\": {",
           phase->name, done.count, done.seconds, (double)done.count / done.seconds);
    for (size_t i = 0; i < N_VMSTAT; i++)
        printf("%s\"%s\": %" PRIu64, i ? ", " : "", vmstat_names[i], after[i] - before[i]);
    printf("}}\n");
    fflush(stdout);
}

static uint64_t number(const char *word, const char *value, uint64_t min, uint64_t max)
{
    char *end;

    errno = 0;
    uint64_t found = strtoull(value, &end, 10);

    if (errno || end == value || *end || value[0] == '-' || found < min || found > max)
        fail("%s is not a number from %" PRIu64 " to %" PRIu64, word, min, max);
    return found;
}

static void map(struct load *load, const char *path)
{
    int flags = path ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;

    load->fd = -1;
    if (path && ((load->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600)) < 0 ||
                 ftruncate(load->fd, (off_t)load->bytes) < 0))
        fail("%s: %s", path, strerror(errno));
    load->words = mmap(NULL, load->bytes, PROT_READ | PROT_WRITE, flags, load->fd, 0);
    if (load->words == MAP_FAILED)
        fail("cannot map %" PRIu64 " bytes: %s", load->bytes, strerror(errno));
}

/* Takes KEY=VALUE; false if the word is none that is known. */
static bool option_take(struct load *load, const char **path, const char *word)
{
    static const struct {
        const char *key;
        size_t offset;
        uint64_t min, max;
    } numbers[] = {
        {"bytes=", offsetof(struct load, bytes), PAGE_BYTES, BYTES_MAX},
        {"sort_bytes=", offsetof(struct load, sort_bytes), PAGE_BYTES, BYTES_MAX},
        {"ms=", offsetof(struct load, ms), 1, MS_MAX},
        {"warm_ms=", offsetof(struct load, warm_ms), 0, MS_MAX},
    };

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        size_t length = strlen(numbers[i].key);

        if (strncmp(word, numbers[i].key, length) == 0) {
            uint64_t value = number(word, word + length, numbers[i].min, numbers[i].max);

            memcpy((char *)load + numbers[i].offset, &value, sizeof(value));
            return true;
        }
    }
    if (strncmp(word, "path=", 5) != 0)
        return false;
    *path = word + 5;
    return true;
}

int main(int argc, char **argv)
{
    struct load load = {.ms = 1000};
    const struct phase *chosen[PHASES_MAX];
    const char *path = NULL;
    size_t n_chosen = 0;
    bool file = argc > 1 && strcmp(argv[1], "file") == 0;

    if (argc < 2 || (!file && strcmp(argv[1], "memory") != 0))
        fail("usage: memory|file bytes=N [ms=N] [warm_ms=N] [sort_bytes=N] [path=FILE] PHASE…");
    for (int i = 2; i < argc; i++) {
        if (option_take(&load, &path, argv[i]))
            continue;
        if (n_chosen == PHASES_MAX)
            fail("more than %u phases", PHASES_MAX);
        chosen[n_chosen++] = phase_find(argv[i], file);
    }
    if (load.bytes == 0 || file != (path != NULL))
        fail("bytes=N is needed, and path=FILE for a file");
    load.bytes = load.bytes / PAGE_BYTES * PAGE_BYTES;
    load.n_pages = load.bytes / PAGE_BYTES;
    if (load.sort_bytes == 0 || load.sort_bytes > load.bytes)
        load.sort_bytes = load.bytes;
    map(&load, path);
    for (size_t i = 0; i < n_chosen; i++)
        phase_run(chosen[i], &load);
    return 0;
}
