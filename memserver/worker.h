/* SPDX-License-Identifier: MIT */
/*
 * A worker: one thread, one epoll, and connections, which stay with their worker for life.
 *
 * While the connections of a worker are of one client, it serves them as their events come. While they are of several
 * clients, it queues those that are ready, serves one visit of one client's lane (fair.h), and looks for events
 * again.
 *
 * The worker adapts how it waits for requests (waiting.h). When it spins, it tries the connections that it served
 * last, the "hot" ones: a connection that was just served is likely to send again soon.
 */
#ifndef GHOSTBOX_MEMSERVER_WORKER_H
#define GHOSTBOX_MEMSERVER_WORKER_H

#include "memserver/connection.h"
#include "memserver/delays.h"
#include "memserver/fair.h"
#include "memserver/options.h"
#include "memserver/waiting.h"

#include <pthread.h>

#define WORKER_HOT_MAX    8u
#define WORKER_GATHER_MAX 16u

struct worker {
    pthread_t thread;
    int epoll_fd;
    int stop_fd;
    bool stopping;
    bool started;
    struct waiting waiting;
    struct handshakes *handshakes;
    int64_t handshake_limit_ms;
    int64_t scanned_at_ms;
    struct fair fair;            /* connections that are ready, while clients share the worker */
    uint64_t contended_until_ns; /* until then the worker does not spin: connections of several clients were ready */
    struct connection *hot[WORKER_HOT_MAX];
    unsigned n_hot;
    unsigned n_again; /* connections that can go on without an event */
    struct delays delays;
    bool can_gather, gathers_always;
    struct connection *gathers[WORKER_GATHER_MAX]; /* connections that wait for more than a byte */
    _Atomic unsigned n_gathers;                    /* the control thread reads it, too */
    struct connection *tried;                      /* the connection that tries gathering; NULL: none does */
    _Atomic uint64_t n_gathered;                   /* waits of gathering that ended in time; for the control thread */
    _Atomic uint64_t n_late;                       /* waits of gathering that ran out; for the control thread */

    _Atomic unsigned n_connections;
    _Atomic unsigned n_handshaking;
    _Atomic unsigned n_demand; /* connections in the transmission phase with NBD_DEMAND_CONTEXT */
    pthread_mutex_t lock;      /* guards the list of connections: the main thread adds, the worker removes */
    struct connection *connections;

    _Alignas(64) struct counters counters;
};

/* A socket that was just accepted. */
struct newcomer {
    int fd;
    const char *peer; /* its address and port for people */
    const struct sockaddr *address;
};

/* Starts the worker's thread. Returns 0 or -errno. Main thread only, as the other two. */
int worker_start(struct worker *worker, const struct options *options, struct handshakes *handshakes);
/* Ends the thread, which closes all its connections. A worker that was not started (all zero) is allowed. */
void worker_stop(struct worker *worker);
/*
 * Gives the worker a connection, which owns the socket, and lists it among the handshakes; *room is what had to be
 * closed for that. Returns 0, or -errno after it has closed the socket.
 */
int worker_adopt(struct worker *worker, const struct newcomer *newcomer, struct exports *exports,
                 enum handshakes_room *room);

#endif
