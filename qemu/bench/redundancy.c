/* SPDX-License-Identifier: MIT */
/*
 * Measures what it costs to write pages back so that no page is lost with a donor: by requests alone, without a
 * pager.
 *
 * Pages lie in stripes: stripe s has its i-th page on server (s + i) mod N, at s pages into its export, and its
 * parity, the XOR of all its pages, on server (s + k) mod N. So all servers have parity, and (s, i) names a page.
 *
 *   mode=copies k=   writes one page to the first k servers of its stripe
 *   mode=parity k=   writes one page and renews its parity in place: reads the page and the parity and, when both
 * have come, writes the page and (old page XOR new page XOR old parity) mode=stripes k=  writes all k pages of a
 * stripe and their parity, and reads nothing
 *
 * As in the pager's evict thread, one thread has `depth` pages under way, and sends the requests that it has queued
 * while it worked off replies by one send for each server. A stripe has one write under way at most: of two writes
 * that renew the parity at the same time, each would undo the other's.
 *
 * A pager would need more than this: it has to know which stripes are half written when it dies, and pages may wait
 * for their stripe. So the figures of parity are the least that it can cost.
 */
#include "bench.h"

#include "common/histogram.h"
#include "common/nbd_protocol.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define SERVERS_MAX 8u
#define DEPTH_MAX   256u
#define CONTENTS    64u /* pages from which the contents of writes are taken */
#define IN_BYTES    (256u << 10)
#define PARITY      (SERVERS_MAX - 1) /* the parity's place among a write's pages */
#define DRAWS_MAX   1000u

enum mode { COPIES, PARITY_IN_PLACE, WHOLE_STRIPES };

typedef uint64_t page_words[PAGE_WORDS];

/* A write under way, of one page or, in mode=stripes, of k pages. */
struct write {
    bool in_use, reading;
    uint64_t stripe, member;
    uint32_t n_pending; /* replies that are still to come */
    uint64_t started_ns;
    page_words *pages; /* SERVERS_MAX pages, by place in the stripe; while reading, the pages as they were */
};

struct server {
    int fd;
    struct nbd_request requests[DEPTH_MAX];
    struct iovec iov[2 * DEPTH_MAX];
    uint32_t n_requests;
    int n_iov;
    uint8_t *in;
    uint64_t in_used;
};

struct redundancy {
    enum mode mode;
    bool sequential;
    uint64_t k, n_servers, n_writes, n_stripes, count, stop_at_ns;
    uint64_t random, n_begun, n_pages, n_in_flight, sent_bytes, received_bytes;
    uint8_t *busy; /* for each stripe: whether a write is under way */
    page_words *contents;
    struct write writes[DEPTH_MAX];
    struct server servers[SERVERS_MAX];
    struct histogram latency;
};

/* Returns the page at a place of the stripe; the parity's place follows those of the k pages. */
static page_words *page_at(const struct redundancy *run, const struct write *write, uint64_t place)
{
    return &write->pages[place == run->k ? PARITY : place];
}

static void request_queue(struct redundancy *run, struct write *write, uint64_t place, bool writes)
{
    struct server *server = &run->servers[(write->stripe + place) % run->n_servers];
    struct nbd_request *request = &server->requests[server->n_requests++];
    uint64_t index = (uint64_t)(write - run->writes);

    *request = (struct nbd_request){.magic = htobe32(NBD_REQUEST_MAGIC),
                                    .command = htobe16(writes ? NBD_CMD_WRITE : NBD_CMD_READ),
                                    .cookie = index * SERVERS_MAX + place,
                                    .offset = htobe64(write->stripe * PAGE_BYTES),
                                    .length = htobe32(PAGE_BYTES)};
    server->iov[server->n_iov++] = (struct iovec){request, sizeof(*request)};
    if (writes) {
        /* All copies are of the first page. */
        uint64_t from = run->mode == COPIES ? 0 : place;
        server->iov[server->n_iov++] = (struct iovec){page_at(run, write, from), PAGE_BYTES};
    }
    write->n_pending++;
}

/* Makes contents of a page that occur only once. */
static void page_make(struct redundancy *run, page_words *page)
{
    memcpy(page, &run->contents[random_next(&run->random) % CONTENTS], PAGE_BYTES);
    (*page)[0] = random_next(&run->random);
}

static void page_xor(page_words *into, const page_words *from)
{
    for (uint64_t i = 0; i < PAGE_WORDS; i++)
        (*into)[i] ^= (*from)[i];
}

static uint64_t stripe_choose(struct redundancy *run)
{
    for (uint32_t i = 0; i < DRAWS_MAX; i++) {
        uint64_t stripe = (run->sequential ? run->n_begun : random_next(&run->random)) % run->n_stripes;

        if (!run->busy[stripe])
            return stripe;
    }
    fail("span has too few stripes for the depth");
}

