/* SPDX-License-Identifier: MIT */
/* The listening socket and the workers. One per process. */
#ifndef GHOSTBOX_MEMSERVER_SERVER_H
#define GHOSTBOX_MEMSERVER_SERVER_H

#include "memserver/exports.h"
#include "memserver/options.h"
#include "memserver/worker.h"

#define SERVER_HOST_BYTES 64

struct server {
    const struct options *options;
    struct exports exports;
    struct worker *workers; /* options->n_threads of them */
    int listen_fd;
    int quit_fd; /* eventfd: the `shutdown` command */
    char host[SERVER_HOST_BYTES];
    unsigned port;
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
