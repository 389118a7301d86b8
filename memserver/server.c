/* SPDX-License-Identifier: MIT */
#include "memserver/server.h"

#include "common/log.h"
#include "common/size.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* Besides connections: listening and control sockets, an epoll and an eventfd a worker, the log. */
#define FDS_RESERVED 256u
/* How long accepting pauses when there is no descriptor left for it. */
#define ACCEPT_PAUSE_MS 100
#define REFUSED_SAY_MS  1000
/* Half of --peer-timeout without a word, then three times a sixth of it. */
#define KEEPALIVE_COUNT 3
/* What of an answer lies in the kernel besides what is on its way: without a limit up to 4 MiB for a slow reader (50
 * of them took 210 MB of the donor, and 27 with it). And a short queue is still in the processor's cache when it is
 * sent: large reads are faster by it. */
#define UNSENT_MAX_BYTES (256 << 10)

unsigned server_connections(const struct server *server)
{
    unsigned n = 0;
    for (unsigned i = 0; i < server->options->n_threads; i++) {
        n += atomic_load(&server->workers[i].n_connections);
    }
    return n;
}

static void fd_limit_raise(unsigned max_connections)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) {
        return;
    }
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < max_connections + FDS_RESERVED) {
        log_warning("open files are limited to %llu: fewer than %u connections may fit (ulimit -n)",
                    (unsigned long long)limit.rlim_cur, max_connections);
    }
}

static int server_listen(struct server *server)
{
    char text[256];
    int rc = listeners_open(&server->listeners);
    if (rc == 0) {
        rc =
            listeners_add(&server->listeners, server->options->bind, server->options->port, true, text, sizeof(text));
    } else {
        snprintf(text, sizeof(text), "cannot listen: %s", strerror(-rc));
    }
    if (rc < 0) {
        log_error("%s", text);
    }
    return rc;
}

static int export_create(struct server *server, const struct export_option *option)
{
    char asked[SIZE_TEXT_BYTES];
    char left[SIZE_TEXT_BYTES];
    uint64_t free_bytes = 0;
    int rc = export_add(&server->exports, option->name, option->size_bytes, &free_bytes);
    if (rc == -ENOSPC) {
        log_error("export '%s': %s asked, but only %s of --size are left", option->name,
                  size_format(asked, option->size_bytes), size_format(left, free_bytes));
    } else if (rc == -EEXIST) {
        log_error("export '%s' is given twice", option->name);
    } else if (rc < 0) {
        log_error("export '%s': %s", option->name, strerror(-rc));
    }
    return rc;
}

static int workers_start(struct server *server)
{
    const struct options *options = server->options;
    for (unsigned i = 0; i < options->n_threads; i++) {
        int rc = worker_start(&server->workers[i], options);
        if (rc < 0) {
            log_error("cannot start worker %u: %s", i, strerror(-rc));
            return rc;
        }
    }
    return 0;
}

int server_open(struct server *server, const struct options *options)
{
    *server = (struct server){
        .options = options, .listeners = {.wake_fd = -1}, .quit_fd = -1, .started_at_ms = clock_coarse_ms()};
    exports_open(&server->exports, options->size_bytes);
    server->exports.donor_id = options->donor_id;
    server->exports.machine = options->machine;
    int rc = -ENOMEM;
    /* Counters have cache lines of their own. */
    server->workers = aligned_alloc(_Alignof(struct worker), options->n_threads * sizeof(struct worker));
    if (server->workers == NULL) {
        goto fail;
    }
    memset(server->workers, 0, options->n_threads * sizeof(struct worker));
    for (unsigned i = 0; i < options->n_exports; i++) {
        rc = export_create(server, &options->exports[i]);
        if (rc < 0) {
            goto fail;
        }
    }
    fd_limit_raise(options->max_connections);
    server->quit_fd = eventfd(0, EFD_CLOEXEC);
    if (server->quit_fd < 0) {
        rc = -errno;
        goto fail;
    }
    rc = server_listen(server);
    if (rc == 0) {
        rc = workers_start(server);
    }
    if (rc == 0) {
        return 0;
    }
fail:
    server_close(server);
    return rc;
}

void server_quit(struct server *server)
{
    if (eventfd_write(server->quit_fd, 1) < 0) {
        log_error("cannot stop: %s", strerror(errno));
    }
}

