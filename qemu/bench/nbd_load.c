/* SPDX-License-Identifier: MIT */
/*
 * A lean NBD load: it sends requests and does nothing else, so that the server is the limit.
 *
 * Each connection has a thread that keeps `depth` requests of `bytes` in flight: it receives as much as there is, and
 * sends one request for each whole reply in it, all at once. It asks for simple replies. With `poll_us` it waits as
 * the pager does: before it sleeps it polls for poll_us, and yields the processor after each poll. With `keys` it
 * speaks TLS.
 */
#include "bench.h"
#include "nbd_tls.h"

#include "common/histogram.h"
#include "common/nbd_protocol.h"

#include <endian.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define DEPTH_MAX        256u
#define BYTES_MAX        (32u << 20)
#define CONNECTIONS_MAX  64u
#define SHORT_BYTES      512u
#define SILENCE_MAX_S    5
#define SILENCE_MAX_TEXT "5 s"
#define IN_BYTES         (256u << 10)

struct plan {
    const char *host, *port, *export;
    const char *keys; /* the file with the export's key, for TLS; "": the load does without TLS */
    uint64_t depth, request_bytes, n_connections, ms;
    uint64_t first;      /* if sequential: the request with which each connection begins */
    uint64_t span_bytes; /* how much of the export, from its start, requests are for; 0: all of it */
    uint64_t poll_us;
    bool writes, sequential;
    uint64_t stop_at_ns;
    const uint8_t *payload;
};

struct load {
    const struct plan *plan;
    pthread_t thread;
    int fd;
    struct tls *tls;     /* NULL: the load does without TLS */
    const char *failure; /* what failed; NULL: nothing did */
    uint64_t export_bytes;
    uint64_t random;
    uint64_t position;
    uint64_t n_done, n_in_flight, n_receives, n_sends;
    uint64_t started_ns[DEPTH_MAX];
    struct nbd_request requests[DEPTH_MAX];
    uint32_t n_queued; /* requests[0, n_queued) are not sent yet */
    uint8_t *in;
    uint32_t in_used;
    bool in_reply;       /* the header of a reply has come, but not all of its data */
    uint64_t reply_slot; /* the slot of that reply's request */
    uint64_t skip_bytes; /* bytes of that reply's data that are still to come */
    struct histogram latency;
};

static int load_fail(struct load *load, const char *what)
{
    load->failure = what;
    return -1;
}

static int all_receive(int fd, void *buffer, size_t bytes)
{
    return recv(fd, buffer, bytes, MSG_WAITALL) == (ssize_t)bytes ? 0 : -1;
}

int nbd_send(int fd, struct iovec *iov, int n)
{
    while (n > 0) {
        int batch = n < 1024 ? n : 1024;
        ssize_t sent = writev(fd, iov, batch);
        if (sent < 0) {
            return -1;
        }
        while (n > 0 && (size_t)sent >= iov->iov_len) {
            sent -= (ssize_t)iov->iov_len;
            iov++;
            n--;
        }
        if (n > 0) {
            iov->iov_base = (uint8_t *)iov->iov_base + sent;
            iov->iov_len -= (size_t)sent;
        }
    }
    return 0;
}

/*
 * Connects to one address, with a timeout, as one of several may be dead. It also applies to later sends and
 * receives.
 */
static int connect_one(const struct addrinfo *address)
{
    const struct timeval limit = {.tv_sec = SILENCE_MAX_S};
    const int on = 1;
    int fd = socket(address->ai_family, SOCK_STREAM, 0);
    if (fd < 0) {
        return -1;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)); /* it applies to connect(), too: socket(7) */
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (connect(fd, address->ai_addr, address->ai_addrlen) == 0) {
        return fd;
    }
    close(fd);
    return -1;
}

const char *nbd_connect(const char *host, const char *port, int *fd)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *addresses;
    *fd = -1;
    if (getaddrinfo(host, port, &hints, &addresses) != 0) {
        return "no such address";
    }
    for (const struct addrinfo *address = addresses; address != NULL && *fd < 0; address = address->ai_next) {
        *fd = connect_one(address);
    }
    freeaddrinfo(addresses);
    return *fd < 0 ? "cannot connect" : NULL;
}

