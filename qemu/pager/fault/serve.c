/* SPDX-License-Identifier: MIT */
/*
 * Serves faults. All of it runs on the fault thread (fault_loop.c), which alone maps pages (COPY, ZEROPAGE,
 * CONTINUE), so no two of these ioctls ever race.
 */
#include "fault/serve.h"

#include "base/clock.h"
#include "base/fault_points.h"
#include "fault/fetch.h"
#include "fault/settle.h"
#include "log.h"
#include "memory/uffd_compat.h"
#include "page/reclaim_policy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MESSAGES_MAX     64
#define FAULT_AROUND_MAX 64u
/*
 * For a stream that was right PROVEN_USES times up to PROVEN_AROUND_MAX pages are mapped at once, so that its reader
 * faults once in several windows.
 */
#define PROVEN_USES       4u
#define PROVEN_AROUND_MAX 256u
#define ZERO_AROUND_MAX   64u
#define RETRY_NS          1000000ull

/*
 * Returns how many pages to fill with zeroes: a run of pages that were never written, from this one on in the
 * writer's direction. Free frames bound it.
 */
static uint32_t zero_run(struct fault_loop *loop, const struct region *region, uint32_t page, uint32_t n_max,
                         bool backwards)
{
    struct pager *pager = loop->pager;
    uint32_t left = region_left(region, page, backwards);
    int64_t spare = pager_free_pages(pager) - pager->watermarks.low;
    uint32_t n = 1;

    n_max = n_max < left ? n_max : left;
    n_max = n_max < ZERO_AROUND_MAX ? n_max : ZERO_AROUND_MAX;
    for (; n < n_max && n < spare; n++) {
        uint32_t next = step_from(page, n, backwards);

        if (pager->table.pages[next].state != PAGE_ABSENT || page_on_donor(&pager->table, next))
            break;
    }
    return n;
}

/* Maps a zero page, or the page that another mapping has already made in the memfd. Without the lock. */
static int zero_one(const struct region *region, uint32_t page)
{
    uint32_t done;
    int rc = region_zero(region, page, 1, &done);

    if (rc != -EEXIST)
        return rc;
    rc = region_continue(region, page, 1, false, &done);
    if (rc == -EEXIST) {
        region_wake(region, page, 1);
        rc = 0;
    }
    return rc;
}

/* Maps zeroes at n pages from this one on that were never written (ABSENT, and on no donor). */
static void fill_zero_unlocks(struct fault_loop *loop, struct region *region, uint32_t page, uint32_t n)
{
    struct pager *pager = loop->pager;
    uint32_t done;

    pager->table.counts.present += n;
    for (uint32_t i = 0; i < n; i++)
        page_set_state(&pager->table, page + i, PAGE_MAPPING);
    pager_unlock(pager);
    FAULT_POINT(zero_mapping);
    int rc = region_zero(region, page, n, &done);

    if (rc < 0 && done == 0) {
        rc = zero_one(region, page);
        done = rc == 0 ? 1 : 0;
    }
    FAULT_POINT(zero_mapped);
    pager_lock(pager);
    for (uint32_t i = 0; i < n; i++) {
        if (i < done) {
            /*
             * The page is mapped writable: no mark will show whether the guest writes to it, so it counts as dirty.
             */
            page_set_dirty(&pager->table, page + i, true);
            reclaim_came_in(&pager->table, page + i, false);
            fault_installed(loop, page + i);
            continue;
        }
        pager->table.counts.present--;
        page_set_state(&pager->table, page + i, PAGE_ABSENT);
        if (i == 0 && rc != -ESRCH)
            fault_make_wait(loop, page, RETRY_NS);
    }
    COUNT(pager->counters.missing_zero, 1);
    COUNT(pager->counters.zero_filled, done);
    histogram_add(&pager->zero_latency, clock_ns() - loop->now_ns);
}

