/* SPDX-License-Identifier: MIT */
/*
 * The fault thread: one event loop over all userfaultfds and all demand and readahead connections. No other thread
 * takes part in serving a fault.
 *
 * Before it sleeps, the thread spins for --poll-us, because a wake-up costs more than a fetch.
 */
#include "fault/fault_loop.h"

#include "base/clock.h"
#include "base/own_delay.h"
#include "donor/channel.h"
#include "fault/fault.h"
#include "fault/fetch.h"
#include "fault/fetch_slots.h"
#include "fault/hedge.h"
#include "fault/serve.h"

#include <errno.h>
#include <sched.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>

#define EVENTS_MAX 64
#define DOWN_MS    50
/*
 * So many userfaultfds and donors are polled one by one, and epoll only now and then; if there are more, only epoll.
 */
#define FEW_SOURCES     4u
#define TURNS_PER_EPOLL 8u

static struct fault_loop *fault_loop_of(struct loop *events)
{
    return (struct fault_loop *)((char *)events - offsetof(struct fault_loop, loop));
}

/* Adds new regions to the epoll, and removes those that are leaving. */
static void watch_regions(struct fault_loop *loop)
{
    struct pager *pager = loop->pager;
    bool let_go = false;

    loop->n_watched = 0;
    pager_lock(pager);
    for (uint32_t i = 0; i < REGIONS_MAX; i++) {
        struct region *region = &pager->regions[i];
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = region};

        if (!region->in_use || region->awaited)
            continue;
        if (region->leaving && region->watched) {
            epoll_ctl(loop->loop.epoll_fd, EPOLL_CTL_DEL, region->uffd, NULL);
            region->watched = false;
            let_go = true;
        } else if (!region->leaving && !region->watched) {
            epoll_ctl(loop->loop.epoll_fd, EPOLL_CTL_ADD, region->uffd, &event);
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
        loop_take_wake(&loop->loop);
        watch_regions(loop);
        fault_serve_waiting(loop);
    } else if (is_region(pager, event->data.ptr)) {
        struct region *region = event->data.ptr;

        if (region->watched)
            fault_serve_region(loop, region);
    } else {
        struct channel *channel = event->data.ptr;

        if (fetch_held_back(loop, channel))
            return; /* epoll reports the event again */
        channel_service(channel, loop->loop.epoll_fd, event->events);
        fetch_finish(loop, channel);
    }
}

static int timeout_ms(uint64_t when_ns)
{
    uint64_t now = clock_ns();

    return when_ns <= now ? 0 : (int)((when_ns - now) / 1000000 + 1);
}

static void look_at_channels(struct fault_loop *loop)
{
    own_delay_mark();
    loop_look_at_channels(&loop->loop);
}

static int sleep_ms(uint64_t look_ns, uint64_t retry_ns, uint64_t waiting_ns, bool donor_down)
{
    int ms = timeout_ms(look_ns);

    ms = donor_down && ms > DOWN_MS ? DOWN_MS : ms;
    if (retry_ns) {
        int t = timeout_ms(retry_ns);

        ms = t < ms ? t : ms;
    }
    if (waiting_ns) {
        int t = timeout_ms(waiting_ns);

        ms = t < ms ? t : ms;
    }
    return ms;
}

static void receive(struct fault_loop *loop, struct channel *channel)
{
    uint64_t began_ns = clock_ns();
    uint32_t in_flight = channel->in_flight;

    channel_receive(channel, loop->loop.epoll_fd);
    if (channel->in_flight < in_flight)
        fetch_took(loop, channel, began_ns);
}

/* Reads from the sources directly, which costs less than asking epoll first if they are few. */
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
        any = fault_serve_region(loop, loop->watched[i]);
    return any; /* loop_service_channels() works off what has come from donors */
}

/* Spins for up to --poll-us. Returns true if something was found: *n events, or something that is served already. */
static bool spin(struct fault_loop *loop, struct epoll_event *events, int *n)
{
    uint64_t spin_ns = (uint64_t)loop->pager->options->poll_us * 1000;
    bool few = loop->n_watched + loop->pager->pool.n_donors <= FEW_SOURCES;
    uint32_t turn = 0;

    if (spin_ns == 0)
        return false;
    uint64_t end_ns = clock_ns() + spin_ns;

    for (; (loop->spun_ns = clock_ns()) < end_ns; turn++) {
        if (few && serve_few_sources(loop))
            return true;
        if (!few || turn % TURNS_PER_EPOLL == TURNS_PER_EPOLL - 1)
            *n = epoll_wait(loop->loop.epoll_fd, events, EVENTS_MAX, 0);
        if (*n != 0)
            return true;
        sched_yield();
    }
    return false;
}