const char *nbd_negotiate(int fd, const char *export, uint64_t *export_bytes)
{
    struct nbd_greeting greeting;
    const uint32_t flags = htobe32(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
    uint32_t name_bytes = (uint32_t)strlen(export);
    struct nbd_option_header option = {
        .magic = htobe64(NBD_OPTION_MAGIC), .option = htobe32(NBD_OPT_EXPORT_NAME), .length = htobe32(name_bytes)};
    struct iovec iov[] = {{(void *)(uintptr_t)&flags, sizeof(flags)},
                          {&option, sizeof(option)},
                          {(void *)(uintptr_t) export, name_bytes}};
    struct {
        uint64_t size_bytes;
        uint16_t flags;
    } NBD_PACKED reply;
    if (all_receive(fd, &greeting, sizeof(greeting)) < 0 || be64toh(greeting.magic) != NBD_MAGIC ||
        nbd_send(fd, iov, 3) < 0 || all_receive(fd, &reply, sizeof(reply)) < 0) {
        return "the handshake failed";
    }
    *export_bytes = be64toh(reply.size_bytes);
    return NULL;
}

static int load_open(struct load *load)
{
    const struct plan *plan = load->plan;
    load->failure = nbd_connect(plan->host, plan->port, &load->fd);
    if (load->failure == NULL && *plan->keys != '\0') {
        load->failure = nbd_negotiate_sealed(load->fd, plan->keys, plan->export, SILENCE_MAX_S * 1000, &load->tls,
                                             &load->export_bytes);
    } else if (load->failure == NULL) {
        load->failure = nbd_negotiate(load->fd, plan->export, &load->export_bytes);
    }
    if (load->failure == NULL && load->export_bytes < plan->request_bytes) {
        load->failure = "the export is smaller than a request";
    }
    return load->failure == NULL ? 0 : -1;
}

/* Whether the server answers a request whose answer fits into any packet, on a new connection. */
static bool short_is_answered(const struct plan *plan)
{
    const struct nbd_request request = {
        .magic = htobe32(NBD_REQUEST_MAGIC), .command = htobe16(NBD_CMD_READ), .length = htobe32(SHORT_BYTES)};
    uint8_t reply[sizeof(struct nbd_simple_reply) + SHORT_BYTES];
    struct iovec iov = {(void *)(uintptr_t)&request, sizeof(request)};
    uint64_t export_bytes;
    int fd;
    bool answered = nbd_connect(plan->host, plan->port, &fd) == NULL &&
                    nbd_negotiate(fd, plan->export, &export_bytes) == NULL && nbd_send(fd, &iov, 1) == 0 &&
                    all_receive(fd, reply, sizeof(reply)) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return answered;
}

/* Writes the failure of a send or receive, by errno, and returns -1. */
static int load_broke(struct load *load, const char *what)
{
    if (errno != EAGAIN && errno != ETIMEDOUT) {
        return load_fail(load, what);
    }
    if (load->n_done == 0 && short_is_answered(load->plan)) {
        return load_fail(load, "short requests are answered, pages are not: is the MTU the same on the whole way?");
    }
    return load_fail(load, "no answer for " SILENCE_MAX_TEXT);
}

static uint64_t offset_next(struct load *load)
{
    uint64_t span = load->plan->span_bytes;
    uint64_t n_places = (span && span < load->export_bytes ? span : load->export_bytes) / load->plan->request_bytes;
    uint64_t place = load->plan->sequential ? load->position++ : random_next(&load->random);
    return place % n_places * load->plan->request_bytes;
}

static void request_queue(struct load *load, uint64_t slot, uint64_t now_ns)
{
    load->requests[load->n_queued++] =
        (struct nbd_request){.magic = htobe32(NBD_REQUEST_MAGIC),
                             .command = htobe16(load->plan->writes ? NBD_CMD_WRITE : NBD_CMD_READ),
                             .cookie = slot,
                             .offset = htobe64(offset_next(load)),
                             .length = htobe32((uint32_t)load->plan->request_bytes)};
    load->started_ns[slot] = now_ns;
    load->n_in_flight++;
}

static int requests_send(struct load *load)
{
    if (load->n_queued == 0) {
        return 0;
    }
    struct iovec iov[2 * DEPTH_MAX];
    int n = 0;
    if (load->plan->writes) {
        for (uint32_t i = 0; i < load->n_queued; i++) {
            iov[n++] = (struct iovec){&load->requests[i], sizeof(load->requests[i])};
            iov[n++] = (struct iovec){(void *)(uintptr_t)load->plan->payload, load->plan->request_bytes};
        }
    } else {
        iov[n++] = (struct iovec){load->requests, load->n_queued * sizeof(load->requests[0])};
    }
    load->n_queued = 0;
    load->n_sends++;
    int rc = load->tls != NULL ? sealed_send(load->tls, load->fd, iov, n, SILENCE_MAX_S * 1000)
                               : nbd_send(load->fd, iov, n);
    return rc < 0 ? load_broke(load, "cannot send") : 0;
}

static void reply_done(struct load *load, uint64_t slot, uint64_t now_ns)
{
    histogram_add(&load->latency, now_ns - load->started_ns[slot]);
    load->n_done++;
    load->n_in_flight--;
    if (now_ns < load->plan->stop_at_ns) {
        request_queue(load, slot, now_ns);
    }
}

static int replies_parse(struct load *load)
{
    uint32_t at = 0;
    uint64_t now_ns = clock_ns();
    for (;;) {
        uint64_t left = load->in_used - at;
        uint64_t skipped = left < load->skip_bytes ? left : load->skip_bytes;
        load->skip_bytes -= skipped;
        at += (uint32_t)skipped;
        if (load->skip_bytes > 0) {
            break;
        }
        if (load->in_reply) {
            load->in_reply = false;
            reply_done(load, load->reply_slot, now_ns);
        }
        struct nbd_simple_reply reply;
        if (load->in_used - at < sizeof(reply)) {
            break;
        }
        memcpy(&reply, load->in + at, sizeof(reply));
        at += (uint32_t)sizeof(reply);
        if (be32toh(reply.magic) != NBD_SIMPLE_REPLY_MAGIC || reply.error != 0 || reply.cookie >= DEPTH_MAX) {
            return load_fail(load, "a reply that is wrong, or an error");
        }
        load->skip_bytes = load->plan->writes ? 0 : load->plan->request_bytes;
        load->in_reply = true;
        load->reply_slot = reply.cookie;
    }
    memmove(load->in, load->in + at, load->in_used - at);
    load->in_used -= at;
    return 0;
}

/* Receives as recv(2) does; `waits` says whether it waits for bytes. */
static ssize_t bytes_ask(const struct load *load, bool waits)
{
    uint8_t *into = load->in + load->in_used;
    size_t room = IN_BYTES - load->in_used;
    return load->tls != NULL ? sealed_receive(load->tls, load->fd, into, room, waits ? SILENCE_MAX_S * 1000 : 0)
                             : recv(load->fd, into, room, waits ? 0 : MSG_DONTWAIT);
}

static ssize_t bytes_receive(const struct load *load)
{
    uint64_t since_ns = clock_ns();
    while (clock_ns() - since_ns < load->plan->poll_us * NS_PER_US) {
        ssize_t n = bytes_ask(load, false);
        if (n >= 0 || errno != EAGAIN) {
            return n;
        }
        sched_yield();
    }
    return bytes_ask(load, true);
}

static int replies_receive(struct load *load)
{
    ssize_t n = bytes_receive(load);
    if (n == 0) {
        return load_fail(load, "the server closed the connection");
    }
    if (n < 0) {
        return load_broke(load, "cannot receive");
    }
    load->n_receives++;
    load->in_used += (uint32_t)n;
    return replies_parse(load);
}

static void *load_thread(void *arg)
{
    struct load *load = arg;
    load->in = malloc(IN_BYTES);
    if (load->in == NULL) {
        load_fail(load, "out of memory");
        return NULL;
    }
    uint64_t now_ns = clock_ns();
    for (uint64_t slot = 0; slot < load->plan->depth; slot++) {
        request_queue(load, slot, now_ns);
    }
    while (load->n_in_flight > 0) {
        if (requests_send(load) < 0 || replies_receive(load) < 0) {
            break;
        }
    }
    free(load->in);
    return NULL;
}

static void histograms_merge(struct histogram *into, const struct histogram *from)
{
    into->count += from->count;
    into->sum_ns += from->sum_ns;
    into->max_ns = from->max_ns > into->max_ns ? from->max_ns : into->max_ns;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
        into->buckets[i] += from->buckets[i];
    }
}