/* Fills a page that was never written with zeroes; if it belongs to a stream, also some pages that follow it. */
static void fill_fresh_unlocks(struct fault_loop *loop, struct region *region, uint32_t page, struct stream *stream,
                               uint32_t window)
{
    bool backwards = stream && stream->stride == -1;
    uint32_t n = zero_run(loop, region, page, window + 1, backwards);
    uint32_t first = run_first(page, n, backwards);

    if (n > 1) {
        stream->last = backwards ? first : page + n - 1;
        stream->window = window;
    }
    fill_zero_unlocks(loop, region, first, n);
    if (first != page && loop->pager->table.pages[page].state == PAGE_ABSENT)
        fill_zero_unlocks(loop, region, page, 1); /* the run ended before the page of the fault */
}

static struct stream_cache cache_of(const struct pager *pager)
{
    return (struct stream_cache){pager->cache_pages, pager->n_wasted, pager->last_wasted};
}

static uint32_t find_stream(struct fault_loop *loop, uint32_t page, struct stream **stream)
{
    const struct stream_cache cache = cache_of(loop->pager);

    return stream_fault(&loop->streams, &cache, page, stream);
}

/* Reads ahead of the stream's reader, which is at this page now. */
static void read_ahead_unlocks(struct fault_loop *loop, struct stream *stream, uint32_t page)
{
    const struct stream_cache cache = cache_of(loop->pager);
    struct stream_walk walk = stream_advance(&loop->streams, &cache, stream, page);
    struct stream_wish wish;

    while (stream_wants(&loop->streams, &walk, &wish)) {
        uint32_t covered = fetch_readahead_unlocks(loop, wish.page, wish.n_pages, wish.backwards);

        if (covered == 0)
            break;
        stream_covered(&walk, covered);
    }
}

/* Brings an ABSENT page in, or puts it on the waiting list. */
static void bring_in_unlocks(struct fault_loop *loop, struct region *region, uint32_t page)
{
    struct pager *pager = loop->pager;
    struct stream *stream;

    if (pager_free_pages(pager) <= 0) {
        fault_make_wait(loop, page, 0);
        pager_wake_evict(pager);
        return;
    }
    if (pager->reserve_pages > 0 && !page_on_donor(&pager->table, page) &&
        !pool_reaches(&pager->pool, page, CHANNEL_WRITEBACK)) {
        fault_make_wait(loop, page, RETRY_NS); /* no donor could take the page, so it could not leave again */
        return;
    }
    uint32_t window = find_stream(loop, page, &stream);

    if (!page_on_donor(&pager->table, page)) {
        fill_fresh_unlocks(loop, region, page, stream, window);
    } else if (!fetch_demand_unlocks(loop, page, stream != NULL)) {
        fault_make_wait(loop, page, RETRY_NS);
        return;
    } else {
        COUNT(pager->counters.missing_fetch, 1);
        if (!stream)
            stream_note_random(&loop->streams, loop->now_ns);
        else
            read_ahead_unlocks(loop, stream, page);
    }
    if (pager_free_pages(pager) < pager->watermarks.low)
        pager_wake_evict(pager);
}

/* Whether the page was read ahead and is not used yet: it is in the memfd and mapped nowhere. */
static bool lies_ready(const struct pager *pager, uint32_t page)
{
    const struct page *p = &pager->table.pages[page];

    return p->state == PAGE_INACTIVE && (p->flags & PAGE_F_READAHEAD) && !(p->flags & PAGE_F_DIRTY);
}

static bool is_inactive(const struct pager *pager, uint32_t page)
{
    return pager->table.pages[page].state == PAGE_INACTIVE;
}

/* Settles a page on which UFFDIO_CONTINUE failed; the error says in which state the page is. */
static void remap_failed(struct fault_loop *loop, const struct region *region, uint32_t page, int error)
{
    struct page_table *table = &loop->pager->table;

    if (error == -EFAULT) { /* the page is not in the memfd: it was punched, and the pager was not told */
        log_warning("page %u vanished: its memory was discarded, and the pager was not told", page);
        COUNT(loop->pager->counters.vanished_pages, 1);
        table->counts.present--;
        page_set_dirty(table, page, false);
        page_set_on_donor(table, page, false);
        table->pages[page].flags &= (uint8_t)~PAGE_F_READAHEAD;
        page_set_state(table, page, PAGE_ABSENT);
    } else { /* the page is mapped already (EEXIST), or stays unmapped, and the next fault tries again */
        fault_installed(loop, page);
    }
    region_wake(region, page, 1);
}

