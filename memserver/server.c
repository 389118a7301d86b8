/* SPDX-License-Identifier: MIT */
#include "memserver/server.h"

#include "common/log.h"
#include "common/page_memory.h"
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

/* Descriptors beside connections: listening and control sockets, an epoll and an eventfd for each worker, the log. */
#define FDS_RESERVED 256u
/* How long the server pauses when no descriptor or memory is left to accept a connection. */
#define ACCEPT_PAUSE_MS 100
#define REFUSED_SAY_MS  1000
/* So many connections more than --max-connections there may be for a moment, while others are closed to make room. */
#define CLOSING_MAX 16u
/* Keepalive probes begin after half of --peer-timeout without a packet; then there are three, a sixth of it apart. */
#define KEEPALIVE_COUNT 3
/*
 * The most that the kernel queues of an answer before it is sent. Without this limit a slow reader has up to 4 MiB
 * queued (50 of them took 210 MB of the donor's memory; with it they took 27 MB). A short queue is also still in the
 * processor's cache when it is sent, which makes large reads faster.
 */
#define UNSENT_MAX_BYTES (256 << 10)
/* The most that is mapped for one thread: its stack and an arena of malloc (128 MiB, of which little is used). */
#define THREAD_BYTES (136ull << 20)

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

/*
 * Locks the process's memory, as --lock-memory asks, before any memory is lent: what the limit allows now can be
 * locked later. Beside the exports there are their bitmaps, the connections' buffers, their TLS sessions if there are
 * keys at the start, and the stacks and heaps of the threads. Returns 0, or -errno after it has logged why.
 */
static int memory_lock(const struct options *options)
{
    char text[512];
    uint64_t tls_bytes = options->keys_path != NULL || options->tls == TLS_REQUIRE ? tls_session_bytes() : 0;
    uint64_t bytes = options->size_bytes + options->size_bytes / STORE_PAGE_BYTES / 8 +
                     ((uint64_t)options->max_connections + CLOSING_MAX) * (sizeof(struct connection) + tls_bytes) +
                     (options->n_threads + 2ull) * THREAD_BYTES;
    int rc = options->lock_memory ? page_memory_lock(bytes, text, sizeof(text)) : 0;
    if (rc < 0) {
        log_error("%s", text);
    }
    return rc;
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

/* Applies --tls and --tls-psk. */
static int keys_open(struct server *server)
{
    char text[512];
    server->exports.tls_required = server->options->tls == TLS_REQUIRE;
    int rc = keys_read(&server->keys, server->options->keys_path, text, sizeof(text));
    if (rc < 0) {
        log_error("--tls-psk: %s", text);
    }
    return rc;
}

static int export_create(struct server *server, const struct export_option *option)
{
    char asked[SIZE_TEXT_BYTES];
    char left[SIZE_TEXT_BYTES];
    uint64_t free_bytes = 0;
    int rc = export_add(&server->exports, option->name, option->size_bytes, keys_find(&server->keys, option->name),
                        NULL, &free_bytes);
    if (rc == -ENOKEY) {
        log_error("export '%s' has no key in --tls-psk, and --tls require demands one for each export", option->name);
    } else if (rc == -ENOSPC) {
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
        int rc = worker_start(&server->workers[i], options, &server->handshakes);
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
    int rc = memory_lock(options);
    rc = rc < 0 ? rc : keys_open(server);
    rc = rc < 0 ? rc
                : handshakes_open(&server->handshakes, options->max_handshakes, options->max_handshakes_per_address);
    if (rc < 0) {
        goto fail;
    }
    rc = -ENOMEM;
    /* Aligned, because the workers' counters have cache lines of their own. */
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

/*
 * Keepalive notices a client that vanished while no answer was under way to it. The user timeout notices a client
 * that vanished, or stopped reading, while an answer was under way (tcp(7); by default the kernel would go on for a
 * quarter of an hour if the client vanished, and for ever if it does not read).
 */
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

/* Chooses the worker with the fewest connections; workers with as few take turns. */
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

/* Whether one more connection may be open. One that has opened no export is closed for it if need be. */
static bool room_make(struct server *server)
{
    unsigned n = server_connections(server);
    unsigned max = server->options->max_connections;
    return n < max || (n < max + CLOSING_MAX && handshakes_evict(&server->handshakes));
}

/* Logs that connections were closed to make room for that of a client, once a second at most. */
static void room_say(struct server *server, enum handshakes_room room, const char *peer)
{
    const struct options *options = server->options;
    int64_t now_ms = clock_coarse_ms();
    if (room == HANDSHAKES_FREE || now_ms - server->room_said_at_ms < REFUSED_SAY_MS) {
        return;
    }
    server->room_said_at_ms = now_ms;
    if (room == HANDSHAKES_OF_ADDRESS) {
        log_warning("%s: its address has over %u connections that have opened no export: the oldest are closed "
                    "(--max-handshakes-per-address)",
                    peer, options->max_handshakes_per_address);
    } else {
        log_warning("over %u connections have opened no export: the oldest are closed, of the address with most "
                    "(--max-handshakes)",
                    options->max_handshakes);
    }
}

/* Accepts one connection and gives it to a worker. Returns 0 or the errno of accept4(). */
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
    if (!room_make(server)) {
        connection_refuse(server, fd, peer);
        return 0;
    }
    socket_tune(fd, server->options->peer_limit_s);
    struct newcomer newcomer = {.fd = fd, .peer = peer, .address = (struct sockaddr *)&address};
    enum handshakes_room room;
    int rc = worker_adopt(worker_choose(server), &newcomer, &server->exports, &room);
    room_say(server, room, peer);
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
            /* The listening socket stays readable: without a pause this would be a busy loop. */
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
    handshakes_close(&server->handshakes);
    exports_close(&server->exports);
    keys_free(&server->keys);
}
