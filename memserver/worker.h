/* SPDX-License-Identifier: MIT */
/*
 * A worker: one thread, one epoll, the connections that were given to it for life.
 *
 * How it waits for requests is adaptive (waiting.h). Where it spins, it tries the connections that it served last,
 * the "hot" ones: a connection that was just served is likely to send again soon.
 */
#ifndef GHOSTBOX_MEMSERVER_WORKER_H
#define GHOSTBOX_MEMSERVER_WORKER_H

#include "memserver/connection.h"
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
    int64_t handshake_limit_ms;
    int64_t scanned_at_ms;
    struct connection *hot[WORKER_HOT_MAX];
    unsigned n_hot;
    unsigned n_again; /* connections that can go on without an event */
    bool can_gather, gathers_always;
    struct connection *gathers[WORKER_GATHER_MAX]; /* those that wait for more than a byte */
    _Atomic unsigned n_gathers;                    /* read by the control thread, too */
    struct connection *tried;                      /* whose gathering is on trial */
    _Atomic uint64_t n_gathered; /* for the control thread: waits of gathering that ended in time, and that ran out */
    _Atomic uint64_t n_late;

    _Atomic unsigned n_connections;
    _Atomic unsigned n_handshaking;
    _Atomic unsigned n_demand; /* in the transmission phase with NBD_DEMAND_CONTEXT */
    pthread_mutex_t lock;      /* the list: the acceptor adds, the worker removes */
    struct connection *connections;

    _Alignas(64) struct counters counters;
};

/* Returns 0 or -errno. */
int worker_start(struct worker *worker, const struct options *options);
/* Closes all its connections. Allowed for a worker that was not started (all zero). */
void worker_stop(struct worker *worker);
/* Called by the acceptor. Takes fd over. Returns 0 or -errno (fd is closed). */
int worker_adopt(struct worker *worker, int fd, const char *peer, struct exports *exports);

#endif