static void back_to_inactive(struct page_table *table, uint32_t page)
{
    page_set_state(table, page, PAGE_INACTIVE);
    page_list_push(table, reclaim_inactive(table, page), page);
}

/*
 * Maps pages that are in the memfd: pages that were zapped (second chance), or that were read ahead (first use). The
 * pages are in state MAPPING and on no list.
 */
static void map_run_unlocks(struct fault_loop *loop, const struct region *region, uint32_t page, uint32_t n)
{
    struct pager *pager = loop->pager;
    bool write_protect = pager->features.have[FEATURE_CONTINUE_WP];
    uint32_t done;

    pager_unlock(pager);
    FAULT_POINT(minor_mapping);
    int rc = region_continue(region, page, n, write_protect, &done);

    FAULT_POINT(minor_mapped);
    pager_lock(pager);
    for (uint32_t i = 0; i < n; i++) {
        if (i <= done && !write_protect)
            page_set_dirty(&pager->table, page + i, true);
        if (i < done)
            fault_installed(loop, page + i);
        else if (i == done)
            remap_failed(loop, region, page + i, rc);
        else
            back_to_inactive(&pager->table, page + i);
    }
}

static void count_minor(struct fault_loop *loop)
{
    COUNT(loop->pager->counters.minor, 1);
    histogram_add(&loop->pager->minor_latency, clock_ns() - loop->now_ns);
}

static void remap_unlocks(struct fault_loop *loop, const struct region *region, uint32_t page)
{
    map_run_unlocks(loop, region, page, 1);
    count_minor(loop);
}

/* Maps a run of inactive pages; each counts as used, as if there had been a fault on it. */
static void use_run_unlocks(struct fault_loop *loop, const struct region *region, uint32_t first, uint32_t n)
{
    struct page_table *table = &loop->pager->table;
    uint32_t n_unused = 0;

    for (uint32_t page = first; page < first + n; page++) {
        bool unused = table->pages[page].flags & PAGE_F_READAHEAD;

        page_list_remove(table, reclaim_inactive(table, page), page);
        page_set_state(table, page, PAGE_MAPPING);
        if (unused)
            reclaim_came_in(table, page, true);
        else
            reclaim_used(table, page);
        n_unused += unused;
    }
    COUNT(loop->pager->counters.readahead_used, n_unused);
    COUNT(loop->pager->counters.second_chance, n - n_unused);
    map_run_unlocks(loop, region, first, n);
}

/*
 * Returns how many inactive pages, from this one on in the reader's direction, to map at once: n_max at most. For a
 * reader in no stream the pages after the first have to be read ahead.
 */
static uint32_t inactive_run(const struct pager *pager, uint32_t page, uint32_t n_max, bool in_order, bool backwards)
{
    uint32_t n = 0;

    while (n < n_max && is_inactive(pager, step_from(page, n, backwards)) &&
           (in_order || n == 0 || lies_ready(pager, page + n)))
        n++;
    return n;
}

/*
 * Serves a fault on an inactive page: maps this page and inactive pages that follow it, n_max at most. For a reader
 * in order, mapped pages in between are stepped over. Returns the last page that is mapped for the reader.
 */
