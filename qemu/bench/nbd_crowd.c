/* SPDX-License-Identifier: MIT */
/*
 * A crowd of difficult clients of an NBD server. A load that runs beside them shows how they affect other clients.
 *
 *   idle      choose an export and ask for nothing
 *   trickle   read 4 KiB ten times a second; these reads are counted, and all of them must be answered
 *   slow      ask for a MiB again and again, and receive 4 KiB ten times a second
 *   silent    never answer the greeting, and connect again when the server has closed the connection
 *   stuck     send half of a large write, and then nothing
 *   vanish    ask for 16 MiB twice a second, and close the connection without having read
 *
 * One thread serves the peers that are due, every millisecond, so that many peers cost it little.
 */
#include "bench.h"

#include "common/nbd_protocol.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define PEERS_MAX     10000u
#define TICK_NS       (1 * NS_PER_MS)
#define TRICKLE_BYTES 4096u
#define LARGE_BYTES   (1u << 20)
#define STUCK_BYTES   (512u << 10)
#define SLOW_BATCH    64
#define VANISH_BATCH  16
/* A slow peer's receive buffer: so small that the peer is slow from the start. */
#define SLOW_BUFFER_BYTES 32768

enum role { IDLE, TRICKLE, SLOW, SILENT, STUCK, VANISH, N_ROLES };

static const struct {
    const char *name;
    uint64_t period_ms;
} roles[N_ROLES] = {[IDLE] = {"idle", 1000},    [TRICKLE] = {"trickle", 100}, [SLOW] = {"slow", 100},
                    [SILENT] = {"silent", 500}, [STUCK] = {"stuck", 1000},    [VANISH] = {"vanish", 500}};

struct peer {
    enum role role;
    int fd;
    uint64_t due_ns;
    uint64_t export_bytes;
    uint64_t owed_bytes; /* bytes of a reply that are still to come */
    uint64_t n_served;
};

struct crowd {
    const char *host, *port, *export;
    struct peer *peers;
    uint64_t n_peers;
    uint64_t random;
    uint64_t n_asked, n_served, n_closed, n_vanished;
    uint8_t scratch[STUCK_BYTES];
};

