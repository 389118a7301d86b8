/* SPDX-License-Identifier: MIT */
/*
 * The connection of one client: its socket, the bytes that were received and are not parsed yet, the replies that are
 * not sent yet, and the operation under way. A connection belongs to one worker thread for its whole life. Phases:
 *
 *   CLIENT_FLAGS ──► OPTIONS ◄──► OPTION_SKIP (an option too long to be kept)
 *                     │ │ ▲
 *     GO, EXPORT_NAME │ └─┴─► TLS       the handshake after STARTTLS; then the options begin anew, encrypted
 *                     ▼
 *                  TRANSMISSION         an export is attached in this phase only
 *
 * A connection takes no memory beyond this structure, its TLS session and, after NBD_OPT_LIST, one reply: while a
 * client does not read its replies, no more of its requests are read.
 */
#ifndef GHOSTBOX_MEMSERVER_CONNECTION_H
#define GHOSTBOX_MEMSERVER_CONNECTION_H

#include "common/tls.h"
#include "memserver/exports.h"
#include "memserver/fair.h"
#include "memserver/gathering.h"
#include "memserver/handshakes.h"
#include "memserver/replies.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define CONNECTION_IN_BYTES   65536u
#define CONNECTION_PEER_BYTES 64
/* The traffic of a turn that is bounded by nothing but the socket and the length of the queue of replies. */
#define CONNECTION_LONG_TURN (INT64_C(1) << 40)

enum connection_phase { PHASE_CLIENT_FLAGS, PHASE_OPTIONS, PHASE_OPTION_SKIP, PHASE_TLS, PHASE_TRANSMISSION };

/* What has to happen before connection_run() is called again. */
enum connection_step {
    STEP_INPUT,   /* the socket is readable */
    STEP_OUTPUT,  /* the socket is writable */
    STEP_AGAIN,   /* nothing but the turns of the worker's other connections */
    STEP_DELAYED, /* delayed_until_ns comes */
    STEP_CLOSED,  /* the connection has ended: the caller calls connection_free() */
};

/* What the parser of a phase returns. The replies that the parser has queued are sent whatever it returns. */
enum connection_parse {
    PARSE_STARVED, /* the parser needs more bytes */
    PARSE_AGAIN,   /* the replies are full, or the work of one turn is done */
    PARSE_DELAYED, /* the client's bandwidth is used up until delayed_until_ns */
    PARSE_CLOSE,   /* the connection ends once the replies are sent */
};

/* Counts of one worker's requests. Only that worker writes them; the control thread reads them. */
struct counters {
    _Atomic uint64_t reads, writes, trims, zeroes, flushes, block_status, read_bytes, written_bytes, errors;
};

/* The kinds of requests that take more than one step. */
enum operation_kind {
    OPERATION_NONE,
    OPERATION_READ_CHUNKS, /* structured replies: a chunk for each run of data or hole */
    OPERATION_READ_RAW,    /* the header is queued; the bytes follow, zeroes for holes */
    OPERATION_WRITE,       /* the payload is being received */
    OPERATION_SKIP,        /* the payload of a write that was refused is received and dropped */
    OPERATION_DISCARD,
    OPERATION_ZERO,
};

struct operation {
    enum operation_kind kind;
    uint32_t error;
    uint64_t cookie;
    uint64_t start;          /* offset of the first byte */
    uint64_t offset;         /* offset of the next byte */
    uint64_t remaining;      /* bytes from `offset` on */
    uint64_t reserved_pages; /* of the client's quota, which the request has not used yet */
};

/* What a connection has done since its client's counters were updated. */
struct tally {
    uint64_t requests, read_bytes, written_bytes;
};

struct connection {
    int fd;
    enum connection_phase phase;
    bool closing; /* the connection ends once the replies are sent */
    bool pending; /* the parser has more to do without new bytes */
    struct exports *exports;
    struct counters *counters;
    struct tls *tls; /* NULL: there was no STARTTLS */
    bool encrypts;   /* the TLS handshake is over: all bytes go through `tls` */
    struct export_viewer viewer;

    bool fixed_newstyle, no_zeroes, structured, allocation_context;
    bool demand_context;                      /* the client has set NBD_DEMAND_CONTEXT */
    char context_export[EXPORT_NAME_MAX + 1]; /* name of the export for which base:allocation was set */
    uint32_t n_options;
    bool option_again;                   /* the option cannot be answered yet: the next turn parses it anew */
    uint32_t skip_bytes, skipped_option; /* PHASE_OPTION_SKIP */

    struct export_client client;
    struct operation operation;
    struct tally tally;
    uint64_t delayed_until_ns; /* in STEP_DELAYED */
    int64_t turn_bytes;        /* the most traffic of one turn; the worker sets it */
    int64_t spent_bytes;       /* what the requests of the turn cost beside their traffic */
    int64_t budget;            /* how much work this turn may still do, in bytes of memory traffic */

    uint32_t in_start, in_end;             /* in[in_start, in_end) is not parsed yet */
    uint32_t window_bytes;                 /* the most that one receive puts into `in` */
    uint64_t n_received_bytes, n_requests; /* in the transmission phase, so far */

    /* Only worker.c uses these. */
    struct connection *next, **link;
    struct fair_node fair;
    struct handshake handshake;
    int64_t created_at_ms;
    unsigned interest;
    bool hot, again, delayed;
    struct connection *next_delayed, **delayed_link;
    struct gathering gathering;
    uint64_t noted_bytes, noted_requests; /* n_received_bytes and n_requests at the last gathering_note() */
    uint32_t mark_bytes;                  /* SO_RCVLOWAT; above 1 exactly while the connection is in worker.gathers */
    uint64_t gather_until_ns;

    char peer[CONNECTION_PEER_BYTES];
    struct replies replies;
    _Alignas(4096) uint8_t in[CONNECTION_IN_BYTES]; /* whole pages, which are given back before the rest is */
};

/*
 * Makes a connection that owns fd, a non-blocking socket, and queues the greeting. Returns NULL if there is no
 * memory; then fd stays the caller's.
 */
struct connection *connection_new(int fd, const char *peer, struct exports *exports, struct counters *counters);
/* Detaches the export, closes the socket and frees the connection. */
void connection_free(struct connection *connection);

/* Runs one turn: sends, receives once, answers, sends. *worked says whether anything was received or sent. */
enum connection_step connection_run(struct connection *connection, bool *worked);

static inline uint32_t connection_available(const struct connection *connection)
{
    return connection->in_end - connection->in_start;
}

static inline void counter_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

#endif
