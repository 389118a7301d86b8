/* SPDX-License-Identifier: MIT */
/*
 * The fault thread: one event loop over every userfaultfd, every demand and readahead connection. A fault crosses no
 * other thread on its way.
 *
 * Before it sleeps it spins for --poll-us, because a wake-up costs more than a fetch.
 */
#include "fault.h"

#include "clock.h"
#include "log.h"
#include "own_delay.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS_MAX 64
#define DOWN_MS    50
/* So many userfaultfds and donors are polled one by one; more are left to epoll. */
#define FEW_SOURCES     4u
#define TURNS_PER_EPOLL 8u

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

        if (!region->in_use || region->awaited)
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
        fault_serve_waiting(loop);
    } else if (is_region(pager, event->data.ptr)) {
        struct region *region = event->data.ptr;

        if (region->watched)
            fault_serve_region(loop, region);
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
            down = !donor_gone(channel->donor) || down;
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

/* Whether the donors are alive. What their connections give up is on the done lists afterwards. */
static void look_at_channels(struct fault_loop *loop)
{
    uint64_t slow_ns = (uint64_t)loop->pager->options->slow_us * 1000;

    own_delay_mark();
    loop->look_ns = pool_look(&loop->pager->pool, CHANNEL_DEMAND, CHANNEL_READAHEAD, loop->epoll_fd, slow_ns);
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
        any = fault_serve_region(loop, loop->watched[i]);
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
    uint64_t end_ns = clock_ns() + spin_ns;

    for (; (loop->spun_ns = clock_ns()) < end_ns; turn++) {
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

/* In milliseconds, or up to the moment when a second copy is to be asked. */
static int sleep_for(struct fault_loop *loop, struct epoll_event *events, int ms)
{
    uint64_t ns = (uint64_t)ms * 1000000u, now_ns = loop->spun_ns;

    if (!loop->hedge_ns || ms == 0 || loop->hedge_ns >= now_ns + ns)
        return epoll_wait(loop->epoll_fd, events, EVENTS_MAX, ms);
    ns = loop->hedge_ns > now_ns ? loop->hedge_ns - now_ns : 0;
    struct timespec time = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};

    return epoll_pwait2(loop->epoll_fd, events, EVENTS_MAX, &time, NULL);
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
        if (loop->spun_ns >= loop->look_ns)
            look_at_channels(loop);
        if (loop->hedge_ns && loop->spun_ns >= loop->hedge_ns)
            hedge_due(loop);
        bool held_back;
        bool down = mind_channels(loop, &held_back);

        if (loop->retry) { /* also what has failed just now */
            retry_ns = fetch_retry(loop);
            down = mind_channels(loop, &held_back);
            retry_ns = loop->retry && !retry_ns ? clock_ns() : retry_ns;
        }
        int ms = sleep_ms(loop->look_ns, retry_ns, loop->retry_waiting_ns, down);
        int n = wait_events(loop, events, held_back ? 0 : ms);

        for (int i = 0; i < n; i++)
            serve_event(loop, &events[i]);
    }
}

static int loop_open(struct fault_loop *loop)
{
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = loop->pager};

    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0 || epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->pager->fault_wake_fd, &wake) < 0)
        return -errno;
    int rc = fetch_init(loop);

    return rc < 0 ? rc : turns_create(&loop->turns, loop->pager->table.n_pages);
}

int fault_create(struct fault_loop **out, struct pager *pager)
{
    struct fault_loop *loop = calloc(1, sizeof(*loop));

    if (!loop)
        return -ENOMEM;
    loop->pager = pager;
    loop->readahead_pages = (uint32_t)(pager->options->readahead_bytes / PAGE_BYTES);
    for (uint32_t i = 0; i < RECENT_FAULTS; i++)
        loop->recent[i] = PAGE_NONE;
    int rc = loop_open(loop);

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
    fetch_destroy(loop);
    turns_destroy(&loop->turns);
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
    free(loop);
}