static void peer_open(struct crowd *crowd, struct peer *peer)
{
    const char *failure = nbd_connect(crowd->host, crowd->port, &peer->fd);
    if (failure == NULL && peer->role == SLOW) {
        const int bytes = SLOW_BUFFER_BYTES;
        setsockopt(peer->fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
    }
    if (failure == NULL && peer->role != SILENT) {
        failure = nbd_negotiate(peer->fd, crowd->export, &peer->export_bytes);
    }
    if (failure == NULL && peer->role != SILENT && peer->export_bytes < LARGE_BYTES) {
        failure = "the export is smaller than a request";
    }
    if (failure != NULL) {
        fail("NBD server %s:%s: a %s peer: %s", crowd->host, crowd->port, roles[peer->role].name, failure);
    }
    peer->owed_bytes = 0;
}

static void peer_open_again(struct crowd *crowd, struct peer *peer)
{
    close(peer->fd);
    peer_open(crowd, peer);
}

/* Sends a request. Returns whether the socket has taken it. */
static bool request_send(struct crowd *crowd, const struct peer *peer, enum nbd_command command, uint32_t bytes)
{
    uint64_t n_places = peer->export_bytes / bytes;
    struct nbd_request request = {.magic = htobe32(NBD_REQUEST_MAGIC),
                                  .command = htobe16(command),
                                  .offset = htobe64(random_next(&crowd->random) % n_places * bytes),
                                  .length = htobe32(bytes)};
    return send(peer->fd, &request, sizeof(request), MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof(request);
}

static void stuck_begin(struct crowd *crowd, struct peer *peer)
{
    request_send(crowd, peer, NBD_CMD_WRITE, STUCK_BYTES);
    send(peer->fd, crowd->scratch, STUCK_BYTES / 2, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Receives a reply and sends the next request. A peer whose reply has not come sends none until a later turn. */
static void trickle_serve(struct crowd *crowd, struct peer *peer)
{
    while (peer->owed_bytes > 0) {
        uint64_t wanted = peer->owed_bytes < STUCK_BYTES ? peer->owed_bytes : STUCK_BYTES;
        ssize_t n = recv(peer->fd, crowd->scratch, wanted, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) {
            return;
        }
        if (n <= 0) {
            fail("NBD server %s:%s: a trickle peer: the server closed the connection", crowd->host, crowd->port);
        }
        peer->owed_bytes -= (uint64_t)n;
        if (peer->owed_bytes == 0) {
            peer->n_served++;
            crowd->n_served++;
        }
    }
    if (request_send(crowd, peer, NBD_CMD_READ, TRICKLE_BYTES)) {
        crowd->n_asked++;
        peer->owed_bytes = sizeof(struct nbd_simple_reply) + TRICKLE_BYTES;
    }
}

static void slow_serve(struct crowd *crowd, struct peer *peer)
{
    for (int i = 0; i < SLOW_BATCH && request_send(crowd, peer, NBD_CMD_READ, LARGE_BYTES); i++) {
    }
    if (recv(peer->fd, crowd->scratch, TRICKLE_BYTES, MSG_DONTWAIT) == 0) {
        crowd->n_closed++;
        peer_open_again(crowd, peer);
    }
}

static void silent_serve(struct crowd *crowd, struct peer *peer)
{
    ssize_t n;
    while ((n = recv(peer->fd, crowd->scratch, TRICKLE_BYTES, MSG_DONTWAIT)) > 0) {
    }
    if (n == 0 || errno != EAGAIN) {
        crowd->n_closed++;
        peer_open_again(crowd, peer);
    }
}

static void vanish_serve(struct crowd *crowd, struct peer *peer)
{
    if (peer->owed_bytes > 0) {
        crowd->n_vanished++;
        peer_open_again(crowd, peer);
        return;
    }
    for (int i = 0; i < VANISH_BATCH && request_send(crowd, peer, NBD_CMD_READ, LARGE_BYTES); i++) {
        peer->owed_bytes += LARGE_BYTES;
    }
}

static void peer_serve(struct crowd *crowd, struct peer *peer)
{
    switch (peer->role) {
    case TRICKLE:
        trickle_serve(crowd, peer);
        break;
    case SLOW:
        slow_serve(crowd, peer);
        break;
    case SILENT:
        silent_serve(crowd, peer);
        break;
    case VANISH:
        vanish_serve(crowd, peer);
        break;
    case IDLE:
    case STUCK:
    case N_ROLES:
        break;
    }
}

/* Connects all peers. Each has its own time in the period, so that they are not due all at once. */
static void crowd_open(struct crowd *crowd, const uint64_t counts[N_ROLES])
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    for (unsigned role = 0; role < N_ROLES; role++) {
        for (uint64_t i = 0; i < counts[role]; i++) {
            struct peer *peer = &crowd->peers[crowd->n_peers++];
            peer->role = (enum role)role;
            peer_open(crowd, peer);
            if (peer->role == STUCK) {
                stuck_begin(crowd, peer);
            }
            peer->due_ns = clock_ns() + i * roles[role].period_ms * NS_PER_MS / counts[role];
        }
    }
}

static void crowd_run(struct crowd *crowd, uint64_t ms)
{
    const struct timespec tick = {.tv_nsec = TICK_NS};
    uint64_t end_ns = clock_ns() + ms * NS_PER_MS;
    for (uint64_t now_ns = clock_ns(); now_ns < end_ns; now_ns = clock_ns()) {
        for (uint64_t i = 0; i < crowd->n_peers; i++) {
            struct peer *peer = &crowd->peers[i];
            if (peer->due_ns <= now_ns) {
                peer_serve(crowd, peer);
                peer->due_ns = now_ns + roles[peer->role].period_ms * NS_PER_MS;
            }
        }
        nanosleep(&tick, NULL);
    }
}

static json_t *result_make(const struct crowd *crowd)
{
    uint64_t least_served = UINT64_MAX;
    for (uint64_t i = 0; i < crowd->n_peers; i++) {
        const struct peer *peer = &crowd->peers[i];
        if (peer->role == TRICKLE && peer->n_served < least_served) {
            least_served = peer->n_served;
        }
    }
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I}", "connections", (json_int_t)crowd->n_peers, "asked",
                     (json_int_t)crowd->n_asked, "served", (json_int_t)crowd->n_served, "least_served",
                     (json_int_t)(least_served == UINT64_MAX ? 0 : least_served), "closed",
                     (json_int_t)crowd->n_closed, "vanished", (json_int_t)crowd->n_vanished);
}

json_t *nbd_crowd(struct arguments *args)
{
    struct crowd *crowd = calloc(1, sizeof(*crowd));
    if (crowd == NULL) {
        fail("out of memory");
    }
    memset(crowd->scratch, 0x5a,
           sizeof(crowd->scratch)); /* as `load` writes, so that an export stays as it filled it */
    crowd->host = argument_text(args, "host", "127.0.0.1");
    crowd->port = argument_text(args, "port", "10809");
    crowd->export = argument_text(args, "export", "");
    crowd->random = random_start(1);
    uint64_t ms = argument_number(args, "ms", 1000, MS_MAX);
    uint64_t counts[N_ROLES];
    uint64_t n = 0;
    for (unsigned role = 0; role < N_ROLES; role++) {
        counts[role] = argument_number(args, roles[role].name, 0, PEERS_MAX);
        n += counts[role];
    }
    arguments_check(args);
    crowd->peers = calloc(n > 0 ? n : 1, sizeof(*crowd->peers));
    if (crowd->peers == NULL) {
        fail("out of memory");
    }
    crowd_open(crowd, counts);
    crowd_run(crowd, ms);
    json_t *result = result_make(crowd);
    free(crowd->peers);
    free(crowd);
    return result;
}
