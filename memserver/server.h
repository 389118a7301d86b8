/* SPDX-License-Identifier: MIT */
/* The memory server: its exports, listening sockets and workers. There is one in a process. */
#ifndef GHOSTBOX_MEMSERVER_SERVER_H
#define GHOSTBOX_MEMSERVER_SERVER_H

#include "memserver/exports.h"
#include "memserver/handshakes.h"
#include "memserver/keys.h"
#include "memserver/listeners.h"
#include "memserver/options.h"
#include "memserver/worker.h"

struct server {
    const struct options *options;
    struct exports exports;
    struct keys keys;       /* of --tls-psk */
    struct worker *workers; /* options->n_threads of them */
    struct listeners listeners;
    struct handshakes handshakes;
    int quit_fd; /* eventfd that the command `shutdown` writes to */
    int64_t started_at_ms;
    int64_t refused_said_at_ms, room_said_at_ms;
    unsigned next_worker;
    atomic_bool sandboxed; /* the list of system calls is in force (common/sandbox.h) */
};

/* Creates the exports, listens, and starts the workers. Returns 0, or -errno after it has logged why. */
int server_open(struct server *server, const struct options *options);
/* Accepts connections until signal_fd is readable or server_quit() is called. Main thread only. */
void server_run(struct server *server, int signal_fd);
/* Makes server_run() return. May be called in any thread. */
void server_quit(struct server *server);
/* Stops the workers, closes all connections and sockets, and frees all exports. Main thread only. */
void server_close(struct server *server);

/* How many connections are open. May be called in any thread. */
unsigned server_connections(const struct server *server);

#endif
