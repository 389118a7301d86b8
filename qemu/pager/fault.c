/* SPDX-License-Identifier: MIT */
/*
 * What is done about a fault. All of it on the fault thread (fault_loop.c), which alone maps pages (COPY, ZEROPAGE,
 * CONTINUE), so no two of those ever race.
 */
#include "fault.h"

#include "clock.h"
#include "fault_points.h"
#include "heat.h"
#include "log.h"
#include "uffd_compat.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MESSAGES_MAX     64
#define FAULT_AROUND_MAX 64u
/* Of a stream that was right so often: all that lies ready, so that its reader stops once for some windows. */
#define PROVEN_USES       4u
#define PROVEN_AROUND_MAX 256u
#define ZERO_AROUND_MAX   64u
#define RETRY_NS          1000000ull

void fault_make_wait(struct fault_loop *loop, uint32_t page, uint64_t retry_after_ns)
{
    struct page_table *table = &loop->pager->table;

    page_set_state(table, page, PAGE_WAITING);
    page_list_push(table, &table->waiting, page);
    COUNT(loop->pager->counters.deferred, 1);
    if (retry_after_ns)
        loop->retry_waiting_ns = clock_ns() + retry_after_ns;
}

void fault_installed(struct fault_loop *loop, uint32_t page)
{
    struct page_table *table = &loop->pager->table;

    table->pages[page].flags &= (uint8_t) ~(PAGE_F_WANTED | PAGE_F_READAHEAD);
    page_set_state(table, page, PAGE_RESIDENT);
    page_list_push(table, heat_mapped(table, page), page);
}

/* A run of never-written pages from the one that is asked for, the way the writer goes, to be filled with zeroes. */
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

/* Tries to map one page that somebody else already put into the memfd, or a zero page; without the lock. */
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

/* Maps zeroes at a page that was never written (ABSENT, not on a donor), and at some that follow it. */
static void fill_zero(struct fault_loop *loop, struct region *region, uint32_t page, uint32_t n)
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
            /* Mapped writable: what the guest writes from here on leaves no trace, so it counts as written. */
            page_set_dirty(&pager->table, page + i, true);
            heat_came_in(&pager->table, page + i, false);
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

/* Fresh memory, with some of what follows where the page is one of a stream. */
static void fill_fresh(struct fault_loop *loop, struct region *region, uint32_t page, struct stream *stream,
                       uint32_t window)
{
    bool backwards = stream && stream->stride == -1;
    uint32_t n = zero_run(loop, region, page, window + 1, backwards);
    uint32_t first = run_first(page, n, backwards);

    if (n > 1) {
        stream->last = backwards ? first : page + n - 1;
        stream->window = window;
    }
    fill_zero(loop, region, first, n);
    if (first != page && loop->pager->table.pages[page].state == PAGE_ABSENT)
        fill_zero(loop, region, page, 1); /* it stopped before this one */
}

/* ABSENT: brings it in, or puts it on the waiting list. */
static void bring_in(struct fault_loop *loop, struct region *region, uint32_t page)
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
        fault_make_wait(loop, page, RETRY_NS); /* it could not leave either */
        return;
    }
    uint32_t window = stream_fault(loop, page, &stream);

    if (!page_on_donor(&pager->table, page)) {
        fill_fresh(loop, region, page, stream, window);
    } else if (!fetch_demand(loop, page, stream != NULL)) {
        fault_make_wait(loop, page, RETRY_NS);
        return;
    } else {
        COUNT(pager->counters.missing_fetch, 1);
        if (!stream)
            stream_note_random(loop);
        else
            stream_advance(loop, stream, page);
    }
    if (pager_free_pages(pager) < pager->watermarks.low)
        pager_wake_evict(pager);
}

/* Read ahead, not used so far: in the memfd, mapped nowhere. */
static bool lies_ready(const struct pager *pager, uint32_t page)
{
    const struct page *p = &pager->table.pages[page];

    return p->state == PAGE_INACTIVE && (p->flags & PAGE_F_READAHEAD) && !(p->flags & PAGE_F_DIRTY);
}

static bool is_inactive(const struct pager *pager, uint32_t page)
{
    return pager->table.pages[page].state == PAGE_INACTIVE;
}

