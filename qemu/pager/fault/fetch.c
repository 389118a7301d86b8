/* SPDX-License-Identifier: MIT */
#include "fault/fetch.h"

#include "base/clock.h"
#include "base/fault_points.h"
#include "donor/channel.h"
#include "donor/latency.h"
#include "fault/failover.h"
#include "fault/fetch_slots.h"
#include "fault/hedge.h"
#include "fault/send.h"
#include "fault/settle.h"
#include "log.h"
#include "page/checksum.h"
#include "page/reclaim_policy.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* After a fault that belongs to no stream, the next one is expected within this time. */
#define RANDOM_GAP_NS 1000000u

struct expected {
    uint32_t checksum;
    uint8_t flags;
};

bool fetch_demand_unlocks(struct fault_loop *loop, uint32_t page, bool of_stream)
{
    struct page_table *table = &loop->pager->table;
    struct fetch *fetch = loop->n_demand < fetch_demand_max(loop, page) ? fetch_slot(loop, true) : NULL;

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
        fetch_retry_later(loop, fetch, FETCH_RETRY_NS);
    FAULT_POINT(fetch_sent);
    pager_lock(loop->pager);
    return true;
}

/* Returns how many pages there are from this one to the end of its extent or of its region, whichever is nearer. */
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

uint32_t fetch_readahead_unlocks(struct fault_loop *loop, uint32_t page, uint32_t n_pages, bool backwards)
{
    struct pager *pager = loop->pager;
    struct page_table *table = &pager->table;
    struct region *region = pager_region_of(pager, page);

    if (!region || n_pages == 0)
        return 0;
    uint32_t n_left = pages_left(&pager->pool, region, page, backwards);
    uint32_t n_max = n_pages < n_left ? n_pages : n_left;

    n_max = n_max < loop->readahead_pages ? n_max : loop->readahead_pages;
    /* The last free frames are kept for faults. */
    int64_t spare = pager_free_pages(pager) - pager->watermarks.low / 2;

    if (spare <= 0)
        return 0;
    n_max = n_max < spare ? n_max : (uint32_t)spare;
    uint32_t n = absent_run(loop, page, n_max, backwards);

    if (n == 0) /* the page is here or in motion, and the stream steps over it; or no donor has it */
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
        fetch_retry_later(loop, fetch, FETCH_RETRY_NS);
    pager_lock(pager);
    return n;
}

/*
 * Maps one page for which a fault waits by UFFDIO_COPY. If the memfd has the page although the table says that it is
 * absent, another mapping has made it by touching the hole (trap 2). Such a page holds zeroes, so it is punched and
 * the copy is repeated.
 */
static int copy_page(struct pager *pager, const struct region *region, uint32_t page, const uint8_t *bytes)
{
    uint32_t done;
    int rc = region_copy(region, page, bytes, 1, &done);

    if (rc != -EEXIST)
        return rc;
    COUNT(pager->counters.foreign_pages, 1);
    log_warning("page %u was made by another mapping: something besides QEMU maps this memory", page);
    rc = region_punch(region, page, 1);
    return rc < 0 ? rc : region_copy(region, page, bytes, 1, &done);
}

static void install_wanted_unlocks(struct fault_loop *loop, struct fetch *fetch, uint32_t i)
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
        /*
         * The page came from a copy that is not CURRENT. If there is a CURRENT one that can be written to, it has to
         * get these bytes, too; otherwise the page may leave, and be read from this copy again.
         */
        if (fetch_asks_older(fetch) && pool_reaches(&pager->pool, page, CHANNEL_WRITEBACK))
            page_set_dirty(&pager->table, page, true);
        reclaim_came_in(&pager->table, page, !fetch->demand || fetch->of_stream);
        fault_installed(loop, page);
        return;
    }
    if (rc != -ESRCH) /* the process has ended */
        log_debug("page %u: UFFDIO_COPY: %s; trying again", page, strerror(-rc));
    fetch_give_up_page(loop, page);
}

