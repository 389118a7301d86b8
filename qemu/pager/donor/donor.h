/* SPDX-License-Identifier: MIT */
/*
 * Donors: NBD exports. pool.h says how the pool's pages lie on them. A donor has one connection (channel) for each
 * class of traffic, so that a bulk transfer never holds up a demand fault.
 *
 * A channel belongs to one thread's loop, and only that thread calls its functions. libnbd runs the completion
 * callbacks inside channel_service(), holding the handle's lock, so a callback only appends to the channel's list of
 * finished requests, which the loop works off afterwards.
 *
 * A connection that breaks is made again. By then the donor's memory may be gone (its server started anew), so the
 * new connection must show the same identity: the export's description, in which our memserver writes the
 * incarnation. If the identity is another one, the donor is "lost", and its pages are never read again. This holds
 * only if the same donor answers, whose id is in the description, too: if another donor answers, ours is away and may
 * come back. A server without an identity cannot show that it kept its memory, so its donor is lost. The exception is
 * a pager that takes over from one that died: it accepts a server without an identity, and relies on the checksum of
 * each page.
 *
 * Writes must not arrive late. A connection that broke (or whose pager died) may leave a write in the server's socket
 * buffer, which would land on what was written there since. So the write-back connection asks our memserver for the
 * export as its only writer (EXPORT?writer): the memserver answers once the writer before has ended and all its
 * requests are done or dropped. Other servers have nothing like it: with them a takeover waits FENCE_NS before it
 * writes, and a write that arrives even later is found by the page's checksum.
 */
#ifndef GHOSTBOX_DONOR_H
#define GHOSTBOX_DONOR_H

#include "donor/names.h"
#include "donor/secret.h"
#include "histogram.h"

#include <libnbd.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DONORS_MAX        64
#define EXTENT_MIN_BYTES  (64ull << 10)
#define CHANNEL_URI_BYTES 2048
#define REASON_BYTES      160
/* So long after a write that the donor had no room for, it counts as full. Pages that wait are tried every 100 ms. */
#define FULL_NS 5000000000ull

enum channel_class { CHANNEL_DEMAND, CHANNEL_READAHEAD, CHANNEL_WRITEBACK, CHANNEL_CLASSES };
enum channel_state { CHANNEL_UP, CHANNEL_CONNECTING, CHANNEL_DOWN };

struct donor;
struct secure;
struct wire;

/* One NBD request. Its owner has it as the first member of a structure of its own. */
struct request {
    struct request *next; /* link in the channel's done list, or in the owner's lists */
    struct channel *channel;
    uint64_t started_ns, done_ns;
    uint32_t bytes;
    bool carries;                     /* it, or its answer, has at least a page of data */
    uint64_t next_offset, end_offset; /* of a read by libnbd: where the next chunk begins, and the last one ends */
    int error;                        /* 0 or an errno, once it is done */
    void (*done)(struct request *request); /* the loop calls it when it takes the request off the done list */
    void *owner;                           /* for done() */
};

/* The heartbeat of a channel, and what liveness.c saw at its looks. */
struct beat {
    struct request request; /* the heartbeat's request, which never appears on the done list */
    bool out;               /* the heartbeat is under way */
    bool carries;           /* the heartbeat reads a page that is no hole, as far as is known */
    uint32_t idle;          /* looks in a row at a barren channel on which no page was asked for */
    bool short_answered;    /* since the channel is up, a heartbeat without a page was answered */
    bool pending;           /* requests were under way at the last look */
    uint32_t silent;        /* looks in a row with requests under way at which no byte had come */
    uint32_t stuck;         /* looks in a row with requests under way at which no request had ended */
    uint32_t patience;      /* so many silent looks break the connection; 0: PATIENCE_LOOKS */
    uint64_t heard, ended;  /* tcp_heard() and n_ended at the last look */
    uint64_t took_ns;       /* latency of the heartbeat that was answered since the last look; 0: none was */
};

struct channel {
    struct donor *donor;
    enum channel_class class;
    enum channel_state state;
    struct nbd_handle *nbd; /* negotiates and owns the socket; without a wire it moves the bytes, too */
    struct secure *secure;  /* over TLS: negotiates in place of nbd, and owns the socket and the TLS session */
    struct wire *wire;      /* NULL while connecting, and where libnbd moves the bytes (--libnbd) */
    int fd;                 /* the socket that is registered with the loop's epoll; -1: none */
    uint32_t polled;        /* the EPOLL* that are registered for fd */
    uint32_t in_flight;
    uint64_t retry_ns;           /* in CHANNEL_DOWN: when to try again */
    uint32_t attempt;            /* number of the attempt in its round, which tries each address once: names.h */
    char address[ADDRESS_BYTES]; /* to which it connects, or is connected; "": the one that the URI names */
    char round[REASON_BYTES];    /* why the attempts of this round failed, if there are several addresses */
    uint32_t n_carried;          /* requests with a page that were answered since the channel is up */
    bool carries;                /* a request with a page was sent since the channel is up */
    bool barren;       /* the last connection broke before any of its requests with a page was answered: liveness.h */
    bool inherited;    /* an earlier pager used this donor, and this pager has not been connected to it yet */
    uint64_t n_ended;  /* requests that ended */
    uint64_t n_chunks; /* chunks that came for reads by libnbd */
    uint64_t longest_ns;       /* latency of the slowest request since the last look */
    char reason[REASON_BYTES]; /* why the channel is not up: disconnect_reason.h */
    struct beat beat;
    struct request *done_head, **done_tail;
};