static uint32_t map_along_unlocks(struct fault_loop *loop, const struct region *region, uint32_t page, uint32_t n_max,
                                  const struct stream *stream)
{
    struct pager *pager = loop->pager;
    bool in_order = stream && abs(stream->stride) == 1, backwards = stream && stream->stride == -1;
    uint32_t n_left = region_left(region, page, backwards);
    uint32_t at = 0, n_mapped = 0;

    n_max = n_max < n_left ? n_max : n_left;
    do {
        uint32_t next = step_from(page, at, backwards);
        uint32_t n = inactive_run(pager, next, n_max - at, in_order, backwards);

        if (n > 0)
            use_run_unlocks(loop, region, run_first(next, n, backwards), n);
        else if (pager->table.pages[next].state != PAGE_RESIDENT)
            break;
        n_mapped += n;
        at += n > 0 ? n : 1;
    } while (in_order && at < n_max);
    COUNT(pager->counters.fault_around, n_mapped - 1);
    count_minor(loop);
    if (backwards && pager->table.pages[page].state != PAGE_RESIDENT)
        region_wake(region, page, 1); /* the run ended before the page of the fault: the reader faults again */
    return step_from(page, at - 1, backwards);
}

/*
 * Serves the first use of a page that was read ahead: maps pages that lie ready, and has the stream read ahead more.
 */
static void use_ready_unlocks(struct fault_loop *loop, const struct region *region, uint32_t page)
{
    struct stream *stream = stream_hit(&loop->streams, page);
    uint32_t n_max = stream && stream->n_used >= PROVEN_USES ? PROVEN_AROUND_MAX : FAULT_AROUND_MAX;
    uint32_t last = map_along_unlocks(loop, region, page, n_max, stream);

    if (stream)
        read_ahead_unlocks(loop, stream, last);
}

/*
 * Serves a fault on a page that was zapped. For a reader in order as many pages are mapped as would be read ahead for
 * it.
 */
static void use_zapped_unlocks(struct fault_loop *loop, const struct region *region, uint32_t page)
{
    struct stream *stream;
    uint32_t window = find_stream(loop, page, &stream);
    uint32_t last = map_along_unlocks(loop, region, page, window + 1, window ? stream : NULL);

    if (window)
        read_ahead_unlocks(loop, stream, last);
}

static void use_inactive_unlocks(struct fault_loop *loop, const struct region *region, uint32_t page)
{
    if (lies_ready(loop->pager, page))
        use_ready_unlocks(loop, region, page);
    else
        use_zapped_unlocks(loop, region, page);
}

/*
 * Serves a fault on a page that is RESIDENT in the table: the page was mapped meanwhile, something unmapped it, or it
 * was punched and the pager was not told.
 */
static void fault_on_resident_unlocks(struct fault_loop *loop, struct region *region, uint32_t page)
{
    struct pager *pager = loop->pager;

    page_list_remove(&pager->table, reclaim_mapped(&pager->table, page), page);
    /* If the page was unmapped, the mark that would show whether it was written is gone, too. */
    page_set_dirty(&pager->table, page, true);
    page_set_state(&pager->table, page, PAGE_MAPPING);
    remap_unlocks(loop, region, page);
}

static void fault_on_absent_unlocks(struct fault_loop *loop, struct region *region, uint32_t page, bool minor)
{
    struct pager *pager = loop->pager;

    if (minor && page_on_donor(&pager->table, page) && region_has_page(region, page)) {
        COUNT(pager->counters.foreign_pages, 1);
        log_warning("page %u was made by another mapping: something besides QEMU maps this memory", page);
        region_punch(region, page, 1);
    }
    bring_in_unlocks(loop, region, page);
}

/* Has the stream read ahead further, although its reader has caught up with a page that is still being fetched. */
static void wait_for_stream_unlocks(struct fault_loop *loop, uint32_t page)
{
    struct stream *stream = stream_hit(&loop->streams, page);

    if (stream)
        read_ahead_unlocks(loop, stream, page);
}