static void stripe_write(struct redundancy *run, struct write *write)
{
    page_words *parity = page_at(run, write, run->k);

    memset(parity, 0, PAGE_BYTES);
    for (uint64_t i = 0; i < run->k; i++) {
        page_make(run, page_at(run, write, i));
        page_xor(parity, page_at(run, write, i));
        request_queue(run, write, i, true);
    }
    request_queue(run, write, run->k, true);
}

static void write_begin(struct redundancy *run, struct write *write, uint64_t now_ns)
{
    write->stripe = stripe_choose(run);
    write->member = random_next(&run->random) % run->k;
    write->in_use = true;
    write->reading = run->mode == PARITY_IN_PLACE;
    write->started_ns = now_ns;
    run->busy[write->stripe] = 1;
    run->n_begun++;
    run->n_in_flight++;
    if (run->mode == COPIES) {
        page_make(run, page_at(run, write, 0));
        for (uint64_t i = 0; i < run->k; i++)
            request_queue(run, write, i, true);
    } else if (run->mode == PARITY_IN_PLACE) {
        request_queue(run, write, write->member, false);
        request_queue(run, write, run->k, false);
    } else {
        stripe_write(run, write);
    }
}

/* Renews the parity once the old page and the old parity have come: takes the old page out and the new one in. */
static void parity_renew(struct redundancy *run, struct write *write)
{
    page_words *page = page_at(run, write, write->member), *parity = page_at(run, write, run->k);

    page_xor(parity, page);
    page_make(run, page);
    page_xor(parity, page);
    write->reading = false;
    request_queue(run, write, write->member, true);
    request_queue(run, write, run->k, true);
}

static bool may_begin(const struct redundancy *run, uint64_t now_ns)
{
    return run->count ? run->n_begun < run->count : now_ns < run->stop_at_ns;
}

static void reply_done(struct redundancy *run, struct write *write, uint64_t now_ns)
{
    if (--write->n_pending > 0)
        return;
    if (write->reading) {
        parity_renew(run, write);
        return;
    }
    histogram_add(&run->latency, now_ns - write->started_ns);
    run->n_pages += run->mode == WHOLE_STRIPES ? run->k : 1;
    run->n_in_flight--;
    run->busy[write->stripe] = 0;
    write->in_use = false;
    if (may_begin(run, now_ns))
        write_begin(run, write, now_ns);
}

static void replies_parse(struct redundancy *run, struct server *server)
{
    uint64_t at = 0, now_ns = clock_ns();
    struct nbd_simple_reply reply;

    while (server->in_used - at >= sizeof(reply)) {
        memcpy(&reply, server->in + at, sizeof(reply));
        uint64_t index = reply.cookie / SERVERS_MAX, place = reply.cookie % SERVERS_MAX;

        if (be32toh(reply.magic) != NBD_SIMPLE_REPLY_MAGIC || reply.error != 0 || index >= run->n_writes ||
            place > run->k || run->writes[index].n_pending == 0)
            fail("a reply that is wrong, or an error");
        uint64_t data_bytes = run->writes[index].reading ? PAGE_BYTES : 0;

        if (server->in_used - at < sizeof(reply) + data_bytes)
            break;
        memcpy(page_at(run, &run->writes[index], place), server->in + at + sizeof(reply), data_bytes);
        at += sizeof(reply) + data_bytes;
        reply_done(run, &run->writes[index], now_ns);
    }
    memmove(server->in, server->in + at, server->in_used - at);
    server->in_used -= at;
}

static void server_receive(struct redundancy *run, struct server *server)
{
    ssize_t n = recv(server->fd, server->in + server->in_used, IN_BYTES - server->in_used, MSG_DONTWAIT);

    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        fail("the server closed the connection");
    server->in_used += (uint64_t)n;
    run->received_bytes += (uint64_t)n;
    replies_parse(run, server);
}

static void servers_send(struct redundancy *run)
{
    for (uint64_t i = 0; i < run->n_servers; i++) {
        struct server *server = &run->servers[i];

        for (int part = 0; part < server->n_iov; part++)
            run->sent_bytes += server->iov[part].iov_len;
        if (nbd_send(server->fd, server->iov, server->n_iov) < 0)
            fail_errno("cannot send");
        server->n_requests = 0;
        server->n_iov = 0;
    }
}

static void run_all(struct redundancy *run)
{
    struct pollfd fds[SERVERS_MAX];

    for (uint64_t i = 0; i < run->n_servers; i++)
        fds[i] = (struct pollfd){.fd = run->servers[i].fd, .events = POLLIN};
    for (uint64_t i = 0; i < run->n_writes && may_begin(run, clock_ns()); i++)
        write_begin(run, &run->writes[i], clock_ns());
    while (run->n_in_flight > 0) {
        servers_send(run);
        if (poll(fds, run->n_servers, -1) < 0)
            fail_errno("cannot wait");
        for (uint64_t i = 0; i < run->n_servers; i++)
            if (fds[i].revents)
                server_receive(run, &run->servers[i]);
    }
}

