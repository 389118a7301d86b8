/* SPDX-License-Identifier: MIT */
/*
 * One client: its socket, the bytes received and not yet understood, the replies not yet sent, and what it is in the
 * middle of. Belongs to one thread. Phases:
 *
 *   CLIENT_FLAGS ──► OPTIONS ◄──► OPTION_SKIP (an option too long to be kept)
 *                       │ GO, EXPORT_NAME
 *                       ▼
 *                  TRANSMISSION         export is attached from here on, and only here
 *
 * Memory is bounded by what is declared here: a client that does not read gets no more of its requests read.
 */
#ifndef GHOSTBOX_MEMSERVER_CONNECTION_H
#define GHOSTBOX_MEMSERVER_CONNECTION_H

#include "memserver/exports.h"
#include "memserver/gathering.h"
#include "memserver/replies.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define CONNECTION_IN_BYTES   65536u
#define CONNECTION_PEER_BYTES 64

enum connection_phase { PHASE_CLIENT_FLAGS, PHASE_OPTIONS, PHASE_OPTION_SKIP, PHASE_TRANSMISSION };

/* What has to happen before connection_run() can do more. */
enum connection_step {
    STEP_INPUT,  /* the socket has something to read */
    STEP_OUTPUT, /* the socket takes more */
    STEP_AGAIN,  /* nothing: call again, after others had their turn */
    STEP_CLOSED, /* call connection_free() */
};

/* What the parser of a phase says. Replies that it queued are sent in any case. */
enum connection_parse {
    PARSE_STARVED, /* needs more bytes */
    PARSE_AGAIN,   /* replies are full, or it worked long enough for one turn */
    PARSE_CLOSE,   /* the connection is to end once the replies are sent */
};

/* One writer each; read by the control thread. */
struct counters {
    _Atomic uint64_t reads, writes, trims, zeroes, flushes, block_status, read_bytes, written_bytes, errors;
};

/* A request that takes more than one step. */
enum operation_kind {
    OPERATION_NONE,
    OPERATION_READ_CHUNKS, /* structured replies: a chunk for each run of data or hole */
    OPERATION_READ_RAW,    /* the header is queued; bytes follow, zeroes for holes */
    OPERATION_WRITE,       /* receives its payload */
    OPERATION_SKIP,        /* receives the payload of a write that was refused */
    OPERATION_DISCARD,
    OPERATION_ZERO,
};

struct operation {
    enum operation_kind kind;
    uint32_t error;
    uint64_t cookie;
    uint64_t start;     /* offset of the first byte */
    uint64_t offset;    /* offset of the next byte */
    uint64_t remaining; /* bytes from there */
};

struct connection {
    int fd;
    enum connection_phase phase;
    bool closing; /* ends once the replies are sent */
    bool pending; /* the parser has more to do without new bytes */
    bool waits_output;
    struct exports *exports;
    struct counters *counters;

    bool fixed_newstyle, no_zeroes, structured, allocation_context;
    bool demand_context;                      /* somebody waits for each of its reads: NBD_DEMAND_CONTEXT */
    char context_export[EXPORT_NAME_MAX + 1]; /* base:allocation was set for this one */
    uint32_t n_options;
    bool option_again; /* the option could not be answered so far: it is parsed anew in the next turn */
    uint32_t skip_bytes, skipped_option; /* PHASE_OPTION_SKIP */

    struct export_client client;
    struct operation operation;
    int64_t budget; /* what is left of this turn's work, in bytes of memory traffic */

    uint32_t in_start, in_end;             /* in[in_start, in_end) is not understood yet */
    uint32_t window_bytes;                 /* at most so much is received into `in` at a time */
    uint64_t n_received_bytes, n_requests; /* in the transmission phase, so far */

    /* For the worker. */
    struct connection *next, **link;
    int64_t created_at_ms;
    unsigned interest;
    bool hot, again;
    struct gathering gathering;
    uint64_t noted_bytes, noted_requests; /* what gathering was told of */
    uint32_t mark_bytes;                  /* SO_RCVLOWAT: more than 1 exactly while it is in worker.gathers */
    uint64_t gather_until_ns;

    char peer[CONNECTION_PEER_BYTES];
    struct replies replies;
    uint8_t in[CONNECTION_IN_BYTES];
};

/* Takes fd (non-blocking) over and queues the greeting. NULL: no memory; fd stays the caller's. */
struct connection *connection_new(int fd, const char *peer, struct exports *exports, struct counters *counters);
void connection_free(struct connection *connection);

/* One turn: sends, receives once, answers, sends. *worked says whether anything was received or sent. */
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
