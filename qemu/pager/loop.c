/* SPDX-License-Identifier: MIT */
#include "loop.h"

#include "base/clock.h"
#include "donor/channel.h"
#include "log.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

int loop_open(struct loop *loop)
{
    struct epoll_event wake = {.events = EPOLLIN, .data.ptr = loop->pager};

    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0 || epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->wake_fd, &wake) < 0)
        return -errno;
    return 0;
}

void loop_close(struct loop *loop)
{
    if (loop->epoll_fd >= 0)
        close(loop->epoll_fd);
}

void loop_take_wake(struct loop *loop)
{
    uint64_t n;

    if (read(loop->wake_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
        log_error("wake descriptor: %s", strerror(errno));
}

static bool is_held_back(const struct loop *loop, const struct channel *channel)
{
    return loop->held_back && loop->held_back(loop, channel);
}

bool loop_service_channels(struct loop *loop, bool *held_back)
{
    struct pool *pool = &loop->pager->pool;
    uint64_t now_ns = 0;
    bool down = false;

    *held_back = false;
    for (uint32_t d = 0; d < pool->n_donors; d++)
        for (int class = (int)loop->first; class <= (int)loop->last; class ++) {
            struct channel *channel = &pool->donors[d].channels[class];

            do {
                loop->finish(loop, channel);
                channel_flush(channel, loop->epoll_fd);
            } while (channel->done_head && !is_held_back(loop, channel));
            *held_back = *held_back || channel->done_head;
            channel_poll(channel, loop->epoll_fd);
            if (channel->state != CHANNEL_DOWN)
                continue;
            down = !donor_gone(channel->donor) || down;
            now_ns = now_ns ? now_ns : clock_ns();
            channel_revive(channel, loop->epoll_fd, now_ns);
        }
    return down;
}

void loop_look_at_channels(struct loop *loop)
{
    uint64_t slow_ns = (uint64_t)loop->pager->options->slow_us * 1000;

    loop->look_ns = pool_look(&loop->pager->pool, loop->first, loop->last, loop->epoll_fd, slow_ns);
}
