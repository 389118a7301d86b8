/* SPDX-License-Identifier: MIT */
/* Reads from donors, for faults and ahead of them. */
#include "fault.h"

#include "checksum.h"
#include "clock.h"
#include "fault_points.h"
#include "heat.h"
#include "log.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RETRY_NS 10000000ull
/* Faults that belong to no stream count this long; and so soon the next one is expected. */
#define RANDOM_GAP_NS    1000000u
#define RANDOM_LATELY_NS 1000000u

struct expected {
    uint32_t checksum;
    uint8_t flags;
};

static uint8_t *slot_buffers(size_t bytes)
{
    void *buffers = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    return buffers == MAP_FAILED ? NULL : buffers;
}

static size_t buffers_bytes(const struct fault_loop *loop)
{
    return (size_t)DEMAND_SLOTS * PAGE_BYTES + (size_t)READAHEAD_SLOTS * loop->readahead_pages * PAGE_BYTES;
}

/*
 * Beside faults at random a stream gets at most one part in (1 + patience) of the fault thread's time: what is read
 * ahead can wait, a reader at random cannot be read ahead for. Where processors are few, the stream's other costs
 * (the donor on the same machine, eviction, its reader) are taken from the reader at random, too. Measured with two:
 * with 4, 12 and 32 he keeps 0.37, 0.6 and 0.8 of his speed.
 */
static uint32_t choose_patience(void)
{
    long n_processors = sysconf(_SC_NPROCESSORS_ONLN);

    if (n_processors <= 2)
        return 32;
    return n_processors <= 4 ? 12 : 4;
}

int fetch_init(struct fault_loop *loop)
{
    uint8_t *buf = slot_buffers(buffers_bytes(loop));

    loop->patience = choose_patience();

    if (!buf)
        return -ENOMEM;
    loop->buffers = buf;
    for (uint32_t i = 0; i < DEMAND_SLOTS; i++, buf += PAGE_BYTES) {
        loop->demand[i] = (struct fetch){.demand = true, .buf = buf, .next = loop->free_demand};
        loop->free_demand = &loop->demand[i];
    }
    for (uint32_t i = 0; i < READAHEAD_SLOTS && loop->readahead_pages; i++) {
        loop->readahead[i] = (struct fetch){.buf = buf, .next = loop->free_readahead};
        loop->free_readahead = &loop->readahead[i];
        buf += (size_t)loop->readahead_pages * PAGE_BYTES;
    }
    return 0;
}

void fetch_destroy(struct fault_loop *loop)
{
    if (loop->buffers)
        munmap(loop->buffers, buffers_bytes(loop));
}

struct fetch *fetch_slot(struct fault_loop *loop, bool demand)
{
    struct fetch **list = demand ? &loop->free_demand : &loop->free_readahead;
    struct fetch *fetch = *list;

    if (!fetch)
        return NULL;
    *list = fetch->next;
    fetch->tried = fetch->denied = fetch->older = fetch->attempts = 0;
    fetch->twin = NULL;
    fetch->hedge_ns = 0;
    fetch->is_hedge = fetch->late = fetch->overtaken = fetch->of_stream = false;
    return fetch;
}

void fetch_slot_give(struct fault_loop *loop, struct fetch *fetch)
{
    struct fetch **list = fetch->demand ? &loop->free_demand : &loop->free_readahead;

    fetch->next = *list;
    *list = fetch;
}

void fetch_over(struct fault_loop *loop, struct fetch *fetch)
{
    if (fetch->demand)
        loop->n_demand--;
    else
        loop->n_readahead--;
    fetch_slot_give(loop, fetch);
}

/* At fetch->place. */
static int ask(struct fault_loop *loop, struct fetch *fetch)
{
    struct channel *channel = &fetch->place.donor->channels[fetch->demand ? CHANNEL_DEMAND : CHANNEL_READAHEAD];
    int rc = channel_read(channel, &fetch->request, fetch->buf, fetch->n_pages * PAGE_BYTES, fetch->place.offset);

    if (rc == 0)
        hedge_arm(loop, fetch);
    return rc;
}

int fetch_send(struct fault_loop *loop, struct fetch *fetch)
{
    int rc = hedge_choose(loop, fetch, &fetch->place) ? ask(loop, fetch) : -ENOENT;

    if (rc < 0 && fetch_pick_older(loop, fetch, &fetch->place))
        rc = ask(loop, fetch);
    return rc;
}

void fetch_retry_later(struct fault_loop *loop, struct fetch *fetch, uint64_t after_ns)
{
    fetch->retry_ns = clock_ns() + after_ns;
    fetch->next = loop->retry;
    loop->retry = fetch;
}