/* Writes pages for which no fault waits into the memfd; they are mapped nowhere. */
static void install_inactive_unlocks(struct fault_loop *loop, struct fetch *fetch, uint32_t first, uint32_t n)
{
    struct pager *pager = loop->pager;
    struct region *region = pager_region_of(pager, fetch->page + first);

    for (uint32_t i = first; i < first + n; i++)
        page_set_state(&pager->table, fetch->page + i, PAGE_MAPPING);
    pager_unlock(pager);
    FAULT_POINT(readahead_mapping);
    int rc = region_write(region, fetch->page + first, fetch->buf + (size_t)first * PAGE_BYTES, n);

    FAULT_POINT(readahead_written);
    if (rc < 0) /* some of the pages may be in the memfd */
        region_punch(region, fetch->page + first, n);
    pager_lock(pager);
    for (uint32_t page = fetch->page + first; page < fetch->page + first + n; page++) {
        if (rc < 0) {
            fetch_give_up_page(loop, page);
            continue;
        }
        page_set_state(&pager->table, page, PAGE_INACTIVE);
        pager->table.pages[page].flags |= PAGE_F_READAHEAD;
        page_list_push(&pager->table, reclaim_inactive(&pager->table, page), page);
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
            install_wanted_unlocks(loop, fetch, i);
        }
    for (uint32_t i = 0; i < fetch->n_pages;) {
        uint32_t n = 0;

        while (i + n < fetch->n_pages && pager->table.pages[fetch->page + i + n].state == PAGE_FETCHING)
            n++;
        if (n > 0)
            install_inactive_unlocks(loop, fetch, i, n);
        i += n ? n : 1;
    }
    pager_unlock(pager);
}

/*
 * Copies the checksum and flags of each page of a fetch. Of these the evict thread may only change PAGE_F_IO
 * meanwhile.
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

/*
 * Checks an answer. Returns 0; ESTALE if the copy has changed since it was asked; EAGAIN if it does not have the
 * bytes (yet), as copies that are not CURRENT, or are written behind, may not; or EBADMSG if the bytes are wrong.
 */
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
        /* With PAGE_F_IO the page may still be on its way to the copy that was asked, which is written behind. */
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
    latency_sample(donor, fetch->request.started_ns, took_ns, (uint64_t)loop->pager->options->slow_us * 1000);
}

static void finish_one(struct request *request)
{
    struct fetch *fetch = (struct fetch *)request;
    struct fault_loop *loop = request->owner;

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

        request->done(request);
        fetch_took(loop, channel, began_ns);
    }
}

bool fetch_held_back(const struct fault_loop *loop, const struct channel *channel)
{
    if (channel->class != CHANNEL_READAHEAD || loop->readahead_after_ns == 0)
        return false;
    uint64_t now_ns = clock_ns();

    /* Not for longer than faults at random need it, because a reader may be waiting for a page of this readahead. */
    return now_ns < loop->readahead_after_ns &&
           (loop->n_demand > 0 || now_ns - loop->streams.random_ns < RANDOM_GAP_NS);
}

void fetch_took(struct fault_loop *loop, const struct channel *channel, uint64_t began_ns)
{
    if (channel->class != CHANNEL_READAHEAD)
        return;
    uint64_t now_ns = clock_ns();

    loop->readahead_after_ns =
        stream_random_access(&loop->streams) ? now_ns + (now_ns - began_ns) * loop->patience : 0;
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

/*
 * Chooses how long readahead waits beside faults at random: it gets at most one part in (1 + patience) of the fault
 * thread's time, because what is read ahead can wait, and a reader at random cannot be read ahead for. If processors
 * are few, the stream's other costs (the donor on the same machine, eviction, its reader) slow the reader at random
 * down, too. Measured with two processors: with a patience of 4, 12 and 32 that reader keeps 0.37, 0.6 and 0.8 of its
 * speed.
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
    loop->patience = choose_patience();
    return fetch_slots_create(loop, finish_one);
}
