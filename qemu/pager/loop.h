/* SPDX-License-Identifier: MIT */
/*
 * What the event loops of the fault thread and of the evict thread have in common: an epoll, a wake descriptor, and
 * the donors' connections of some classes. Only the thread of a loop calls its functions.
 */
#ifndef GHOSTBOX_PAGER_LOOP_H
#define GHOSTBOX_PAGER_LOOP_H

#include "pager.h"

struct loop {
    struct pager *pager;
    int epoll_fd, wake_fd;
    enum channel_class first, last; /* the classes of connections that this loop serves, from first to last */
    uint64_t look_ns;               /* when the connections are looked at next: liveness.h */
    /* Calls done() of the requests on the channel's done list. */
    void (*finish)(struct loop *loop, struct channel *channel);
    /* Whether the requests on the channel's done list have to wait. NULL: they never have. */
    bool (*held_back)(const struct loop *loop, const struct channel *channel);
};

/*
 * Makes the epoll and adds the wake descriptor, whose data.ptr is the pager. The caller has set the other fields.
 * Returns 0 or -errno.
 */
int loop_open(struct loop *loop);
void loop_close(struct loop *loop);
/* Clears the wake descriptor, after epoll has reported it. */
void loop_take_wake(struct loop *loop);
/*
 * Finishes requests, sends what was queued, and connects channels again that are down and due. Returns whether a
 * channel is down whose donor is not gone. *held_back: whether a request waits on a done list.
 */
bool loop_service_channels(struct loop *loop, bool *held_back);
/* Looks whether the donors are alive. The requests of a connection that it breaks are on the done list afterwards. */
void loop_look_at_channels(struct loop *loop);

#endif