/* Keepalive notices a peer that vanished while nothing was owed to it; the user timeout one that vanished, or stopped
 * taking anything, with an answer pending (tcp(7); without it that would take a quarter of an hour, or for ever). */
static void socket_tune(int fd, unsigned peer_limit_s)
{
    const int on = 1;
    const int idle_s = (int)(peer_limit_s / 2 > 0 ? peer_limit_s / 2 : 1);
    const int interval_s = (int)(peer_limit_s / 6 > 0 ? peer_limit_s / 6 : 1);
    const int count = KEEPALIVE_COUNT;
    const int unsent_max = UNSENT_MAX_BYTES;
    const unsigned peer_limit_ms = peer_limit_s * 1000;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent_max, sizeof(unsent_max));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &peer_limit_ms, sizeof(peer_limit_ms));
}

/* The one with the fewest connections; of equals, each in turn. */
static struct worker *worker_choose(struct server *server)
{
    unsigned n = server->options->n_threads;
    unsigned start = server->next_worker++;
    struct worker *best = &server->workers[start % n];
    for (unsigned i = 1; i < n; i++) {
        struct worker *other = &server->workers[(start + i) % n];
        if (atomic_load(&other->n_connections) < atomic_load(&best->n_connections)) {
            best = other;
        }
    }
    return best;
}

static void connection_refuse(struct server *server, int fd, const char *peer)
{
    close(fd);
    int64_t now_ms = clock_coarse_ms();
    if (now_ms - server->refused_said_at_ms >= REFUSED_SAY_MS) {
        server->refused_said_at_ms = now_ms;
        log_warning("%s: refused: %u connections are open (--max-connections)", peer,
                    server->options->max_connections);
    }
}

/* Returns 0 or the errno of accept. */
static int server_accept(struct server *server, int listen_fd)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);
    int fd = accept4(listen_fd, (struct sockaddr *)&address, &length, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        return errno;
    }
    char host[HOST_BYTES];
    char peer[CONNECTION_PEER_BYTES];
    unsigned port;
    address_format((struct sockaddr *)&address, length, host, sizeof(host), &port);
    snprintf(peer, sizeof(peer), "%.50s port %u", host, port);
    if (server_connections(server) >= server->options->max_connections) {
        connection_refuse(server, fd, peer);
        return 0;
    }
    socket_tune(fd, server->options->peer_limit_s);
    int rc = worker_adopt(worker_choose(server), fd, peer, &server->exports);
    if (rc < 0) {
        log_error("%s: cannot serve: %s", peer, strerror(-rc));
    }
    return 0;
}

/* Accepts one connection of each listening socket that has one. Returns 0 or the errno of an accept. */
static int accept_all(struct server *server, const struct pollfd *fds, unsigned n_fds)
{
    int error = 0;
    for (unsigned i = 0; i < n_fds; i++) {
        int rc = fds[i].revents != 0 ? server_accept(server, fds[i].fd) : 0;
        error = rc != 0 ? rc : error;
    }
    return error;
}

void server_run(struct server *server, int signal_fd)
{
    struct pollfd fds[2 + 1 + LISTENERS_MAX] = {{.fd = signal_fd, .events = POLLIN},
                                                {.fd = server->quit_fd, .events = POLLIN}};
    for (;;) {
        unsigned n = listeners_poll(&server->listeners, fds + 2);
        if (poll(fds, 2 + n, -1) < 0) {
            continue;
        }
        if (fds[0].revents != 0 || fds[1].revents != 0) {
            return;
        }
        int rc = accept_all(server, fds + 3, n - 1);
        if (rc == EMFILE || rc == ENFILE || rc == ENOBUFS || rc == ENOMEM) {
            log_error("cannot accept a connection: %s", strerror(rc));
            /* It stays readable: without a pause this would be a busy loop. */
            poll(fds, 2, ACCEPT_PAUSE_MS);
        }
    }
}

void server_close(struct server *server)
{
    for (unsigned i = 0; server->workers != NULL && i < server->options->n_threads; i++) {
        worker_stop(&server->workers[i]);
    }
    free(server->workers);
    listeners_close(&server->listeners);
    if (server->quit_fd >= 0) {
        close(server->quit_fd);
    }
    exports_close(&server->exports);
}