static json_t *result_make(const struct plan *plan, struct load *loads, uint64_t elapsed_ns)
{
    static struct histogram latency;
    uint64_t n_done = 0;
    uint64_t n_receives = 0;
    uint64_t n_sends = 0;
    for (uint64_t i = 0; i < plan->n_connections; i++) {
        if (loads[i].failure != NULL) {
            fail("NBD server %s:%s: %s", plan->host, plan->port, loads[i].failure);
        }
        histograms_merge(&latency, &loads[i].latency);
        n_done += loads[i].n_done;
        n_receives += loads[i].n_receives;
        n_sends += loads[i].n_sends;
    }
    double seconds = (double)elapsed_ns / NS_PER_S;
    double bytes_per_s = (double)(n_done * plan->request_bytes) / seconds;
    return json_pack("{s:I, s:f, s:f, s:f, s:o, s:I, s:I}", "count", (json_int_t)n_done, "seconds", seconds, "per_s",
                     (double)n_done / seconds, "bytes_per_s", bytes_per_s, "latency", histogram_to_json(&latency),
                     "receives", (json_int_t)n_receives, "sends", (json_int_t)n_sends);
}

static json_t *plan_run(struct plan *plan)
{
    uint8_t *payload = malloc(plan->request_bytes);
    struct load *loads = calloc(plan->n_connections, sizeof(*loads));
    if (payload == NULL || loads == NULL) {
        fail("out of memory");
    }
    memset(payload, 0x5a, plan->request_bytes);
    plan->payload = payload;
    for (uint64_t i = 0; i < plan->n_connections; i++) {
        loads[i].plan = plan;
        loads[i].random = random_start(i + 1);
        loads[i].position = plan->first;
        if (load_open(&loads[i]) < 0) {
            fail("NBD server %s:%s: %s", plan->host, plan->port, loads[i].failure);
        }
    }
    uint64_t started_ns = clock_ns();
    plan->stop_at_ns = started_ns + plan->ms * NS_PER_MS;
    for (uint64_t i = 0; i < plan->n_connections; i++) {
        if (pthread_create(&loads[i].thread, NULL, load_thread, &loads[i]) != 0) {
            fail("cannot start a thread");
        }
    }
    for (uint64_t i = 0; i < plan->n_connections; i++) {
        pthread_join(loads[i].thread, NULL);
        tls_free(loads[i].tls);
        close(loads[i].fd);
    }
    json_t *result = result_make(plan, loads, clock_ns() - started_ns);
    free(loads);
    free(payload);
    return result;
}

