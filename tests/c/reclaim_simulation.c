/* SPDX-License-Identifier: MIT */
/*
 * What the reclaim policy is worth, by simulation: the pager's own rules (page/reclaim_policy.c) and the order in
 * which the evict thread takes pages (evict/evict_loop.c, retold here), with no memory behind the pages. A page that
 * is mapped costs an access nothing, an inactive one costs a MINOR fault, an absent one is fetched.
 *
 * The same options give the same figures on every machine. docs/paging-policy.md has what they led to.
 */
#include "common/option_table.h"
#include "page/reclaim_policy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define BATCH_PAGES 64

enum work { WORK_ZIPF, WORK_HOT, WORK_RANDOM };

struct options {
    unsigned pages, cache, inactive, exponent, hot, writes, scanner, steps, accesses_per_s;
    enum work work;
    bool fifo, moved, help;
};

struct counters {
    uint64_t accesses, fetched, minor, written, zapped;
};

struct simulation {
    const struct options *options;
    struct page_table table;
    uint64_t random;    /* state of the generator */
    double *cumulative; /* Zipf's law: the probability of this rank or one below it */
    uint32_t *rank;     /* which page has a rank: a permutation */
    bool *is_written;   /* since the page was mapped: what the mark in the page tables shows */
    uint64_t now_ns;
    uint32_t scanned; /* pages behind the set belong to the scanner: where it is */
    struct counters counters;
};