/* CONTINUE failed on a page: it goes where the error says it is. */
static void remap_failed(struct fault_loop *loop, const struct region *region, uint32_t page, int error)
{
    struct page_table *table = &loop->pager->table;

    if (error == -EFAULT) { /* not in the memfd: someone punched it without telling us */
        log_warning("page %u vanished: its memory was discarded behind our back", page);
        COUNT(loop->pager->counters.vanished_pages, 1);
        table->counts.present--;
        page_set_dirty(table, page, false);
        page_set_on_donor(table, page, false);
        table->pages[page].flags &= (uint8_t)~PAGE_F_READAHEAD;
        page_set_state(table, page, PAGE_ABSENT);
    } else { /* EEXIST: mapped already. Others: on the resident list a page may be unmapped, the next fault tries
                again */
        fault_installed(loop, page);
    }
    region_wake(region, page, 1);
}

static void back_to_inactive(struct page_table *table, uint32_t page)
{
    page_set_state(table, page, PAGE_INACTIVE);
    page_list_push(table, heat_inactive(table, page), page);
}

/*
 * Maps pages that are in the memfd: a second chance for what was zapped, the first use of what was read ahead.
 * They are in state MAPPING and on no list.
 */
static void map_run(struct fault_loop *loop, const struct region *region, uint32_t page, uint32_t n)
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

static void remap(struct fault_loop *loop, const struct region *region, uint32_t page)
{
    map_run(loop, region, page, 1);
    count_minor(loop);
}

/* Maps a run of inactive pages, each as if there had been a fault on it. */
static void use_run(struct fault_loop *loop, const struct region *region, uint32_t first, uint32_t n)
{
    struct page_table *table = &loop->pager->table;
    uint32_t n_unused = 0;

    for (uint32_t page = first; page < first + n; page++) {
        bool unused = table->pages[page].flags & PAGE_F_READAHEAD;

        page_list_remove(table, heat_inactive(table, page), page);
        page_set_state(table, page, PAGE_MAPPING);
        if (unused)
            heat_came_in(table, page, true);
        else
            heat_used(table, page);
        n_unused += unused;
    }
    COUNT(loop->pager->counters.readahead_used, n_unused);
    COUNT(loop->pager->counters.second_chance, n - n_unused);
    map_run(loop, region, first, n);
}

/*
 * From an inactive page on, n_max steps the way its reader goes: how many pages can be mapped for him. Of a reader in
 * no stream nothing is known but that somebody expected him to come by where pages were read ahead.
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
 * The fault is on an inactive page. Maps it, and what follows of n_max pages; for a reader in order, over what is
 * mapped already. Returns how far he may go now.
 */
static uint32_t map_along(struct fault_loop *loop, const struct region *region, uint32_t page, uint32_t n_max,
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
            use_run(loop, region, run_first(next, n, backwards), n);
        else if (pager->table.pages[next].state != PAGE_RESIDENT)
            break;
        n_mapped += n;
        at += n > 0 ? n : 1;
    } while (in_order && at < n_max);
    COUNT(pager->counters.fault_around, n_mapped - 1);
    count_minor(loop);
    if (backwards && pager->table.pages[page].state != PAGE_RESIDENT)
        region_wake(region, page, 1); /* it stopped before this one: the reader faults again */
    return step_from(page, at - 1, backwards);
}

/* The first use of what was read ahead: maps what lies ready, and has the stream ask for more. */
static void use_ready(struct fault_loop *loop, const struct region *region, uint32_t page)
{
    struct stream *stream = stream_hit(loop, page);
    uint32_t n_max = stream && stream->n_used >= PROVEN_USES ? PROVEN_AROUND_MAX : FAULT_AROUND_MAX;
    uint32_t last = map_along(loop, region, page, n_max, stream);

    if (stream)
        stream_advance(loop, stream, last);
}

/* A second chance; for a reader in order, who comes by again, for as many pages as he is read ahead for. */
static void use_zapped(struct fault_loop *loop, const struct region *region, uint32_t page)
{
    struct stream *stream;
    uint32_t window = stream_fault(loop, page, &stream);
    uint32_t last = map_along(loop, region, page, window + 1, window ? stream : NULL);

    if (window)
        stream_advance(loop, stream, last);
}

static void use_inactive(struct fault_loop *loop, const struct region *region, uint32_t page)
{
    if (lies_ready(loop->pager, page))
        use_ready(loop, region, page);
    else
        use_zapped(loop, region, page);
}

/* RESIDENT by our books, and yet a fault: mapped meanwhile, unmapped by a zap under way, or gone. */
static void fault_on_resident(struct fault_loop *loop, struct region *region, uint32_t page)
{
    struct pager *pager = loop->pager;

    page_list_remove(&pager->table, heat_mapped(&pager->table, page), page);
    /* Whoever unmapped it took the trace of a write along. */
    page_set_dirty(&pager->table, page, true);
    page_set_state(&pager->table, page, PAGE_MAPPING);
    remap(loop, region, page);
}

