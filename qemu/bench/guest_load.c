/* SPDX-License-Identifier: MIT */
/*
 * ghostbox-guest-load: the program that `ghostbox bench --vm` runs in guests. It works on more memory than is local,
 * by plain loads and stores. It is static, so that it runs in any guest, is copied there over SSH, and knows nothing
 * of GhostBox or of swap. Phases are named in the order in which they run, on one mapping:
 *
 *   ghostbox-guest-load memory bytes=N [window_ms=N] [least_ms=N] [most_ms=N] [sort_bytes=N] PHASE…
 *   ghostbox-guest-load file path=FILE bytes=N [window_ms=N] [least_ms=N] [most_ms=N] PHASE…
 *
 * These phases run once, from end to end:
 *
 * fill       writes all words of anonymous memory, in order, for the first time
 * write      does the same through a shared mapping of the file, which it makes as large as that; then fsync
 * warm       reads a word of each cache line in order, once to the end
 * sort       sorts records of 128 bytes by their first word, by quicksort in place: all, or the first sort_bytes
 * check      reads all words and fails if one is not as fill wrote it (not after sort)
 *
 * These phases go on until their rate has settled:
 *
 * scan       reads a word of each cache line in order, and begins again at the end
 * random     reads a word of pages that are drawn evenly
 * zipf:E     reads pages that are drawn by Zipf's law with exponent E; pages of near ranks are far from each other
 * hot:N      reads pages that are drawn evenly from N bytes of pages, which are spread over all memory
 * moved:N    does as hot, with other pages: the last N bytes of the order of which hot has the first
 * written:N  does as hot, and every fifth access is a write, too
 * scanned:N  does as hot, while a second thread scans all memory, which does not count
 *
 * All draws are new: no sequence is drawn once and repeated, because a cache would need the pages of the sequence
 * only.
 *
 * A phase has settled when the rates of its last four windows are all within 5 % of their mean, after least_ms at the
 * soonest; after most_ms it is measured as it is. Its rate is the mean of these windows. The time until it settled
 * ends with the begin of the first window whose rate was within 5 % of that rate, or above it.
 *
 * The first line says that the program has begun. Each window and each phase prints a line of JSON: what was done,
 * how long that took, and which pages the guest's kernel moved meanwhile (guest_moved.h).
 */
#include "guest_moved.h"
#include "zipf.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
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
#define WRITE_EVERY    5u
#define AGREEING       4u
#define TOLERANCE      0.05
#define WINDOWS_MAX    4096u
#define SPREAD_PRIME   2654435761ull
#define INSERTION_MAX  16u
#define SORTED_SAMPLES 1000u
#define PHASES_MAX     16u

/* 2^64 divided by the golden ratio: successive multiples are spread evenly (Knuth, 6.4). */
#define GOLDEN 0x9e3779b97f4a7c15ull

struct record {
    uint64_t key;
    uint64_t rest[15];
};

struct load {
    volatile uint64_t *words;
    uint64_t bytes, n_pages;
    uint64_t window_ms, least_ms, most_ms, sort_bytes;
    int fd; /* the file; -1: the memory is anonymous */
};

struct done {
    uint64_t count; /* pages read, bytes written or sorted */
    double seconds;
};

/* The state of a phase between its steps. */
struct going {
    const struct load *load;
    double argument;
    uint64_t state;        /* the state of the random numbers, or the next page of a scan */
    uint64_t first, n_hot; /* the first rank of the hot pages, and how many there are (page_of()) */
    struct zipf_draw *zipf;
};

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

