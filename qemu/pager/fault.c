/* SPDX-License-Identifier: MIT */
/*
 * The fault thread: one event loop over every userfaultfd, every demand and readahead connection. It alone maps pages
 * (COPY, ZEROPAGE, CONTINUE), so no two of those ever race, and a fault crosses no other thread on its way.
 *
 * Before it sleeps it spins for --poll-us, because a wake-up costs more than a fetch.
 */
#include "fault.h"

#include "clock.h"
#include "heat.h"
#include "log.h"
#include "uffd_compat.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS_MAX       64
#define MESSAGES_MAX     64
#define FAULT_AROUND_MAX 64u
#define ZERO_AROUND_MAX  64u
#define RETRY_NS         1000000ull
/* So many userfaultfds and donors are polled one by one; more are left to epoll. */
#define FEW_SOURCES     4u
#define TURNS_PER_EPOLL 8u

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

/* A run of never-written pages that may be filled with zeroes beside the one that is asked for. */
static uint32_t zero_run(struct fault_loop *loop, const struct region *region, uint32_t page, uint32_t n_max)
{
    struct pager *pager = loop->pager;
    uint32_t left = region->n_pages - (page - region->first_page);
    int64_t spare = pager_free_pages(pager) - pager->watermarks.low;
    uint32_t n = 1;

    n_max = n_max < left ? n_max : left;
    n_max = n_max < ZERO_AROUND_MAX ? n_max : ZERO_AROUND_MAX;
    while (n < n_max && n < spare && pager->table.pages[page + n].state == PAGE_ABSENT &&
           !page_on_donor(&pager->table, page + n))
        n++;
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
    int rc = region_zero(region, page, n, &done);

    if (rc < 0 && done == 0) {
        rc = zero_one(region, page);
        done = rc == 0 ? 1 : 0;
    }
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
    uint32_t window = stream_fault(loop, page, &stream);

    if (!page_on_donor(&pager->table, page)) {
        uint32_t n = zero_run(loop, region, page, window + 1);

        fill_zero(loop, region, page, n);
        if (stream && n > 1)
            stream->last = page + n - 1;
    } else if (!fetch_demand(loop, page, stream != NULL)) {
        fault_make_wait(loop, page, RETRY_NS);
        return;
    } else {
        COUNT(pager->counters.missing_fetch, 1);
        if (!stream)
            loop->random_ns = loop->now_ns;
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

/* How many pages from this one on lie ready, the way the reader goes; *first is the lowest of them. */
static uint32_t ready_run(const struct pager *pager, const struct region *region, uint32_t page, bool backwards,
                          uint32_t *first)
{
    uint32_t left = backwards ? page - region->first_page + 1 : region->n_pages - (page - region->first_page);
    uint32_t n = 0;

    while (n < left && n < FAULT_AROUND_MAX && lies_ready(pager, backwards ? page - n : page + n))
        n++;
    *first = backwards && n ? page - (n - 1) : page;
    return n;
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
static void remap(struct fault_loop *loop, const struct region *region, uint32_t page, uint32_t n)
{
    struct pager *pager = loop->pager;
    bool write_protect = pager->features.have[FEATURE_CONTINUE_WP];
    uint32_t done;

    pager_unlock(pager);
    int rc = region_continue(region, page, n, write_protect, &done);

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
    COUNT(pager->counters.minor, 1);
    histogram_add(&pager->minor_latency, clock_ns() - loop->now_ns);
}

/* The first use of what was read ahead: maps what lies ready, and has the stream ask for more. */
static void use_ready(struct fault_loop *loop, const struct region *region, uint32_t page)
{
    struct pager *pager = loop->pager;
    struct stream *stream = stream_hit(loop, page);
    bool backwards = stream && stream->stride == -1;
    uint32_t first, n = ready_run(pager, region, page, backwards, &first);

    for (uint32_t i = first; i < first + n; i++) {
        page_list_remove(&pager->table, heat_inactive(&pager->table, i), i);
        page_set_state(&pager->table, i, PAGE_MAPPING);
        heat_came_in(&pager->table, i, true);
    }
    COUNT(pager->counters.readahead_used, n);
    COUNT(pager->counters.fault_around, n - 1);
    remap(loop, region, first, n);
    if (backwards && pager->table.pages[page].state != PAGE_RESIDENT)
        region_wake(region, page, 1); /* it stopped before this one: the reader faults again */
    if (stream)
        stream_advance(loop, stream, backwards ? first : first + n - 1);
}

static void use_inactive(struct fault_loop *loop, const struct region *region, uint32_t page)
{
    struct pager *pager = loop->pager;

    if (lies_ready(pager, page)) {
        use_ready(loop, region, page);
        return;
    }
    page_list_remove(&pager->table, heat_inactive(&pager->table, page), page);
    page_set_state(&pager->table, page, PAGE_MAPPING);
    heat_used(&pager->table, page);
    remap(loop, region, page, 1);
    COUNT(pager->counters.second_chance, 1);
}

/* RESIDENT by our books, and yet a fault: mapped meanwhile, unmapped by a zap under way, or gone. */
static void fault_on_resident(struct fault_loop *loop, struct region *region, uint32_t page)
{
    struct pager *pager = loop->pager;

    page_list_remove(&pager->table, heat_mapped(&pager->table, page), page);
    /* Whoever unmapped it took the trace of a write along. */
    page_set_dirty(&pager->table, page, true);
    page_set_state(&pager->table, page, PAGE_MAPPING);
    remap(loop, region, page, 1);
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
        remap(loop, region, page, 1);
        break;
    case PAGE_INACTIVE:
        use_inactive(loop, region, page);
        break;
    case PAGE_WRITEBACK:
        /* The fault wins: it stays dirty, and the evictor drops the eviction when the donor has acked. */
        page_set_state(table, page, PAGE_MAPPING);
        heat_used(table, page);
        remap(loop, region, page, 1);
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

/* Returns whether there was anything to do. */
static bool serve_region(struct fault_loop *loop, struct region *region)
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

/* Everything that waits for a frame, a slot or a donor gets one more try. */
static void serve_waiting(struct fault_loop *loop)
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

/* Takes new regions into the epoll, and lets go of those whose process has ended. */
static void watch_regions(struct fault_loop *loop)
{
    struct pager *pager = loop->pager;
    bool let_go = false;

    loop->n_watched = 0;
    pager_lock(pager);
    for (uint32_t i = 0; i < REGIONS_MAX; i++) {
        struct region *region = &pager->regions[i];
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = region};

        if (!region->in_use)
            continue;
        if (region->leaving && region->watched) {
            epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, region->uffd, NULL);
            region->watched = false;
            let_go = true;
        } else if (!region->leaving && !region->watched) {
            epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, region->uffd, &event);
            region->watched = true;
        }
        if (region->watched)
            loop->watched[loop->n_watched++] = region;
    }
    pager_unlock(pager);
    if (let_go)
        pager_wake_evict(pager);
}

static bool is_region(const struct pager *pager, const void *source)
{
    return (const char *)source >= (const char *)pager->regions &&
           (const char *)source < (const char *)(pager->regions + REGIONS_MAX);
}

static void serve_event(struct fault_loop *loop, const struct epoll_event *event)
{
    struct pager *pager = loop->pager;

    if (event->data.ptr == pager) { /* the wake descriptor */
        uint64_t n;

        if (read(pager->fault_wake_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
            log_error("wake descriptor: %s", strerror(errno));
        watch_regions(loop);
        serve_waiting(loop);
    } else if (is_region(pager, event->data.ptr)) {
        struct region *region = event->data.ptr;

        if (region->watched)
            serve_region(loop, region);
    } else {
        struct channel *channel = event->data.ptr;

        if (fetch_held_back(loop, channel))
            return; /* the event stays */
        channel_service(channel, loop->epoll_fd, event->events);
        fetch_finish(loop, channel);
    }
}

/* Channels that sent something need their descriptors' events updated; those that are down may be due. */
static bool mind_channels(struct fault_loop *loop, bool *held_back)
{
    struct pool *pool = &loop->pager->pool;
    uint64_t now = 0;
    bool down = false;

    *held_back = false;
    for (uint32_t d = 0; d < pool->n_donors; d++)
        for (int class = CHANNEL_DEMAND; class <= CHANNEL_READAHEAD; class ++) {
            struct channel *channel = &pool->donors[d].channels[class];

            do {
                fetch_finish(loop, channel);
                channel_flush(channel, loop->epoll_fd);
            } while (channel->done_head && !fetch_held_back(loop, channel));
            *held_back = *held_back || channel->done_head;
            channel_poll(channel, loop->epoll_fd);
            if (channel->state != CHANNEL_DOWN)
                continue;
            down = !atomic_load(&channel->donor->lost) || down;
            now = now ? now : clock_ns();
            channel_revive(channel, loop->epoll_fd, now);
        }
    return down;
}

static int timeout_ms(uint64_t when_ns)
{
    uint64_t now = clock_ns();

    return when_ns <= now ? 0 : (int)((when_ns - now) / 1000000 + 1);
}

static int sleep_ms(uint64_t retry_ns, uint64_t waiting_ns, bool donor_down)
{
    int ms = donor_down ? 50 : -1;

    if (retry_ns) {
        int t = timeout_ms(retry_ns);

        ms = ms < 0 || t < ms ? t : ms;
    }
    if (waiting_ns) {
        int t = timeout_ms(waiting_ns);

        ms = ms < 0 || t < ms ? t : ms;
    }
    return ms;
}

static void receive(struct fault_loop *loop, struct channel *channel)
{
    uint64_t began_ns = clock_ns();
    uint32_t in_flight = channel->in_flight;

    channel_receive(channel, loop->epoll_fd);
    if (channel->in_flight < in_flight)
        fetch_took(loop, channel, began_ns);
}

/* Looks at the sources themselves, which costs less than to ask epoll first, where they are few. */
static bool serve_few_sources(struct fault_loop *loop)
{
    struct pager *pager = loop->pager;
    bool any = false;

    for (uint32_t d = 0; d < pager->pool.n_donors; d++)
        for (int class = CHANNEL_DEMAND; class <= CHANNEL_READAHEAD; class ++) {
            struct channel *channel = &pager->pool.donors[d].channels[class];

            if (fetch_held_back(loop, channel))
                continue;
            receive(loop, channel);
            any = any || channel->done_head;
        }
    for (uint32_t i = 0; i < loop->n_watched && !any; i++)
        any = serve_region(loop, loop->watched[i]);
    return any; /* what has come from donors is worked off by mind_channels() */
}

/* Spins up to --poll-us. Returns true when something was found, and then *n events, or none if it is served. */
static bool spin(struct fault_loop *loop, struct epoll_event *events, int *n)
{
    uint64_t spin_ns = (uint64_t)loop->pager->options->poll_us * 1000;
    bool few = loop->n_watched + loop->pager->pool.n_donors <= FEW_SOURCES;
    uint32_t turn = 0;

    if (spin_ns == 0)
        return false;
    for (uint64_t end = clock_ns() + spin_ns; clock_ns() < end; turn++) {
        if (few && serve_few_sources(loop))
            return true;
        if (!few || turn % TURNS_PER_EPOLL == TURNS_PER_EPOLL - 1)
            *n = epoll_wait(loop->epoll_fd, events, EVENTS_MAX, 0);
        if (*n != 0)
            return true;
        sched_yield();
    }
    return false;
}

static int wait_events(struct fault_loop *loop, struct epoll_event *events, int ms)
{
    int n = 0;

    if (ms != 0 && spin(loop, events, &n))
        return n;
    return epoll_wait(loop->epoll_fd, events, EVENTS_MAX, ms);
}

static void run(struct fault_loop *loop)
{
    struct epoll_event events[EVENTS_MAX];
    struct pager *pager = loop->pager;

    while (!atomic_load(&pager->stopping)) {
        uint64_t retry_ns = 0;

        if (loop->retry_waiting_ns && clock_ns() >= loop->retry_waiting_ns)
            serve_waiting(loop);
        bool held_back;
        bool down = mind_channels(loop, &held_back);

        if (loop->retry) { /* also what has failed just now */
            retry_ns = fetch_retry(loop);
            down = mind_channels(loop, &held_back);
            retry_ns = loop->retry && !retry_ns ? clock_ns() : retry_ns;
        }
        int ms = sleep_ms(retry_ns, loop->retry_waiting_ns, down);
        int n = wait_events(loop, events, held_back ? 0 : ms);

        for (int i = 0; i < n; i++)
            serve_event(loop, &events[i]);
    }
}

void *fault_thread(void *arg)
{
    struct pager *pager = arg;
    struct fault_loop *loop = calloc(1, sizeof(*loop));
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = pager};

    if (!loop)
        return NULL;
    loop->pager = pager;
    loop->readahead_pages = (uint32_t)(pager->options->readahead_bytes / PAGE_BYTES);
    for (uint32_t i = 0; i < RECENT_FAULTS; i++)
        loop->recent[i] = PAGE_NONE;
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0 || fetch_init(loop) < 0) {
        log_error("the fault thread cannot start: %s", strerror(errno));
        atomic_store(&pager->stopping, true);
    } else {
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, pager->fault_wake_fd, &wake);
        run(loop);
    }
    fetch_destroy(loop);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    free(loop);
    return NULL;
}