/* SplitMix64 (Steele et al., OOPSLA'14). */
static uint64_t draw(struct simulation *sim)
{
    uint64_t z = sim->random += 0x9e3779b97f4a7c15ull;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static uint32_t draw_below(struct simulation *sim, uint32_t n)
{
    return (uint32_t)(((draw(sim) >> 32) * n) >> 32);
}

static void shuffle(struct simulation *sim)
{
    for (uint32_t i = sim->options->pages; i-- > 1;) {
        uint32_t j = draw_below(sim, i + 1);
        uint32_t kept = sim->rank[i];

        sim->rank[i] = sim->rank[j];
        sim->rank[j] = kept;
    }
}

static void prepare_law(struct simulation *sim)
{
    double sum = 0.0;

    for (uint32_t i = 0; i < sim->options->pages; i++) {
        sum += pow(i + 1.0, -(double)sim->options->exponent / 100.0);
        sim->cumulative[i] = sum;
    }
    for (uint32_t i = 0; i < sim->options->pages; i++)
        sim->cumulative[i] /= sum;
}

static uint32_t draw_zipf(struct simulation *sim)
{
    double wanted = (double)(draw(sim) >> 11) / 9007199254740992.0; /* 2^53 */
    uint32_t low = 0, high = sim->options->pages - 1;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;

        if (sim->cumulative[middle] < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static uint32_t draw_page(struct simulation *sim)
{
    uint32_t n_hot = (uint32_t)((uint64_t)sim->options->pages * sim->options->hot / 100);

    switch (sim->options->work) {
    case WORK_ZIPF:
        return sim->rank[draw_zipf(sim)];
    case WORK_HOT:
        return sim->rank[draw_below(sim, n_hot)];
    case WORK_RANDOM:
        break;
    }
    return draw_below(sim, sim->options->pages);
}

static int64_t free_pages(const struct simulation *sim)
{
    return (int64_t)sim->options->cache - sim->table.counts.present;
}

/* evict/evict_loop.c: pick_from(). What is written back is written at once. */
static int64_t evict_from(struct simulation *sim, struct page_list *list, int64_t n, uint32_t *spared)
{
    struct page_table *table = &sim->table;
    int64_t taken = 0;

    for (uint32_t seen = list->count; seen > 0 && taken < n && taken < BATCH_PAGES; seen--) {
        uint32_t page = list->head;

        page_list_remove(table, list, page);
        if (reclaim_spares(table, page)) {
            page_list_push(table, list, page);
            ++*spared;
            continue;
        }
        sim->counters.written += (table->pages[page].flags & PAGE_F_DIRTY) != 0;
        page_set_dirty(table, page, false);
        reclaim_left(table, page);
        page_set_state(table, page, PAGE_ABSENT);
        table->counts.present--;
        taken++;
    }
    return taken;
}

/* evict/zap.c: pick() and make_inactive(). */
static void zap(struct simulation *sim, int64_t n)
{
    struct page_table *table = &sim->table;
    int64_t allowed = sim->options->cache / 40;

    for (; n > 0; n--) {
        struct page_list *list = reclaim_zap_list(table, allowed, sim->now_ns);

        if (!list)
            return;
        uint32_t page = list->head;

        page_list_remove(table, list, page);
        if (sim->is_written[page])
            page_set_dirty(table, page, true);
        sim->is_written[page] = false;
        page_set_state(table, page, PAGE_INACTIVE);
        page_list_push(table, reclaim_inactive(table, page), page);
        sim->counters.zapped++;
    }
}

/* evict/evict_loop.c: evict_round(), with the watermarks of pager_set_cache(). */
static void evict_round(struct simulation *sim, int64_t low, int64_t high)
{
    struct page_table *table = &sim->table;
    int64_t allowed = sim->options->cache / 40;
    int64_t inactive = sim->options->fifo ? 0 : (int64_t)sim->options->cache * sim->options->inactive / 100;
    int64_t missing = high - free_pages(sim);
    uint32_t spared = 0;

    if (missing <= 0)
        return;
    int64_t found = evict_from(sim, &table->spent, missing, &spared);

    if (found < missing && (free_pages(sim) < low / 2 || reclaim_stream_excess(table, allowed) == 0))
        found += evict_from(sim, &table->inactive, missing - found, &spared);
    int64_t excess = reclaim_stream_excess(table, allowed);
    int64_t wanted = inactive - (int64_t)table->inactive.count;

    if (found < missing && wanted < missing)
        wanted = missing;
    if (wanted < excess && wanted < missing)
        wanted = excess < missing ? excess : missing;
    zap(sim, wanted < BATCH_PAGES ? wanted : BATCH_PAGES);
}

/*
 * The evict thread runs beside the faults, and each answer to a zap wakes it again: it is done before the next fault,
 * and the free frames are those of the high watermark, as they are in a pager at work.
 */
static void make_room(struct simulation *sim)
{
    int64_t pages = sim->options->cache;
    int64_t low = pages / 128 > 64 ? pages / 128 : 64;

    while (free_pages(sim) <= 2 * low)
        evict_round(sim, low, 2 * low + 1);
}

static void use(struct simulation *sim, uint32_t page, bool of_stream, bool writes)
{
    struct page_table *table = &sim->table;
    struct page *p = &table->pages[page];

    sim->now_ns += 1000000000ull / sim->options->accesses_per_s;
    if (p->state == PAGE_ABSENT) {
        make_room(sim);
        reclaim_came_in(table, page, of_stream);
        table->counts.present++;
        sim->counters.fetched += !of_stream;
    } else if (p->state == PAGE_INACTIVE) {
        page_list_remove(table, reclaim_inactive(table, page), page);
        reclaim_used(table, page);
        sim->counters.minor += !of_stream;
    }
    if (p->state != PAGE_RESIDENT) {
        page_set_state(table, page, PAGE_RESIDENT);
        page_list_push(table, reclaim_mapped(table, page), page);
    }
    sim->is_written[page] |= writes;
}

static void step(struct simulation *sim)
{
    const struct options *options = sim->options;

    sim->counters.accesses++;
    use(sim, draw_page(sim), false, draw_below(sim, 100) < options->writes);
    if (draw_below(sim, 100) < options->scanner) {
        use(sim, options->pages + sim->scanned, true, false);
        sim->scanned = (sim->scanned + 1) % options->pages;
    }
}

static const struct option_spec specs[] = {
    {"help", NULL, OPTION_END, .offset = offsetof(struct options, help), .help = "print this and exit"},
    {"work", "zipf|hot|random", OPTION_CHOICE, .offset = offsetof(struct options, work), .standard = "zipf",
     .help = "how pages are chosen"},
    {"pages", "N", OPTION_NUMBER, .min = 1000, .max = 10000000, .offset = offsetof(struct options, pages),
     .standard = "100000", .help = "pages of the set"},
    {"cache", "N", OPTION_NUMBER, .min = 1000, .max = 10000000, .offset = offsetof(struct options, cache),
     .standard = "50000", .help = "pages that the cache holds"},
    {"exponent", "PERCENT", OPTION_NUMBER, .min = 1, .max = 300, .offset = offsetof(struct options, exponent),
     .standard = "90", .help = "Zipf's exponent, in hundredths"},
    {"hot", "PERCENT", OPTION_NUMBER, .min = 1, .max = 100, .offset = offsetof(struct options, hot), .standard = "30",
     .help = "what part of the set is hot"},
    {"writes", "PERCENT", OPTION_NUMBER, .min = 0, .max = 100, .offset = offsetof(struct options, writes),
     .standard = "0", .help = "how many of the accesses write"},
    {"scanner", "PERCENT", OPTION_NUMBER, .min = 0, .max = 100, .offset = offsetof(struct options, scanner),
     .standard = "0", .help = "pages that a scanner reads, in order, for each hundred accesses"},
    {"inactive", "PERCENT", OPTION_NUMBER, .min = 0, .max = 90, .offset = offsetof(struct options, inactive),
     .standard = "10", .help = "what part of the cache is kept inactive; the pager: 1 / RECLAIM_INACTIVE_SHARE"},
    {"steps", "N", OPTION_NUMBER, .min = 1, .max = 1000000000, .offset = offsetof(struct options, steps),
     .standard = "2000000", .help = "accesses before counting begins, and accesses that are counted"},
    {"accesses-per-s", "N", OPTION_NUMBER, .min = 1, .max = 1000000000,
     .offset = offsetof(struct options, accesses_per_s), .standard = "1000000",
     .help = "the clock: protected pages are reviewed by time"},
    {"moved", NULL, OPTION_FLAG, .offset = offsetof(struct options, moved),
     .help = "before counting begins other pages become the popular ones"},
    {"fifo", NULL, OPTION_FLAG, .offset = offsetof(struct options, fifo),
     .help = "pages leave in the order in which they came"},
};

static const struct option_table table = {
    .usage = "reclaim-simulation [OPTION...]: prints, as JSON, counts per access\n\n",
    .specs = specs,
    .n_specs = sizeof(specs) / sizeof(specs[0]),
    .not_a_size = "not a size",
    .not_a_number = "not a whole number",
    .needs_value = "option '%s' needs a value",
    .not_an_option = "unexpected argument '%s'",
};

static int run(struct simulation *sim)
{
    const struct options *options = sim->options;
    uint32_t n_pages = options->pages * 2; /* the set, and the scanner's pages */

    sim->cumulative = calloc(options->pages, sizeof(*sim->cumulative));
    sim->rank = calloc(options->pages, sizeof(*sim->rank));
    sim->is_written = calloc(n_pages, sizeof(*sim->is_written));
    if (!sim->cumulative || !sim->rank || !sim->is_written ||
        page_table_create(&sim->table, n_pages, false, NULL) < 0)
        return -1;
    sim->table.fifo = options->fifo;
    sim->table.epoch_pages = options->cache / RECLAIM_EPOCHS;
    for (uint32_t i = 0; i < options->pages; i++)
        sim->rank[i] = i;
    shuffle(sim);
    prepare_law(sim);
    for (uint32_t page = 0; page < options->pages; page++) /* the program fills its memory */
        use(sim, page, false, true);
    for (unsigned i = 0; i < options->steps; i++)
        step(sim);
    if (options->moved)
        shuffle(sim);
    sim->counters = (struct counters){0};
    for (unsigned i = 0; i < options->steps; i++)
        step(sim);
    return 0;
}

int main(int argc, char **argv)
{
    struct options options = {0};
    struct option_error error;
    struct simulation sim = {.options = &options, .random = 1};

    if (option_table_read(&table, &options, argc, argv, &error) < 0) {
        fprintf(stderr, "reclaim-simulation: %s\n", error.text);
        return 2;
    }
    if (options.help) {
        option_table_help(&table);
        return 0;
    }
    if (run(&sim) < 0) {
        fprintf(stderr, "reclaim-simulation: no memory\n");
        return 1;
    }
    const double n = (double)sim.counters.accesses;

    printf("{\"fetched\": %.6f, \"minor\": %.6f, \"written\": %.6f, \"zapped\": %.6f, \"inactive\": %.4f}\n",
           (double)sim.counters.fetched / n, (double)sim.counters.minor / n, (double)sim.counters.written / n,
           (double)sim.counters.zapped / n, (double)sim.table.inactive.count / options.cache);
    page_table_destroy(&sim.table);
    free(sim.cumulative);
    free(sim.rank);
    free(sim.is_written);
    return 0;
}