/* Half of the slots are for pages that can be had: those of donors that are away may be many, and wait long. */
static uint32_t demand_max(const struct fault_loop *loop, uint32_t page)
{
    if (loop->n_demand < DEMAND_MAX / 2 || pool_reaches(&loop->pager->pool, page, CHANNEL_DEMAND))
        return DEMAND_MAX;
    return DEMAND_MAX / 2;
}

bool fetch_demand(struct fault_loop *loop, uint32_t page, bool of_stream)
{
    struct page_table *table = &loop->pager->table;
    struct fetch *fetch = loop->n_demand < demand_max(loop, page) ? fetch_slot(loop, true) : NULL;

    if (!fetch)
        return false;
    loop->n_demand++;
    fetch->page = page;
    fetch->n_pages = 1;
    fetch->fault_ns = loop->now_ns;
    fetch->of_stream = of_stream;
    table->counts.present++;
    page_set_state(table, page, PAGE_FETCHING);
    table->pages[page].flags |= PAGE_F_WANTED;
    pager_unlock(loop->pager);
    FAULT_POINT(fetch_marked);
    if (fetch_send(loop, fetch) < 0)
        fetch_retry_later(loop, fetch, RETRY_NS);
    FAULT_POINT(fetch_sent);
    pager_lock(loop->pager);
    return true;
}

/* How many pages there are from this one to the end of its extent and of its region. */
static uint32_t pages_left(const struct pool *pool, const struct region *region, uint32_t page, bool backwards)
{
    uint32_t in_region = region_left(region, page, backwards);
    uint32_t in_extent = backwards ? page % pool->extent_pages + 1 : pool_left(pool, page);

    return in_region < in_extent ? in_region : in_extent;
}

static uint32_t absent_run(struct fault_loop *loop, uint32_t page, uint32_t n_max, bool backwards)
{
    struct page_table *table = &loop->pager->table;
    uint32_t n = 0;

    for (; n < n_max; n++) {
        uint32_t next = step_from(page, n, backwards);

        if (table->pages[next].state != PAGE_ABSENT || !page_on_donor(table, next))
            break;
    }
    return n;
}

uint32_t fetch_readahead(struct fault_loop *loop, uint32_t page, uint32_t n_pages, bool backwards)
{
    struct pager *pager = loop->pager;
    struct page_table *table = &pager->table;
    struct region *region = pager_region_of(pager, page);

    if (!region || n_pages == 0)
        return 0;
    uint32_t n_left = pages_left(&pager->pool, region, page, backwards);
    uint32_t n_max = n_pages < n_left ? n_pages : n_left;

    n_max = n_max < loop->readahead_pages ? n_max : loop->readahead_pages;
    /* The last frames are for faults. */
    int64_t spare = pager_free_pages(pager) - pager->watermarks.low / 2;

    if (spare <= 0)
        return 0;
    n_max = n_max < spare ? n_max : (uint32_t)spare;
    uint32_t n = absent_run(loop, page, n_max, backwards);

    if (n == 0) /* here already, or nothing to fetch: step over it */
        return page_on_donor(table, page) || table->pages[page].state != PAGE_ABSENT ? 1 : 0;
    struct fetch *fetch = loop->n_readahead < READAHEAD_MAX ? fetch_slot(loop, false) : NULL;

    if (!fetch)
        return 0;
    loop->n_readahead++;
    fetch->page = run_first(page, n, backwards);
    fetch->n_pages = n;
    fetch->fault_ns = loop->now_ns;
    for (uint32_t i = 0; i < n; i++)
        page_set_state(table, fetch->page + i, PAGE_FETCHING);
    table->counts.present += n;
    COUNT(pager->counters.readahead_issued, n);
    pager_unlock(pager);
    if (fetch_send(loop, fetch) < 0)
        fetch_retry_later(loop, fetch, RETRY_NS);
    pager_lock(pager);
    return n;
}

void fetch_give_up_page(struct fault_loop *loop, uint32_t page)
{
    struct page_table *table = &loop->pager->table;
    bool wanted = table->pages[page].flags & PAGE_F_WANTED;

    table->counts.present--;
    table->pages[page].flags &= (uint8_t) ~(PAGE_F_WANTED | PAGE_F_READAHEAD);
    page_set_state(table, page, PAGE_ABSENT);
    if (wanted)
        fault_make_wait(loop, page, RETRY_NS);
}

/*
 * UFFDIO_COPY for one page that a fault waits for. A page that is in the memfd although we know it to be absent was
 * made by a foreign mapping that touched the hole (trap 2): it holds zeroes, so it goes and the copy is repeated.
 */
