/* SPDX-License-Identifier: MIT */
/*
 * Connections whose clients have opened no export yet. Anybody who reaches the port can have such connections, so
 * they have limits of their own, for each address and in all. A new connection is never refused for them: an older
 * one is closed to make room, so that a client that goes on with its handshake is served while others stop half-way.
 *
 *  - If an address has more than its limit, the oldest connection of that address is closed.
 *  - If there are more in all, or no connection is left (--max-connections), the oldest connection of the address
 * that has most is closed, so that addresses with few are not touched.
 *
 * Addresses of IPv6 count by their first 64 bits, because one machine may use all of a network's addresses.
 *
 * The main thread lists connections; the worker of a connection takes it off the list. A connection is closed by
 * shutdown(2), which its worker notices.
 */
#ifndef GHOSTBOX_MEMSERVER_HANDSHAKES_H
#define GHOSTBOX_MEMSERVER_HANDSHAKES_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#define HANDSHAKE_ADDRESS_BYTES 16

/* The place of one connection in the list. It is a part of its connection. */
struct handshake {
    struct handshakes *list; /* NULL: the connection was never listed */
    int fd;
    uint8_t address[HANDSHAKE_ADDRESS_BYTES];
    struct handshake *next, **link; /* link is NULL if the connection is not listed */
};

/* The connections of one address, the oldest first. */
struct handshake_group {
    unsigned n; /* 0: the group is free */
    struct handshake *first, **last;
};

struct handshakes {
    pthread_mutex_t lock;
    unsigned limit, address_limit;
    struct handshake_group *groups; /* `limit` + 1 of them */
    unsigned n_groups;              /* groups[0, n_groups) are in use, or free */
    _Atomic unsigned n;             /* connections that are listed */
    _Atomic uint64_t n_closed;      /* connections that were closed to make room */
};

/* What had to be closed to make room. */
enum handshakes_room { HANDSHAKES_FREE, HANDSHAKES_OF_ADDRESS, HANDSHAKES_OF_ALL };

/*
 * Takes a connection off its list, when its client has opened an export: before the client is told so, since from
 * then on it may not be closed to make room. May be called in any thread.
 */
void handshake_done(struct handshake *entry);

/* Makes an empty list. Returns 0 or -ENOMEM. */
int handshakes_open(struct handshakes *handshakes, unsigned limit, unsigned address_limit);
/* No connection may be listed. A list that was not opened (all zero) is allowed. */
void handshakes_close(struct handshakes *handshakes);

/* Lists a connection, and closes others if there are too many. Main thread only. */
enum handshakes_room handshakes_enter(struct handshakes *handshakes, struct handshake *entry, int fd,
                                      const struct sockaddr *address);
/*
 * Takes a connection off the list; does nothing if it is not listed. It must have been called before the socket is
 * closed. May be called in any thread.
 */
void handshakes_leave(struct handshakes *handshakes, struct handshake *entry);
/* Closes a connection to make room. Returns false if none is listed. Main thread only. */
bool handshakes_evict(struct handshakes *handshakes);

#endif