static void fault_on_absent(struct fault_loop *loop, struct region *region, uint32_t page, bool minor)
{
    struct pager *pager = loop->pager;

    if (minor && page_on_donor(&pager->table, page) && region_has_page(region, page)) {
        COUNT(pager->counters.foreign_pages, 1);
        log_warning("page %u was made behind our back: something besides QEMU maps this memory", page);
        region_punch(region, page, 1);
    }
    bring_in(loop, region, page);
}

/* The reader has caught up with what is read ahead for it: the stream goes on all the same. */
static void wait_for_stream(struct fault_loop *loop, uint32_t page)
{
    struct stream *stream = stream_hit(loop, page);

    if (stream)
        stream_advance(loop, stream, page);
}

static void serve_fault(struct fault_loop *loop, struct region *region, uint32_t page, bool minor)
{
    struct page_table *table = &loop->pager->table;
    struct page *p = &table->pages[page];

    switch ((enum page_state)p->state) {
    case PAGE_ABSENT:
        fault_on_absent(loop, region, page, minor);
        break;
    case PAGE_RESIDENT:
        fault_on_resident(loop, region, page);
        break;
    case PAGE_ZAPPING:
        /* Whether it was written before the zap is not known yet, so it counts as written. */
        page_set_dirty(table, page, true);
        page_set_state(table, page, PAGE_MAPPING);
        heat_used(table, page);
        remap(loop, region, page);
        break;
    case PAGE_INACTIVE:
        use_inactive(loop, region, page);
        break;
    case PAGE_WRITEBACK:
        /* The fault wins: it stays dirty, and the evictor drops the eviction when the donor has acked. */
        page_set_state(table, page, PAGE_MAPPING);
        heat_used(table, page);
        remap(loop, region, page);
        COUNT(loop->pager->counters.second_chance, 1);
        break;
    case PAGE_FETCHING:
        p->flags |= PAGE_F_WANTED;
        wait_for_stream(loop, page);
        break;
    case PAGE_DROPPING:
    case PAGE_DISCARDING:
        p->flags |= PAGE_F_WANTED;
        break;
    case PAGE_POISONED:
        if (!loop->pager->features.have[FEATURE_POISON])
            break; /* it waits for ever */
        region_poison(region, page);
        region_wake(region, page, 1);
        break;
    case PAGE_WAITING:
        break;
    case PAGE_MAPPING: /* only this thread sets it, and never over two events */
    case PAGE_STATES:
        assert(!"page state");
    }
}

static void serve_write_protect(struct fault_loop *loop, struct region *region, uint32_t page)
{
    struct pager *pager = loop->pager;

    enum page_state state = (enum page_state)pager->table.pages[page].state;

    /* In other states the event is stale: the writer will fault again. */
    if (state >= PAGE_RESIDENT && state <= PAGE_WRITEBACK)
        page_set_dirty(&pager->table, page, true);
    COUNT(pager->counters.wp, 1);
    pager_unlock(pager);
    if (region_unprotect(region, page) < 0) /* on success it wakes the writer */
        region_wake(region, page, 1);
    pager_lock(pager);
}

static void serve_message(struct fault_loop *loop, struct region *region, const struct uffd_msg *message)
{
    struct pager *pager = loop->pager;

    if (message->event != UFFD_EVENT_PAGEFAULT)
        return; /* no other event was asked for */
    uint64_t address = message->arg.pagefault.address;
    uint64_t flags = message->arg.pagefault.flags;

    if (address < region->base || address - region->base >= region->length) {
        log_error("fault at an address outside its region");
        return;
    }
    uint32_t page = region->first_page + (uint32_t)((address - region->base) / PAGE_BYTES);

    pager_lock(pager);
    if (flags & UFFD_PAGEFAULT_FLAG_WP)
        serve_write_protect(loop, region, page);
    else
        serve_fault(loop, region, page, flags & UFFD_PAGEFAULT_FLAG_MINOR);
    pager_unlock(pager);
}

bool fault_serve_region(struct fault_loop *loop, struct region *region)
{
    struct uffd_msg messages[MESSAGES_MAX];
    ssize_t got = read(region->uffd, messages, sizeof(messages));

    if (got <= 0)
        return false; /* EAGAIN: another event of the same batch resolved it */
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
            bring_in(loop, region, page);
    }
    pager_unlock(pager);
}