/* Returns a random number by splitmix64 (Vigna), without a library call; it may begin with any state. */
static uint64_t random_next(uint64_t *state)
{
    uint64_t value = *state += GOLDEN;

    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

/* Fills the memory with records: each begins with a random key; the rest differs from page to page. */
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

/* Checks that all words are as fill() wrote them. */
static struct done check(const struct load *load)
{
    uint64_t started_ns = clock_ns(), state = 1, n_words = load->bytes / sizeof(uint64_t);

    for (uint64_t i = 0; i < n_words; i += sizeof(struct record) / sizeof(uint64_t)) {
        bool same = load->words[i] == random_next(&state);

        for (uint64_t j = 1; j < sizeof(struct record) / sizeof(uint64_t); j++)
            same = same && load->words[i + j] == i + j;
        if (!same)
            fail("record %" PRIu64 " is not as it was written", i * sizeof(uint64_t) / sizeof(struct record));
    }
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

static void scan_step(struct going *going)
{
    const struct load *load = going->load;

    for (unsigned i = 0; i < CLOCK_EVERY; i++)
        page_read(&load->words[going->state++ % load->n_pages * PAGE_WORDS]);
}

/* Returns the page of a rank. There are as many ranks as pages, and pages of near ranks are far from each other. */
static uint64_t page_of(const struct load *load, uint64_t rank)
{
    return rank * SPREAD_PRIME % load->n_pages;
}

static volatile uint64_t *word_of(const struct load *load, uint64_t page, uint64_t random)
{
    return &load->words[page * PAGE_WORDS + random % PAGE_WORDS];
}

static void random_step(struct going *going)
{
    for (unsigned i = 0; i < CLOCK_EVERY; i++) {
        uint64_t value = random_next(&going->state);

        (void)*word_of(going->load, value % going->load->n_pages, value >> 40);
    }
}

static void zipf_step(struct going *going)
{
    for (unsigned i = 0; i < CLOCK_EVERY; i++) {
        uint64_t value = random_next(&going->state);
        uint64_t rank = zipf_draw_rank(going->zipf, value, random_next(&going->state));

        (void)*word_of(going->load, page_of(going->load, rank), value >> 40);
    }
}

static uint64_t hot_page(struct going *going, uint64_t value)
{
    return page_of(going->load, going->first + (value & UINT32_MAX) % going->n_hot);
}

static void hot_step(struct going *going)
{
    for (unsigned i = 0; i < CLOCK_EVERY; i++) {
        uint64_t value = random_next(&going->state);

        (void)*word_of(going->load, hot_page(going, value), value >> 40);
    }
}

/* Writes the word that was there, so that `check` can follow. */
static void written_step(struct going *going)
{
    for (unsigned i = 0; i < CLOCK_EVERY; i++) {
        uint64_t value = random_next(&going->state);
        volatile uint64_t *word = word_of(going->load, hot_page(going, value), value >> 40);
        uint64_t found = *word;

        if ((value >> 33) % WRITE_EVERY == 0)
            *word = found;
    }
}

static void zipf_begin(struct going *going)
{
    if (!(going->argument > 0 && going->argument <= 4))
        fail("Zipf's exponent is not a number up to 4");
    going->zipf = zipf_draw_new(going->load->n_pages, going->argument);
    if (!going->zipf)
        fail("out of memory");
}

static void hot_begin(struct going *going)
{
    going->n_hot = (uint64_t)going->argument / PAGE_BYTES;
    if (!(going->argument >= PAGE_BYTES && going->n_hot <= going->load->n_pages))
        fail("the hot set is no number of bytes from %u to %" PRIu64, PAGE_BYTES, going->load->bytes);
}

static void moved_begin(struct going *going)
{
    hot_begin(going);
    going->first = going->load->n_pages - going->n_hot;
}

static atomic_bool scanner_ends;

static void *scanner_run(void *argument)
{
    struct going going = {.load = argument};

    while (!atomic_load_explicit(&scanner_ends, memory_order_relaxed))
        scan_step(&going);
    return NULL;
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

/* Hoare's partition: no record of [0, result] is above one of [result + 1, n). */
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

/* Sorts records. It recurses into the smaller part, so that the stack stays small. */
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
    struct done (*run)(const struct load *load); /* runs the phase once; NULL: it goes on by step() */
    void (*begin)(struct going *going);          /* reads the argument; NULL: there is none */
    void (*step)(struct going *going);           /* works on CLOCK_EVERY pages */
    uint64_t unit;                               /* how much a page counts */
    bool of_memory, of_file, beside_scanner;
} phases[] = {
    {.name = "fill", .run = fill, .of_memory = true},
    {.name = "write", .run = fill, .of_file = true},
    {.name = "warm", .run = warm, .of_file = true},
    {.name = "sort", .run = sort, .of_memory = true},
    {.name = "check", .run = check, .of_memory = true},
    {.name = "scan", .step = scan_step, .unit = PAGE_BYTES, .of_memory = true, .of_file = true},
    {.name = "random", .step = random_step, .unit = 1, .of_memory = true},
    {.name = "zipf", .begin = zipf_begin, .step = zipf_step, .unit = 1, .of_memory = true},
    {.name = "hot", .begin = hot_begin, .step = hot_step, .unit = 1, .of_memory = true},
    {.name = "moved", .begin = moved_begin, .step = hot_step, .unit = 1, .of_memory = true},
    {.name = "written", .begin = hot_begin, .step = written_step, .unit = 1, .of_memory = true},
    {.name = "scanned", .begin = hot_begin, .step = hot_step, .unit = 1, .of_memory = true, .beside_scanner = true},
};

struct chosen {
    const struct phase *phase;
    const char *word;
    double argument;
};

static struct chosen phase_find(const char *word, bool file)
{
    const char *colon = strchr(word, ':');
    size_t length = colon ? (size_t)(colon - word) : strlen(word);

    for (size_t i = 0; i < sizeof(phases) / sizeof(phases[0]); i++) {
        const struct phase *phase = &phases[i];

        if (strlen(phase->name) != length || strncmp(phase->name, word, length) != 0 ||
            !(file ? phase->of_file : phase->of_memory))
            continue;
        if ((phase->begin != NULL) != (colon != NULL))
            fail("phase '%s' takes %s", phase->name, colon ? "no argument" : "an argument: NAME:NUMBER");
        return (struct chosen){phase, word, colon ? strtod(colon + 1, NULL) : 0};
    }
    fail("there is no phase '%s'", word);
}

struct windows {
    double rates[WINDOWS_MAX], began_s[WINDOWS_MAX];
    unsigned n;
};

/* Returns the mean rate of the last windows. *agree: all of them are near it. */
static double last_rate(const struct windows *windows, bool *agree)
{
    unsigned n = windows->n < AGREEING ? windows->n : AGREEING;
    const double *last = &windows->rates[windows->n - n];
    double mean = 0;

    for (unsigned i = 0; i < n; i++)
        mean += last[i] / n;
    *agree = n == AGREEING;
    for (unsigned i = 0; i < n; i++)
        *agree = *agree && fabs(last[i] - mean) <= TOLERANCE * mean;
    return mean;
}

static double settled_at_s(const struct windows *windows, double rate)
{
    for (unsigned i = 0; i < windows->n; i++)
        if (windows->rates[i] >= rate * (1 - TOLERANCE))
            return windows->began_s[i];
    return windows->began_s[windows->n - 1];
}

static void window_run(const struct chosen *chosen, struct going *going, struct windows *windows, uint64_t began_ns)
{
    struct moved before, after;
    uint64_t n = 0;

    moved_read(&before);
    uint64_t started_ns = clock_ns(), stop_ns = started_ns + going->load->window_ms * NS_PER_MS;

    do {
        chosen->phase->step(going);
        n += CLOCK_EVERY * chosen->phase->unit;
    } while (clock_ns() < stop_ns);
    double seconds = seconds_since(started_ns);

    moved_read(&after);
    windows->began_s[windows->n] = (double)(started_ns - began_ns) / (double)NS_PER_S;
    windows->rates[windows->n++] = (double)n / seconds;
    printf("{\"window\": \"%s\", \"count\": %" PRIu64 ", \"seconds\": %.6f", chosen->word, n, seconds);
    moved_print(&before, &after);
}

static void go_on(const struct chosen *chosen, const struct load *load)
{
    static struct windows windows;
    struct moved before, after;
    struct going going = {.load = load, .argument = chosen->argument};
    pthread_t scanner;
    bool agree = false;
    double rate = 0;

    windows.n = 0;
    if (chosen->phase->begin)
        chosen->phase->begin(&going);
    if (chosen->phase->step != scan_step)
        going.state = clock_ns();
    atomic_store(&scanner_ends, false);
    if (chosen->phase->beside_scanner && pthread_create(&scanner, NULL, scanner_run, (void *)load))
        fail("no second thread");
    moved_read(&before);
    uint64_t began_ns = clock_ns(), passed_ms = 0;

    while (windows.n < AGREEING || passed_ms < load->least_ms ||
           (!agree && passed_ms < load->most_ms && windows.n < WINDOWS_MAX)) {
        window_run(chosen, &going, &windows, began_ns);
        rate = last_rate(&windows, &agree);
        passed_ms = (clock_ns() - began_ns) / NS_PER_MS;
    }
    moved_read(&after);
    atomic_store(&scanner_ends, true);
    if (chosen->phase->beside_scanner)
        pthread_join(scanner, NULL);
    free(going.zipf);
    printf("{\"phase\": \"%s\", \"per_s\": %.3f, \"settled\": %s, \"settled_s\": %.3f, \"seconds\": %.6f, "
           "\"windows\": %u",
           chosen->word, rate, agree ? "true" : "false",
           agree ? settled_at_s(&windows, rate) : (double)passed_ms / 1000.0, (double)passed_ms / 1000.0, AGREEING);
    moved_print(&before, &after);
}

static void phase_run(const struct chosen *chosen, const struct load *load)
{
    struct moved before, after;

    if (!chosen->phase->run) {
        go_on(chosen, load);
        return;
    }
    moved_read(&before);
    struct done done = chosen->phase->run(load);

    moved_read(&after);
    printf("{\"phase\": \"%s\", \"count\": %" PRIu64 ", \"seconds\": %.6f, \"per_s\": %.3f", chosen->word, done.count,
           done.seconds, (double)done.count / done.seconds);
    moved_print(&before, &after);
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

/* Takes a word KEY=VALUE. Returns false if its key is unknown. */
static bool option_take(struct load *load, const char **path, const char *word)
{
    static const struct {
        const char *key;
        size_t offset;
        uint64_t min, max;
    } numbers[] = {
        {"bytes=", offsetof(struct load, bytes), PAGE_BYTES, BYTES_MAX},
        {"sort_bytes=", offsetof(struct load, sort_bytes), PAGE_BYTES, BYTES_MAX},
        {"window_ms=", offsetof(struct load, window_ms), 1, MS_MAX},
        {"least_ms=", offsetof(struct load, least_ms), 0, MS_MAX},
        {"most_ms=", offsetof(struct load, most_ms), 0, MS_MAX},
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
    struct load load = {.window_ms = 1000, .most_ms = 60000};
    struct chosen chosen[PHASES_MAX];
    const char *path = NULL;
    size_t n_chosen = 0;
    bool file = argc > 1 && strcmp(argv[1], "file") == 0;

    if (argc < 2 || (!file && strcmp(argv[1], "memory") != 0))
        fail("usage: memory|file bytes=N [window_ms=N] [least_ms=N] [most_ms=N] [sort_bytes=N] [path=FILE] PHASE…");
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
    printf("{\"begun\": true}\n");
    fflush(stdout);
    for (size_t i = 0; i < n_chosen; i++)
        phase_run(&chosen[i], &load);
    return 0;
}