/* Estimates of a donor's latency. Fault thread only; other threads see smoothed_us and slow in struct donor. */
struct latency_estimate {
    uint64_t smoothed_ns;       /* moving average: each answer counts one eighth; 0: none yet */
    uint64_t p99_ns;            /* about the 99th percentile of the last thousand answers; 0: none yet */
    uint32_t n_answers, n_slow; /* all answers and slow answers; both are halved every DECAY_NS */
    uint32_t n_late;            /* reads under way for which another donor was asked, too: hedge.c */
    uint64_t decay_ns;          /* when n_answers and n_slow are halved next */
};

struct donor_counters {
    _Atomic uint64_t read_bytes, written_bytes, trimmed_bytes, reads, writes, trims, errors, reconnects,
        checksum_errors, writes_refused;
};

/* States of a slot, which is a piece of extent_bytes of the export. Evict thread only. */
enum slot_state {
    SLOT_FREE = 0,
    SLOT_USED,
    SLOT_GIVEN_UP, /* no copy is in it; it has to be trimmed before it is used again */
    SLOT_TRIMMING,
};

struct donor {
    char *uri;
    char *host;            /* the machine that the donor is on: machine.h */
    struct name *name;     /* the addresses of that machine: names.h; NULL: the URI names a Unix socket */
    char *identity;        /* the export's description; "": the server gives none */
    struct secret *secret; /* its key, if the URI is nbds://, else NULL */
    uint64_t export_bytes;
    uint32_t n_slots;
    uint8_t *slots;                 /* enum slot_state */
    _Atomic uint32_t used_slots;    /* slots that hold a copy, whatever its state */
    _Atomic uint32_t n_given_up;    /* slots that hold no copy and are not trimmed yet */
    _Atomic uint64_t away_since_ns; /* since when the evict thread cannot write to the donor; 0: it can */
    _Atomic uint64_t full_since_ns; /* when the writes began to be refused for want of room, one after the other */
    _Atomic uint64_t full_at_ns;    /* when the latest one was; 0: none was */
    _Atomic uint64_t lost_pages;    /* pages that no other donor had when this one was lost */
    bool backup;                    /* the donor holds a copy of every extent, written behind */
    _Atomic bool lost;              /* the donor's memory is gone: no page is read from it again */
    _Atomic bool draining;          /* the donor's copies are moved to other donors */
    _Atomic bool removed;           /* the donor holds no copies and is never used again */
    const struct donor *before;     /* an earlier donor that was removed and had the same export, or NULL */
    /*
     * donor_note_state() sets the first, latency.c (fault thread) the next two, writeback.c (evict thread) the last.
     */
    _Atomic uint64_t down_since_ns; /* when the first of the donor's connections broke; 0: all are up */
    _Atomic uint32_t smoothed_us;   /* moving average of the latency, plus one; 0: no answer so far */
    _Atomic bool slow;              /* answers are slow too often: the donor is asked last */
    _Atomic uint64_t data_at;       /* an offset to which a page was written that is no hole, plus one; 0: unknown */
    /*
     * The latest reason of the channels, and the latest that was logged. The lock of disconnect_reason.c guards them.
     */
    char reason[REASON_BYTES], told_reason[REASON_BYTES];
    bool can_trim;
    bool libnbd_only; /* --libnbd */
    struct channel channels[CHANNEL_CLASSES];
    _Atomic int states[CHANNEL_CLASSES]; /* enum channel_state of each channel, as channel_publish() tells it */
    struct donor_counters counters;
    _Atomic uint64_t *kept_checksum_errors; /* the count in the state file, for the next pager; NULL: no state file */
    struct histogram latency;               /* latencies of demand reads */
    struct latency_estimate estimate;
};

/* Counts a page that came from this donor with other bytes than were written there. In any thread. */
static inline void donor_count_checksum_error(struct donor *donor)
{
    atomic_fetch_add_explicit(&donor->counters.checksum_errors, 1, memory_order_relaxed);
    if (donor->kept_checksum_errors)
        atomic_fetch_add_explicit(donor->kept_checksum_errors, 1, memory_order_relaxed);
}

/* Whether the donor is lost or removed: no request goes to it again. In any thread. */
static inline bool donor_gone(const struct donor *donor)
{
    return atomic_load_explicit(&donor->lost, memory_order_relaxed) ||
           atomic_load_explicit(&donor->removed, memory_order_relaxed);
}

/* Whether the evict thread can write to the donor now. In any thread. */
bool donor_reachable(const struct donor *donor);
/* Whether the donor's server ends the writer before when a new one connects (EXPORT?writer). */
bool donor_fences(const struct donor *donor);
/* Updates down_since_ns after the state of a channel has changed. In any thread. */
void donor_note_state(struct donor *donor, uint64_t now_ns);
/* Notes the error of a write to the donor, 0 if there was none: ENOSPC says that it has no room. Evict thread only.
 */
void donor_note_write(struct donor *donor, int error, uint64_t now_ns);
/* Since when the donor has refused writes for want of room; 0: it does not. In any thread. */
uint64_t donor_full_since(const struct donor *donor, uint64_t now_ns);
/* Cuts the donor's export into slots of extent_bytes. Returns 0 or -ENOMEM. */
int donor_cut(struct donor *donor, uint64_t extent_bytes);
/* Returns what is wrong with a URI as that of a donor, "is not …", or NULL. */
const char *donor_uri_fault(const char *uri);
/* The socket of a channel that is not down; -1: it has none yet. */
int channel_socket(const struct channel *channel);
/* Returns the part of a URI that names a machine (for a Unix socket its path), malloc'd; NULL: no memory. */
char *donor_host(const char *uri);

#endif