static int copy_page(struct pager *pager, const struct region *region, uint32_t page, const uint8_t *bytes)
{
    uint32_t done;
    int rc = region_copy(region, page, bytes, 1, &done);

    if (rc != -EEXIST)
        return rc;
    COUNT(pager->counters.foreign_pages, 1);
    log_warning("page %u was made behind our back: something besides QEMU maps this memory", page);
    rc = region_punch(region, page, 1);
    return rc < 0 ? rc : region_copy(region, page, bytes, 1, &done);
}

static void install_wanted(struct fault_loop *loop, struct fetch *fetch, uint32_t i)
{
    struct pager *pager = loop->pager;
    struct region *region = pager_region_of(pager, fetch->page + i);
    uint32_t page = fetch->page + i;

    page_set_state(&pager->table, page, PAGE_MAPPING);
    pager_unlock(pager);
    FAULT_POINT(fetch_mapping);
    int rc = copy_page(pager, region, page, fetch->buf + (size_t)i * PAGE_BYTES);

    FAULT_POINT(fetch_copied);
    if (rc == -EEXIST)
        region_wake(region, page, 1);
    pager_lock(pager);
    if (rc == 0 || rc == -EEXIST) {
        /* A better copy is to get it, too, if there is one; else it may leave and be asked for there again. */
        if (fetch_asks_older(fetch) && pool_reaches(&pager->pool, page, CHANNEL_WRITEBACK))
            page_set_dirty(&pager->table, page, true);
        heat_came_in(&pager->table, page, !fetch->demand || fetch->of_stream);
        fault_installed(loop, page);
        return;
    }
    if (rc != -ESRCH) /* ESRCH: the process is gone */
        log_debug("page %u: UFFDIO_COPY: %s; trying again", page, strerror(-rc));
    fetch_give_up_page(loop, page);
}

/* Pages that nobody waits for so far: into the memfd, mapped nowhere. */
static void install_inactive(struct fault_loop *loop, struct fetch *fetch, uint32_t first, uint32_t n)
{
    struct pager *pager = loop->pager;
    struct region *region = pager_region_of(pager, fetch->page + first);

    for (uint32_t i = first; i < first + n; i++)
        page_set_state(&pager->table, fetch->page + i, PAGE_MAPPING);
    pager_unlock(pager);
    FAULT_POINT(readahead_mapping);
    int rc = region_write(region, fetch->page + first, fetch->buf + (size_t)first * PAGE_BYTES, n);

    FAULT_POINT(readahead_written);
    if (rc < 0) /* part of it may be there */
        region_punch(region, fetch->page + first, n);
    pager_lock(pager);
    for (uint32_t page = fetch->page + first; page < fetch->page + first + n; page++) {
        if (rc < 0) {
            fetch_give_up_page(loop, page);
            continue;
        }
        page_set_state(&pager->table, page, PAGE_INACTIVE);
        pager->table.pages[page].flags |= PAGE_F_READAHEAD;
        page_list_push(&pager->table, heat_inactive(&pager->table, page), page);
    }
}

static bool wanted(const struct pager *pager, uint32_t page)
{
    return pager->table.pages[page].flags & PAGE_F_WANTED;
}

static void install(struct fault_loop *loop, struct fetch *fetch)
{
    struct pager *pager = loop->pager;

    pager_lock(pager);
    for (uint32_t i = 0; i < fetch->n_pages; i++)
        if (wanted(pager, fetch->page + i)) {
            if (!fetch->demand)
                COUNT(pager->counters.readahead_used, 1);
            install_wanted(loop, fetch, i);
        }
    for (uint32_t i = 0; i < fetch->n_pages;) {
        uint32_t n = 0;

        while (i + n < fetch->n_pages && pager->table.pages[fetch->page + i + n].state == PAGE_FETCHING)
            n++;
        if (n > 0)
            install_inactive(loop, fetch, i, n);
        i += n ? n : 1;
    }
    pager_unlock(pager);
}

/* What each page of a fetch is to be. The evict thread may set or clear PAGE_F_IO meanwhile, but nothing else here.
 */
static void expect(struct fault_loop *loop, const struct fetch *fetch, struct expected *expected)
{
    pager_lock(loop->pager);
    for (uint32_t i = 0; i < fetch->n_pages; i++) {
        const struct page *p = &loop->pager->table.pages[fetch->page + i];

        expected[i] = (struct expected){.checksum = p->checksum, .flags = p->flags};
    }
    pager_unlock(loop->pager);
}