static void *memory_take(uint64_t count, uint64_t bytes)
{
    void *memory = calloc(count, bytes);

    if (!memory)
        fail("out of memory");
    return memory;
}

/* Connects to the servers on this machine that ports=PORT,PORT,… names. */
static void servers_connect(struct redundancy *run, const char *ports, const char *export, uint64_t *span_bytes)
{
    char *list = strdup(ports), *rest = list;

    for (char *port; list && (port = strsep(&rest, ",")); run->n_servers++) {
        if (run->n_servers == SERVERS_MAX - 1)
            fail("ports= names more than %u servers", SERVERS_MAX - 1);
        struct server *server = &run->servers[run->n_servers];
        uint64_t export_bytes = 0;
        const char *failure = nbd_connect("127.0.0.1", port, &server->fd);

        if (!failure)
            failure = nbd_negotiate(server->fd, export, &export_bytes);
        if (failure)
            fail("NBD server 127.0.0.1:%s: %s", port, failure);
        if (*span_bytes == 0 || export_bytes < *span_bytes)
            *span_bytes = export_bytes;
        server->in = memory_take(1, IN_BYTES);
    }
    free(list);
}

static void memory_make(struct redundancy *run)
{
    run->busy = memory_take(run->n_stripes, 1);
    run->contents = memory_take(CONTENTS, PAGE_BYTES);
    for (uint64_t i = 0; i < CONTENTS * PAGE_WORDS; i++)
        run->contents[i / PAGE_WORDS][i % PAGE_WORDS] = random_next(&run->random);
    for (uint64_t i = 0; i < run->n_writes; i++)
        run->writes[i].pages = memory_take(SERVERS_MAX, PAGE_BYTES);
}

static void memory_free(struct redundancy *run)
{
    for (uint64_t i = 0; i < run->n_writes; i++)
        free(run->writes[i].pages);
    for (uint64_t i = 0; i < run->n_servers; i++) {
        close(run->servers[i].fd);
        free(run->servers[i].in);
    }
    free(run->contents);
    free(run->busy);
    free(run);
}

static double cpu_s(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static enum mode mode_of(const char *name)
{
    static const char *const names[] = {
        [COPIES] = "copies", [PARITY_IN_PLACE] = "parity", [WHOLE_STRIPES] = "stripes"};

    for (unsigned int mode = COPIES; mode <= WHOLE_STRIPES; mode++)
        if (strcmp(name, names[mode]) == 0)
            return (enum mode)mode;
    fail("mode=%s is none of copies, parity, stripes", name);
}

static struct redundancy *redundancy_open(struct arguments *args, uint64_t *ms)
{
    struct redundancy *run = memory_take(1, sizeof(*run));
    uint64_t span_bytes = argument_size(args, "span", 0);
    uint64_t depth = argument_number(args, "depth", 32, DEPTH_MAX);
    const char *ports = argument_text(args, "ports", ""), *export = argument_text(args, "export", "");

    run->mode = mode_of(argument_text(args, "mode", "copies"));
    run->sequential = strcmp(argument_text(args, "pattern", "random"), "sequential") == 0;
    run->k = argument_number(args, "k", 1, SERVERS_MAX - 1);
    run->count = argument_number(args, "count", 0, UINT32_MAX);
    run->random = random_start(argument_number(args, "seed", 1, UINT32_MAX));
    *ms = argument_number(args, "ms", 1000, MS_MAX);
    arguments_check(args);
    servers_connect(run, ports, export, &span_bytes);
    if (run->k == 0 || run->k + (run->mode != COPIES) > run->n_servers)
        fail("k must be from 1, and there must be a server for each page of a stripe");
    run->n_stripes = span_bytes / PAGE_BYTES;
    run->n_writes = run->mode == WHOLE_STRIPES ? depth / run->k : depth;
    if (run->n_writes == 0 || run->n_stripes < 2 * run->n_writes)
        fail("depth must hold a stripe, and span twice the depth");
    memory_make(run);
    return run;
}

json_t *redundancy(struct arguments *args)
{
    uint64_t ms;
    struct redundancy *run = redundancy_open(args, &ms);
    uint64_t started_ns = clock_ns();
    double cpu_before_s = cpu_s();

    run->stop_at_ns = started_ns + ms * NS_PER_MS;
    run_all(run);
    json_t *result = json_pack("{s:I, s:f, s:f, s:I, s:I, s:o}", "pages", (json_int_t)run->n_pages, "seconds",
                               (double)(clock_ns() - started_ns) / NS_PER_S, "cpu_s", cpu_s() - cpu_before_s,
                               "sent_bytes", (json_int_t)run->sent_bytes, "received_bytes",
                               (json_int_t)run->received_bytes, "latency", histogram_to_json(&run->latency));
    memory_free(run);
    return result;
}
