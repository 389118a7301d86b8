/* SPDX-License-Identifier: MIT */
/*
 * The evict thread: one event loop for everything that is not on a fault's way: shims that come and go, zaps,
 * write-back, punching holes, discards.
 *
 * It starts when fewer pages than the low watermark are free and stops at the high one. Pages leave from the head of
 * the inactive list, oldest first: clean ones at once, dirty ones by way of their donor. While it works, the inactive
 * list is kept filled from the head of the resident list, by zapping: what is used after that gets its second chance.
 */
#include "evict.h"

#include "clock.h"
#include "fault_points.h"
#include "heat.h"
#include "log.h"
#include "runtime_dir.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS_MAX      64
#define DISCARD_POLL_MS 1
#define REAP_POLL_MS    20
#define DONOR_POLL_MS   50
#define HAND_OVER_NS    2000000000ull
/* Pages looked at in one round under the lock: most of them may have to stay. */
#define SEEN_MAX (4u * BATCH_PAGES)

static int compare_pages(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

void sort_pages(uint32_t *pages, uint32_t n)
{
    qsort(pages, n, sizeof(*pages), compare_pages);
}

uint32_t run_length(const uint32_t *pages, uint32_t n, uint32_t max)
{
    uint32_t run = 1;

    while (run < n && run < max && pages[run] == pages[run - 1] + 1)
        run++;
    return run;
}

void drop_add(struct evict_loop *loop, uint32_t page)
{
    struct page *p = &loop->pager->table.pages[page];

    if (p->flags & PAGE_F_READAHEAD) {
        COUNT(loop->pager->counters.readahead_wasted, 1);
        loop->pager->n_wasted++;
        loop->pager->last_wasted = page;
        p->flags &= (uint8_t)~PAGE_F_READAHEAD;
    }
    page_set_state(&loop->pager->table, page, PAGE_DROPPING);
    loop->dropping[loop->n_dropping++] = page;
}

/* A run of pages of one region, punched: they are absent from now on. Faults that came meanwhile are raised again. */
static void dropped(struct pager *pager, uint32_t page, uint32_t n, bool punched)
{
    struct page_table *table = &pager->table;

    pager_lock(pager);
    const struct region *region = pager_region_of(pager, page);

    for (uint32_t i = page; i < page + n; i++) {
        bool wanted = table->pages[i].flags & PAGE_F_WANTED;

        table->pages[i].flags &= (uint8_t)~PAGE_F_WANTED;
        if (punched) {
            table->counts.present--;
            heat_left(table, i);
            page_set_state(table, i, PAGE_ABSENT);
        } else {
            page_set_state(table, i, PAGE_INACTIVE);
            page_list_push(table, heat_inactive(table, i), i);
        }
        FAULT_POINT(evict_absent);
        if (wanted && region)
            region_wake(region, i, 1);
    }
    pager_unlock(pager);
}

void drop_flush(struct evict_loop *loop)
{
    struct pager *pager = loop->pager;

    if (loop->n_dropping == 0)
        return;
    sort_pages(loop->dropping, loop->n_dropping);
    for (uint32_t i = 0; i < loop->n_dropping;) {
        uint32_t page = loop->dropping[i];

        pager_lock(pager);
        struct region *region = pager_region_of(pager, page);

        pager_unlock(pager);
        uint32_t left = region ? region->n_pages - (page - region->first_page) : 1;
        uint32_t run = run_length(loop->dropping + i, loop->n_dropping - i, left);
        int rc = region ? region_punch(region, page, run) : 0;

        FAULT_POINT(evict_punched);
        if (rc < 0)
            log_error("cannot punch %u pages out of the memory of process %d: %s", run, region->pid, strerror(-rc));
        dropped(pager, page, run, rc == 0);
        i += run;
    }
    loop->n_dropping = 0;
    pager_wake_fault(pager);
}

struct victims {
    uint32_t dirty[BATCH_PAGES];
    uint32_t n_dirty, n_clean, n_spared, n_stuck;
    bool may_write;
};

/* With the lock. Takes pages from the head of a list of inactive ones, up to n; returns how many. */
static int64_t pick_from(struct evict_loop *loop, struct page_list *list, struct victims *victims, int64_t n)
{
    struct page_table *table = &loop->pager->table;
    uint32_t seen = list->count < SEEN_MAX ? list->count : SEEN_MAX;
    int64_t taken = 0;

    for (; seen > 0 && taken < n; seen--) {
        uint32_t page = list->head;
        struct page *p = &table->pages[page];
        bool dirty = p->flags & PAGE_F_DIRTY;

        if (victims->n_dirty == BATCH_PAGES || loop->n_dropping >= BATCH_PAGES)
            break;
        page_list_remove(table, list, page);
        bool busy = dirty && (!victims->may_write || (p->flags & PAGE_F_IO));
        bool stuck = dirty && !busy && !takes_page(loop, page);

        victims->n_stuck += stuck;
        if (busy || stuck || heat_spares(table, page)) {
            page_list_push(table, list, page);
            victims->n_spared += !busy && !stuck;
            continue;
        }
        taken++;
        if (dirty) {
            page_set_state(table, page, PAGE_WRITEBACK);
            p->flags |= PAGE_F_IO;
            victims->dirty[victims->n_dirty++] = page;
        } else {
            drop_add(loop, page);
            victims->n_clean++;
        }
    }
    return taken;
}

/* With the lock. What streams have used goes first; other pages wait for it as long as frames are not scarce. */
static void pick_victims(struct evict_loop *loop, struct victims *victims, int64_t n)
{
    struct pager *pager = loop->pager;
    bool scarce = pager_free_pages(pager) < pager->watermarks.low / 2;

    n -= pick_from(loop, &pager->table.spent, victims, n);
    if (n > 0 && (scarce || heat_stream_excess(&pager->table, pager->watermarks.probation) == 0))
        pick_from(loop, &pager->table.inactive, victims, n);
}

/* With the lock. How many pages to zap, when so many frames are missing and so many victims were found. */
static int64_t to_zap(const struct pager *pager, int64_t missing, int64_t found)
{
    int64_t wanted = pager->watermarks.inactive - (int64_t)pager->table.inactive.count;
    int64_t excess = heat_stream_excess(&pager->table, pager->watermarks.probation);

    if (found < missing && wanted < missing)
        wanted = missing;
    if (wanted < excess && wanted < missing)
        wanted = excess < missing ? excess : missing;
    return wanted < BATCH_PAGES ? wanted : BATCH_PAGES;
}

/* One round. Returns whether it got anything done, so that another may follow. */
static bool evict_round(struct evict_loop *loop)
{
    struct pager *pager = loop->pager;
    struct victims victims = {.may_write = writeback_possible(loop)};
    int64_t n_zap = 0;
    bool look_on = false;

    pager_lock(pager);
    /* What is being written will be free: ask for no more than is missing beyond it. */
    int64_t missing = pager->watermarks.high - pager_free_pages(pager) - pager->table.counts.writeback;

    if (missing > 0) {
        pick_victims(loop, &victims, missing);
        n_zap = to_zap(pager, missing, (int64_t)victims.n_clean + victims.n_dirty);
        look_on = takes_look_on(loop, victims.n_clean + victims.n_dirty + victims.n_spared, victims.n_stuck);
    }
    pager_unlock(pager);
    if (victims.n_clean + victims.n_dirty > 0)
        FAULT_POINT(evict_picked);
    COUNT(pager->counters.evicted_clean, victims.n_clean);
    if (n_zap > 0) /* its answer is an event */
        zap_start(loop, (uint32_t)n_zap);
    drop_flush(loop);
    if (victims.n_dirty > 0) {
        sort_pages(victims.dirty, victims.n_dirty);
        writeback_start(loop, victims.dirty, victims.n_dirty);
        drop_flush(loop); /* zero pages that no donor knows of */
    }
    return victims.n_clean > 0 || victims.n_spared > 0 || look_on ||
           (victims.n_dirty > 0 && loop->writes_in_flight == 0 && writeback_possible(loop));
}

/* Works off what a donor has answered. */
static void finish_requests(struct evict_loop *loop, struct channel *channel)
{
    struct request *request;

    while ((request = channel_done(channel)))
        if (!rebuild_request_done(loop, request))
            writeback_part_done(loop, request);
}

static void serve_event(struct evict_loop *loop, const struct epoll_event *event)
{
    struct pager *pager = loop->pager;
    const char *source = event->data.ptr;
    uint64_t n;

    if (source == (char *)pager) {
        if (read(pager->evict_wake_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
            log_error("wake descriptor: %s", strerror(errno));
        /* After the read: what is asked between the two is seen by the round that follows. */
        atomic_store(&pager->evict_asked, false);
    } else if (source == (char *)loop) {
        link_accept(loop);
    } else if (source >= (char *)loop->links && source < (char *)loop->links + sizeof(loop->links)) {
        link_readable(loop, event->data.ptr);
    } else {
        struct channel *channel = event->data.ptr;

        channel_service(channel, loop->epoll_fd, event->events);
        finish_requests(loop, channel);
    }
}

static bool mind_channels(struct evict_loop *loop)
{
    struct pool *pool = &loop->pager->pool;
    bool down = false;

    for (uint32_t d = 0; d < pool->n_donors; d++) {
        struct channel *channel = &pool->donors[d].channels[CHANNEL_WRITEBACK];

        do {
            finish_requests(loop, channel);
            channel_flush(channel, loop->epoll_fd);
        } while (channel->done_head);
        channel_poll(channel, loop->epoll_fd);
        if (channel->state == CHANNEL_DOWN && !donor_gone(channel->donor)) {
            down = true;
            channel_revive(channel, loop->epoll_fd, clock_ns());
        }
    }
    return down;
}

static void look_at_channels(struct evict_loop *loop)
{
    uint64_t slow_ns = (uint64_t)loop->pager->options->slow_us * 1000;

    if (clock_ns() >= loop->look_ns)
        loop->look_ns = pool_look(&loop->pager->pool, CHANNEL_WRITEBACK, CHANNEL_WRITEBACK, loop->epoll_fd, slow_ns);
}

static bool any_region(struct evict_loop *loop)
{
    bool any = false;

    pager_lock(loop->pager);
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        any = any || loop->pager->regions[i].in_use;
    pager_unlock(loop->pager);
    return any;
}

/* With --exit-with-client: the last region is gone and its pages are forgotten by the donors. */
static bool finished(struct evict_loop *loop)
{
    const struct pager *pager = loop->pager;

    return pager->options->exit_with_client && atomic_load(&pager->client_seen) && !any_region(loop) &&
           loop->writes_in_flight == 0;
}

/* Asked to hand over: nothing new is begun, what the donors still have to ack is waited for, but not for ever. */
static bool handed_over(struct evict_loop *loop)
{
    struct pager *pager = loop->pager;

    if (!atomic_load(&pager->handing_over))
        return false;
    if (!loop->hand_over_ns)
        loop->hand_over_ns = clock_ns() + HAND_OVER_NS;
    if (loop->writes_in_flight > 0 && clock_ns() < loop->hand_over_ns)
        return false;
    log_info("handed over: %u writes are left to the next pager", loop->writes_in_flight);
    atomic_store(&pager->stopping, true);
    kill(getpid(), SIGUSR1); /* ends main's wait */
    return true;
}

static int choose_timeout(const struct evict_loop *loop, bool discards, bool leaving, bool down, int rebuild_ms)
{
    if (discards || loop->hand_over_ns)
        return DISCARD_POLL_MS;
    if (rebuild_ms >= 0)
        return rebuild_ms;
    if (leaving)
        return REAP_POLL_MS;
    if (down || clock_ns() < loop->writeback_pause_ns)
        return DONOR_POLL_MS;
    /* Also to notice ended processes whose connection is gone already. */
    uint64_t now_ns = clock_ns();

    return now_ns < loop->look_ns ? (int)((loop->look_ns - now_ns) / 1000000 + 1) : 0;
}

static void run(struct evict_loop *loop)
{
    struct epoll_event events[EVENTS_MAX];
    struct pager *pager = loop->pager;

    while (!atomic_load(&pager->stopping)) {
        look_at_channels(loop);
        bool down = mind_channels(loop);
        bool discards = discard_progress(loop);
        bool leaving = regions_reap(loop);

        takes_turn(loop);
        while (!atomic_load(&pager->handing_over) && evict_round(loop))
            continue;
        drop_flush(loop);
        runtime_dir_restore(loop);
        int rebuild_ms = atomic_load(&pager->handing_over) ? -1 : rebuild_turn(loop);

        if (handed_over(loop))
            break;
        if (finished(loop)) {
            log_info("the process whose memory this was has ended");
            atomic_store(&pager->stopping, true);
            break;
        }
        mind_channels(loop);
        int n =
            epoll_wait(loop->epoll_fd, events, EVENTS_MAX, choose_timeout(loop, discards, leaving, down, rebuild_ms));

        for (int i = 0; i < n; i++)
            serve_event(loop, &events[i]);
        drop_flush(loop);
    }
}

static int start(struct evict_loop *loop)
{
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = loop->pager};
    struct epoll_event listening = {.events = EPOLLIN, .data.ptr = loop};

    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0)
        return -errno;
    int rc = writeback_init(loop);

    rc = rc < 0 ? rc : rebuild_init(loop);
    if (rc < 0)
        return rc;
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->pager->evict_wake_fd, &wake) < 0 ||
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->pager->listen_fd, &listening) < 0)
        return -errno;
    return 0;
}

int evict_create(struct evict_loop **out, struct pager *pager)
{
    struct evict_loop *loop = calloc(1, sizeof(*loop));

    if (!loop)
        return -ENOMEM;
    loop->pager = pager;
    int rc = start(loop);

    if (rc < 0) {
        evict_destroy(loop);
        return rc;
    }
    *out = loop;
    return 0;
}

void *evict_thread(void *arg)
{
    struct evict_loop *loop = arg;

    if (!pager_may_start(loop->pager))
        return NULL;
    run(loop);
    atomic_store(&loop->pager->stopping, true);
    pager_wake_fault(loop->pager);
    return NULL;
}

void evict_destroy(struct evict_loop *loop)
{
    if (!loop)
        return;
    for (size_t i = 0; i < sizeof(loop->links) / sizeof(*loop->links); i++)
        if (loop->links[i].state != LINK_FREE)
            close(loop->links[i].fd);
    rebuild_destroy(loop);
    writeback_destroy(loop);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    free(loop);
}