/* Sleeps for so many milliseconds, or until a second copy has to be asked. */
static int sleep_for(struct fault_loop *loop, struct epoll_event *events, int ms)
{
    uint64_t ns = (uint64_t)ms * 1000000u, now_ns = loop->spun_ns;

    if (!loop->hedge_ns || ms == 0 || loop->hedge_ns >= now_ns + ns)
        return epoll_wait(loop->loop.epoll_fd, events, EVENTS_MAX, ms);
    ns = loop->hedge_ns > now_ns ? loop->hedge_ns - now_ns : 0;
    struct timespec time = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};

    return epoll_pwait2(loop->loop.epoll_fd, events, EVENTS_MAX, &time, NULL);
}

static int wait_events(struct fault_loop *loop, struct epoll_event *events, int ms)
{
    int n = 0;

    if (ms != 0 && spin(loop, events, &n))
        return n;
    n = sleep_for(loop, events, ms);
    loop->spun_ns = clock_ns();
    return n;
}

static void run(struct fault_loop *loop)
{
    struct epoll_event events[EVENTS_MAX];
    struct pager *pager = loop->pager;

    while (!atomic_load(&pager->stopping)) {
        uint64_t retry_ns = 0;

        if (loop->retry_waiting_ns && clock_ns() >= loop->retry_waiting_ns)
            fault_serve_waiting(loop);
        if (loop->spun_ns >= loop->loop.look_ns)
            look_at_channels(loop);
        if (loop->hedge_ns && loop->spun_ns >= loop->hedge_ns)
            hedge_due(loop);
        bool held_back;
        bool down = loop_service_channels(&loop->loop, &held_back);

        if (loop->retry) { /* the list includes fetches that have failed just now */
            retry_ns = fetch_retry(loop);
            down = loop_service_channels(&loop->loop, &held_back);
            retry_ns = loop->retry && !retry_ns ? clock_ns() : retry_ns;
        }
        int ms = sleep_ms(loop->loop.look_ns, retry_ns, loop->retry_waiting_ns, down);
        int n = wait_events(loop, events, held_back ? 0 : ms);

        for (int i = 0; i < n; i++)
            serve_event(loop, &events[i]);
    }
}

static void finish(struct loop *events, struct channel *channel)
{
    fetch_finish(fault_loop_of(events), channel);
}

static bool held_back(const struct loop *events, const struct channel *channel)
{
    return fetch_held_back(fault_loop_of((struct loop *)events), channel);
}

static int open_all(struct fault_loop *loop)
{
    struct pager *pager = loop->pager;

    loop->loop = (struct loop){
        .pager = pager,
        .wake_fd = pager->fault_wake_fd,
        .first = CHANNEL_DEMAND,
        .last = CHANNEL_READAHEAD,
        .finish = finish,
        .held_back = held_back,
    };
    int rc = loop_open(&loop->loop);

    rc = rc < 0 ? rc : fetch_init(loop);
    return rc < 0 ? rc : streams_create(&loop->streams, pager->table.n_pages, loop->readahead_pages);
}

int fault_create(struct fault_loop **out, struct pager *pager)
{
    struct fault_loop *loop = calloc(1, sizeof(*loop));

    if (!loop)
        return -ENOMEM;
    loop->pager = pager;
    loop->readahead_pages = (uint32_t)(pager->options->readahead_bytes / PAGE_BYTES);
    int rc = open_all(loop);

    if (rc < 0) {
        fault_destroy(loop);
        return rc;
    }
    *out = loop;
    return 0;
}

void *fault_thread(void *arg)
{
    struct fault_loop *loop = arg;

    if (pager_may_start(loop->pager))
        run(loop);
    return NULL;
}

void fault_destroy(struct fault_loop *loop)
{
    if (!loop)
        return;
    fetch_slots_destroy(loop);
    streams_destroy(&loop->streams);
    loop_close(&loop->loop);
    free(loop);
}
