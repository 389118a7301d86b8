/* SPDX-License-Identifier: MIT */
/* The listening sockets and the workers. One per process. */
#ifndef GHOSTBOX_MEMSERVER_SERVER_H
#define GHOSTBOX_MEMSERVER_SERVER_H

#include "memserver/exports.h"
#include "memserver/listeners.h"
#include "memserver/options.h"
#include "memserver/worker.h"

struct server {
    const struct options *options;
    struct exports exports;
    struct worker *workers; /* options->n_threads of them */
    struct listeners listeners;
    int quit_fd; /* eventfd: the `shutdown` command */
    int64_t started_at_ms;
    int64_t refused_said_at_ms;
    unsigned next_worker;
};

/* Creates the exports, listens, starts the workers. On failure it has logged why, and returns -errno. */
int server_open(struct server *server, const struct options *options);
/* Accepts connections until signal_fd is readable or `shutdown` comes. */
void server_run(struct server *server, int signal_fd);
void server_quit(struct server *server);
void server_close(struct server *server);

unsigned server_connections(const struct server *server);

#endif