static void serve_fault_unlocks(struct fault_loop *loop, struct region *region, uint32_t page, bool minor)
{
    struct page_table *table = &loop->pager->table;
    struct page *p = &table->pages[page];

    switch ((enum page_state)p->state) {
    case PAGE_ABSENT:
        fault_on_absent_unlocks(loop, region, page, minor);
        break;
    case PAGE_RESIDENT:
        fault_on_resident_unlocks(loop, region, page);
        break;
    case PAGE_ZAPPING:
        /* It is not known yet whether the page was written before the zap, so it counts as dirty. */
        page_set_dirty(table, page, true);
        page_set_state(table, page, PAGE_MAPPING);
        reclaim_used(table, page);
        remap_unlocks(loop, region, page);
        break;
    case PAGE_INACTIVE:
        use_inactive_unlocks(loop, region, page);
        break;
    case PAGE_WRITEBACK:
        /* The fault wins: the page stays dirty, and the evict thread keeps it when the donor has acked. */
        page_set_state(table, page, PAGE_MAPPING);
        reclaim_used(table, page);
        remap_unlocks(loop, region, page);
        COUNT(loop->pager->counters.second_chance, 1);
        break;
    case PAGE_FETCHING:
        p->flags |= PAGE_F_WANTED;
        wait_for_stream_unlocks(loop, page);
        break;
    case PAGE_DROPPING:
    case PAGE_DISCARDING:
        p->flags |= PAGE_F_WANTED;
        break;
    case PAGE_POISONED:
        if (!loop->pager->features.have[FEATURE_POISON])
            break; /* the reader waits for ever */
        region_poison(region, page);
        region_wake(region, page, 1);
        break;
    case PAGE_WAITING:
        break;
    case PAGE_MAPPING: /* only this thread sets it, and only while it serves one event */
    case PAGE_STATES:
        assert(!"page state");
    }
}

static void serve_write_protect_unlocks(struct fault_loop *loop, struct region *region, uint32_t page)
{
    struct pager *pager = loop->pager;

    enum page_state state = (enum page_state)pager->table.pages[page].state;

    /* In other states the event is stale: the writer will fault again. */
    if (state >= PAGE_RESIDENT && state <= PAGE_WRITEBACK)
        page_set_dirty(&pager->table, page, true);
    COUNT(pager->counters.wp, 1);
    pager_unlock(pager);
    if (region_unprotect(region, page) < 0) /* on success the ioctl wakes the writer */
        region_wake(region, page, 1);
    pager_lock(pager);
}

static void serve_message(struct fault_loop *loop, struct region *region, const struct uffd_msg *message)
{
    struct pager *pager = loop->pager;

    if (message->event != UFFD_EVENT_PAGEFAULT)
        return; /* the shim asks for no other events */
    uint64_t address = message->arg.pagefault.address;
    uint64_t flags = message->arg.pagefault.flags;

    if (address < region->base || address - region->base >= region->length) {
        log_error("fault at an address outside its region");
        return;
    }
    uint32_t page = region->first_page + (uint32_t)((address - region->base) / PAGE_BYTES);

    pager_lock(pager);
    if (flags & UFFD_PAGEFAULT_FLAG_WP)
        serve_write_protect_unlocks(loop, region, page);
    else
        serve_fault_unlocks(loop, region, page, flags & UFFD_PAGEFAULT_FLAG_MINOR);
    pager_unlock(pager);
}

bool fault_serve_region(struct fault_loop *loop, struct region *region)
{
    struct uffd_msg messages[MESSAGES_MAX];
    ssize_t got = read(region->uffd, messages, sizeof(messages));

    if (got <= 0)
        return false; /* EAGAIN: serving another event of the same batch has resolved the fault */
    loop->now_ns = clock_ns();
    for (ssize_t i = 0; i < got / (ssize_t)sizeof(*messages); i++)
        serve_message(loop, region, &messages[i]);
    return true;
}

void fault_serve_waiting(struct fault_loop *loop)
{
    struct pager *pager = loop->pager;
    struct page_table *table = &pager->table;

    loop->retry_waiting_ns = 0;
    loop->now_ns = clock_ns();
    pager_lock(pager);
    for (uint32_t left = table->waiting.count; left > 0 && pager_free_pages(pager) > 0; left--) {
        uint32_t page = table->waiting.head;

        if (page == PAGE_NONE)
            break;
        page_list_remove(table, &table->waiting, page);
        page_set_state(table, page, PAGE_ABSENT);
        struct region *region = pager_region_of(pager, page);

        if (region && !region->leaving)
            bring_in_unlocks(loop, region, page);
    }
    pager_unlock(pager);
}