/* 0, or why the answer is no good. */
static int verify(struct fault_loop *loop, const struct fetch *fetch)
{
    const struct pool *pool = &loop->pager->pool;
    const struct place *place = &fetch->place;
    struct expected expected[READAHEAD_MAX_BYTES / PAGE_BYTES];

    if (copy_word(&pool->extents[fetch->page / pool->extent_pages], place->copy) != place->word)
        return ESTALE;
    expect(loop, fetch, expected);
    for (uint32_t i = 0; i < fetch->n_pages; i++) {
        if (!(expected[i].flags & PAGE_F_SUM) ||
            checksum_page(fetch->buf + (size_t)i * PAGE_BYTES) == expected[i].checksum)
            continue;
        /* Or a copy that is written behind, and this page is on its way there. */
        if (fetch_asks_older(fetch) || (expected[i].flags & PAGE_F_IO))
            return EAGAIN;
        donor_count_checksum_error(place->donor);
        log_error("donor %s: the page at offset %llu is not what was written there (checksum)", place->donor->uri,
                  (unsigned long long)place->offset + i * PAGE_BYTES);
        return EBADMSG;
    }
    return 0;
}

static void add_latency(struct pager *pager, const struct fetch *fetch)
{
    uint64_t now_ns = clock_ns();

    histogram_add(&pager->fetch_latency, now_ns - fetch->fault_ns);
    histogram_add(&pager->request_latency, fetch->request.started_ns - fetch->fault_ns);
    histogram_add(&pager->install_latency, now_ns - fetch->request.done_ns);
}

static void count_answer(struct fault_loop *loop, const struct fetch *fetch)
{
    struct donor *donor = fetch->request.channel->donor;
    uint64_t took_ns = fetch->request.done_ns - fetch->request.started_ns;

    COUNT(donor->counters.reads, 1);
    COUNT(donor->counters.read_bytes, fetch->request.bytes);
    if (!fetch->demand)
        return;
    histogram_add(&donor->latency, took_ns);
    pulse_sample(donor, took_ns, (uint64_t)loop->pager->options->slow_us * 1000);
}

static void finish_one(struct fault_loop *loop, struct fetch *fetch)
{
    hedge_answered(fetch);
    if (!fetch->request.error && !fetch->overtaken)
        fetch->request.error = verify(loop, fetch);
    if (!fetch->request.error)
        count_answer(loop, fetch);
    if (fetch->overtaken) {
        fetch_slot_give(loop, fetch);
        return;
    }
    if (fetch->request.error) {
        fetch_failed(loop, fetch);
        return;
    }
    FAULT_POINT(fetch_arrived);
    hedge_won(loop, fetch);
    fetch_report(loop, fetch);
    install(loop, fetch);
    if (fetch->demand)
        add_latency(loop->pager, fetch);
    fetch_over(loop, fetch);
}

void fetch_finish(struct fault_loop *loop, struct channel *channel)
{
    struct request *request;

    while (!fetch_held_back(loop, channel) && (request = channel_done(channel))) {
        uint64_t began_ns = clock_ns();

        finish_one(loop, (struct fetch *)request);
        fetch_took(loop, channel, began_ns);
    }
}

bool fetch_held_back(const struct fault_loop *loop, const struct channel *channel)
{
    if (channel->class != CHANNEL_READAHEAD || loop->readahead_after_ns == 0)
        return false;
    uint64_t now_ns = clock_ns();

    /* Only for the sake of somebody: who waits for a page that is being read ahead must not wait for nothing. */
    return now_ns < loop->readahead_after_ns && (loop->n_demand > 0 || now_ns - loop->random_ns < RANDOM_GAP_NS);
}

void fetch_took(struct fault_loop *loop, const struct channel *channel, uint64_t began_ns)
{
    if (channel->class != CHANNEL_READAHEAD)
        return;
    uint64_t now_ns = clock_ns();

    loop->readahead_after_ns = fetch_random_access(loop) ? now_ns + (now_ns - began_ns) * loop->patience : 0;
}

bool fetch_random_access(const struct fault_loop *loop)
{
    return clock_ns() - loop->random_ns < RANDOM_LATELY_NS;
}

uint64_t fetch_retry(struct fault_loop *loop)
{
    struct fetch *list = loop->retry;
    uint64_t now = clock_ns(), next = 0;

    loop->retry = NULL;
    while (list) {
        struct fetch *fetch = list;

        list = fetch->next;
        if (fetch->retry_ns > now) {
            fetch->next = loop->retry;
            loop->retry = fetch;
        } else if (fetch_send(loop, fetch) < 0) {
            fetch_unsent(loop, fetch);
        }
    }
    for (struct fetch *fetch = loop->retry; fetch; fetch = fetch->next)
        next = next && next < fetch->retry_ns ? next : fetch->retry_ns;
    return next;
}
