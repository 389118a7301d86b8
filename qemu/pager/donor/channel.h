/* SPDX-License-Identifier: MIT */
/*
 * A donor's connections: requests, events, and what happens when a connection breaks. donor.h has the theory. All
 * functions run on the channel's thread.
 */
#ifndef GHOSTBOX_PAGER_CHANNEL_H
#define GHOSTBOX_PAGER_CHANNEL_H

#include "donor/donor.h"

/* Makes a channel of this class, in this state. No loop polls it yet. */
void channel_init(struct channel *channel, struct donor *donor, enum channel_class class, enum channel_state state);

/*
 * Each starts a request of `bytes` bytes at `offset` of the export. Returns 0 if the request will appear on the done
 * list, or -errno if it will not.
 */
int channel_read(struct channel *channel, struct request *request, void *buf, uint32_t bytes, uint64_t offset);
int channel_write(struct channel *channel, struct request *request, const void *buf, uint32_t bytes, uint64_t offset);
int channel_trim(struct channel *channel, struct request *request, uint32_t bytes, uint64_t offset);
/*
 * Sends a heartbeat, which is a read whose bytes are ignored, unless a heartbeat is under way. `carries` says that it
 * reads a page that is no hole.
 */
void channel_beat(struct channel *channel, int epoll_fd, uint32_t bytes, uint64_t offset, bool carries);

/*
 * Called after the negotiation: from now on wire.c moves the bytes, unless libnbd has to (--libnbd). Returns 0, or
 * -ENOMEM where libnbd cannot (TLS).
 */
int channel_go_direct(struct channel *channel);
/* Sends what was queued. Requests may appear on the done list if the connection breaks. */
void channel_flush(struct channel *channel, int epoll_fd);
/* Receives what has come, without asking epoll first. Does nothing where libnbd moves the bytes. */
void channel_receive(struct channel *channel, int epoll_fd);
/* Registers the connection with an epoll, or updates which events the epoll reports; data.ptr is the channel. */
void channel_poll(struct channel *channel, int epoll_fd);
/* Handles EPOLL* events: moves bytes, finishes requests, notices a dead peer. */
void channel_service(struct channel *channel, int epoll_fd, uint32_t events);
/* Closes the connection of a donor that was removed. */
void channel_retire(struct channel *channel, int epoll_fd);
/* Starts to connect again if the channel is DOWN, the time for it has come and the donor is not gone. */
void channel_revive(struct channel *channel, int epoll_fd, uint64_t now_ns);
/* Publishes the channel's state for other threads; a barren channel is published as connecting. */
void channel_publish(struct channel *channel);
/* Closes the connection: all requests under way fail. `why` is the reason for people. */
void channel_break(struct channel *channel, int epoll_fd, const char *why);
/* Takes the next request off the done list. Returns NULL if the list is empty. */
struct request *channel_done(struct channel *channel);

#endif
