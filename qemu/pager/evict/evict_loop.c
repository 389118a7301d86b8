/* SPDX-License-Identifier: MIT */
/*
 * The evict thread: one event loop for all work that no fault waits for: shims that connect and leave, zaps,
 * write-back, punching holes, discards, the rebuild.
 *
 * Eviction starts when fewer frames than the low watermark are free, and stops at the high one. Pages leave from the
 * head of the inactive list, oldest first: clean pages at once, dirty pages once their donors have acked them.
 * Meanwhile the inactive list is filled from the head of the lists of mapped pages, by zapping: a zapped page that is
 * used gets its second chance.
 */
#include "evict/evict_loop.h"

#include "base/clock.h"
#include "base/fault_points.h"
#include "donor/channel.h"
#include "evict/discard.h"
#include "evict/drop.h"
#include "evict/reap.h"
#include "evict/takes.h"
#include "evict/writeback.h"
#include "evict/zap.h"
#include "link/runtime_dir.h"
#include "log.h"
#include "page/reclaim_policy.h"
#include "page/runs.h"
#include "rebuild/turn.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS_MAX      64
#define DISCARD_POLL_MS 1
#define REAP_POLL_MS    20
#define DONOR_POLL_MS   50
#define HAND_OVER_NS    2000000000ull
/* The most pages of a list that one round looks at under the lock; most of them may have to stay. */
#define SEEN_MAX (4u * BATCH_PAGES)

struct victims {
    uint32_t dirty[BATCH_PAGES];
    uint32_t n_dirty, n_clean, n_spared, n_stuck;
    bool may_write;
};