json_t *nbd_load(struct arguments *args)
{
    const char *mode = argument_text(args, "mode", "read");
    const char *pattern = argument_text(args, "pattern", "random");
    struct plan plan = {
        .host = argument_text(args, "host", "127.0.0.1"),
        .port = argument_text(args, "port", "10809"),
        .export = argument_text(args, "export", ""),
        .keys = argument_text(args, "keys", ""),
        .depth = argument_number(args, "depth", 1, DEPTH_MAX),
        .request_bytes = argument_size(args, "bytes", PAGE_BYTES),
        .n_connections = argument_number(args, "connections", 1, CONNECTIONS_MAX),
        .first = argument_number(args, "first", 0, UINT32_MAX),
        .span_bytes = argument_size(args, "span", 0),
        .poll_us = argument_number(args, "poll_us", 0, SPIN_MAX_US),
        .ms = argument_number(args, "ms", 1000, MS_MAX),
        .writes = strcmp(mode, "write") == 0,
        .sequential = strcmp(pattern, "sequential") == 0,
    };
    arguments_check(args);
    if (plan.depth == 0 || plan.n_connections == 0 || plan.request_bytes == 0 || plan.request_bytes > BYTES_MAX) {
        fail("depth, connections and bytes must be from 1, bytes at most 32M");
    }
    if (plan.span_bytes > 0 && plan.span_bytes < plan.request_bytes) {
        fail("span must hold a request");
    }
    return plan_run(&plan);
}