/* Takes up to n victims from the head of a list of inactive pages. Returns how many. With the lock. */
static int64_t pick_from(struct evict_loop *loop, struct page_list *list, struct victims *victims, int64_t n)
{
    struct page_table *table = &loop->pager->table;
    uint32_t seen = list->count < SEEN_MAX ? list->count : SEEN_MAX;
    int64_t taken = 0;

    pager_assert_locked(loop->pager);
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
        if (busy || stuck || reclaim_spares(table, page)) {
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

/*
 * Picks up to n victims. Pages that streams have used go first; others have to wait for them unless frames are
 * scarce.
 */
static void pick_victims(struct evict_loop *loop, struct victims *victims, int64_t n)
{
    struct pager *pager = loop->pager;
    bool scarce = pager_free_pages(pager) < pager->watermarks.low / 2;

    pager_assert_locked(pager);
    n -= pick_from(loop, &pager->table.spent, victims, n);
    if (n > 0 && (scarce || reclaim_stream_excess(&pager->table, pager->watermarks.probation) == 0))
        pick_from(loop, &pager->table.inactive, victims, n);
}

/* Returns how many pages to zap when `missing` frames are needed and `found` victims were found. With the lock. */
static int64_t to_zap(const struct pager *pager, int64_t missing, int64_t found)
{
    int64_t wanted = pager->watermarks.inactive - (int64_t)pager->table.inactive.count;
    int64_t excess = reclaim_stream_excess(&pager->table, pager->watermarks.probation);

    pager_assert_locked(pager);
    if (found < missing && wanted < missing)
        wanted = missing;
    if (wanted < excess && wanted < missing)
        wanted = excess < missing ? excess : missing;
    return wanted < BATCH_PAGES ? wanted : BATCH_PAGES;
}

/* Runs one round of eviction. Returns whether another round may follow at once. */
static bool evict_round(struct evict_loop *loop)
{
    struct pager *pager = loop->pager;
    struct victims victims = {.may_write = writeback_possible(loop)};
    int64_t n_zap = 0;
    bool look_on = false;

    pager_lock(pager);
    /* The frames of pages that are being written will be free soon, so they do not count as missing. */
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
    if (n_zap > 0) /* the shim's answer comes as an event */
        zap_start(loop, (uint32_t)n_zap);
    drop_flush(loop);
    if (victims.n_dirty > 0) {
        sort_pages(victims.dirty, victims.n_dirty);
        writeback_start(loop, victims.dirty, victims.n_dirty);
        drop_flush(loop); /* zero pages that are on no donor have been dropped without a write */
    }
    return victims.n_clean > 0 || victims.n_spared > 0 || look_on ||
           (victims.n_dirty > 0 && loop->writes_in_flight == 0 && writeback_possible(loop));
}

/* Calls done() of each request that the channel's donor has answered. */
static void finish(struct loop *events, struct channel *channel)
{
    struct request *request;

    (void)events;
    while ((request = channel_done(channel)))
        request->done(request);
}

static void serve_event(struct evict_loop *loop, const struct epoll_event *event)
{
    struct pager *pager = loop->pager;
    const char *source = event->data.ptr;

    if (source == (char *)pager) {
        loop_take_wake(&loop->loop);
        /* Cleared after the read, so that the round that follows sees a request that comes in between. */
        atomic_store(&pager->evict_asked, false);
    } else if (source == (char *)loop) {
        link_accept(&loop->links);
    } else if (source >= (char *)loop->links.list && source < (char *)loop->links.list + sizeof(loop->links.list)) {
        link_readable(&loop->links, event->data.ptr);
    } else {
        struct channel *channel = event->data.ptr;

        channel_service(channel, loop->loop.epoll_fd, event->events);
        finish(&loop->loop, channel);
    }
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

/*
 * Whether the pager ends by --exit-with-client: the last region has ended, and the donors have forgotten its pages.
 */
static bool finished(struct evict_loop *loop)
{
    const struct pager *pager = loop->pager;

    return pager->options->exit_with_client && atomic_load(&pager->client_seen) && !any_region(loop) &&
           loop->writes_in_flight == 0;
}

/*
 * Whether the pager ends by a hand-over: writes under way are waited for, HAND_OVER_NS at most, and no work is begun.
 */
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
    kill(getpid(), SIGUSR1); /* ends the main thread's wait */
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
    /* The thread wakes at each look at the latest, also to notice processes that ended after their connection. */
    uint64_t now_ns = clock_ns();

    return now_ns < loop->loop.look_ns ? (int)((loop->loop.look_ns - now_ns) / 1000000 + 1) : 0;
}

static void run(struct evict_loop *loop)
{
    struct epoll_event events[EVENTS_MAX];
    struct pager *pager = loop->pager;

    while (!atomic_load(&pager->stopping)) {
        bool held_back;

        if (clock_ns() >= loop->loop.look_ns)
            loop_look_at_channels(&loop->loop);
        bool down = loop_service_channels(&loop->loop, &held_back);
        bool discards = discard_progress(loop);
        bool leaving = regions_reap(loop);

        takes_turn(loop);
        while (!atomic_load(&pager->handing_over) && evict_round(loop))
            continue;
        drop_flush(loop);
        runtime_dir_restore(&loop->links);
        int rebuild_ms = atomic_load(&pager->handing_over) ? -1 : rebuild_turn(&loop->rebuild);

        if (handed_over(loop))
            break;
        if (finished(loop)) {
            log_info("the process whose memory this was has ended");
            atomic_store(&pager->stopping, true);
            break;
        }
        loop_service_channels(&loop->loop, &held_back);
        int n = epoll_wait(loop->loop.epoll_fd, events, EVENTS_MAX,
                           choose_timeout(loop, discards, leaving, down, rebuild_ms));

        for (int i = 0; i < n; i++)
            serve_event(loop, &events[i]);
        drop_flush(loop);
    }
}

static bool writes_touch(const void *loop, uint32_t donor, uint32_t slot)
{
    return writeback_touches(loop, donor, slot);
}

static int start(struct evict_loop *loop, const struct link_handler *handler)
{
    struct pager *pager = loop->pager;
    struct epoll_event listening = {.events = EPOLLIN, .data.ptr = loop};

    loop->loop = (struct loop){
        .pager = pager,
        .wake_fd = pager->evict_wake_fd,
        .first = CHANNEL_WRITEBACK,
        .last = CHANNEL_WRITEBACK,
        .finish = finish,
    };
    int rc = loop_open(&loop->loop);

    loop->links.pager = pager;
    loop->links.epoll_fd = loop->loop.epoll_fd;
    loop->links.handler = handler;
    loop->links.owner = loop;
    loop->rebuild.pager = pager;
    loop->rebuild.writes_touch = writes_touch;
    loop->rebuild.writes = loop;
    rc = rc < 0 ? rc : writeback_init(loop);
    rc = rc < 0 ? rc : rebuild_init(&loop->rebuild);
    if (rc == 0 && epoll_ctl(loop->loop.epoll_fd, EPOLL_CTL_ADD, pager->listen_fd, &listening) < 0)
        rc = -errno;
    return rc;
}

int evict_create(struct evict_loop **out, struct pager *pager, const struct link_handler *handler)
{
    struct evict_loop *loop = calloc(1, sizeof(*loop));

    if (!loop)
        return -ENOMEM;
    loop->pager = pager;
    int rc = start(loop, handler);

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
    for (size_t i = 0; i < LINKS_MAX; i++)
        if (loop->links.list[i].state != LINK_FREE)
            close(loop->links.list[i].fd);
    rebuild_destroy(&loop->rebuild);
    writeback_destroy(loop);
    loop_close(&loop->loop);
    free(loop);
}
