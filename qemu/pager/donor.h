/* SPDX-License-Identifier: MIT */
/*
 * Donors: NBD exports. How the pool's pages lie on them: pool.h. Each donor has one connection a class, so that a
 * bulk transfer never holds up a demand fault.
 *
 * A channel belongs to one thread's loop: only that thread calls into it. libnbd runs the completion callbacks inside
 * channel_service(), holding the handle's lock, so a callback only appends to the channel's list of finished
 * requests, which the loop works off afterwards.
 *
 * A connection that breaks is made again. What the donor holds may be gone by then (its server started anew), so the
 * new connection must show the same identity (the export's description; our memserver puts the incarnation there).
 * If it shows another one, the donor is "lost", and its pages are never read again; but only if it is the same donor
 * that says so (its id is in the description, too): where another one answers, ours is away, and may come back.
 * A server without identity cannot prove anything: it is lost. Except when a new pager takes over from one that died:
 * then every connection is new, and the checksum of each page must do.
 *
 * Writes must not arrive late. A connection that broke (or whose pager died) may leave a write in the server's socket
 * buffer, which would land on what was written there since. So the write-back connection asks our memserver for the
 * export as its only writer (EXPORT?writer): it answers when it has ended the writer before and all it had sent.
 * Other servers know no such thing: there a takeover waits FENCE_NS before it writes, and a write that arrives later
 * still is found by the page's checksum.
 */
#ifndef GHOSTBOX_DONOR_H
#define GHOSTBOX_DONOR_H

#include "cause.h"
#include "histogram.h"
#include "names.h"
#include "pulse.h"

#include <libnbd.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DONORS_MAX        64
#define CHANNEL_URI_BYTES 2048

enum channel_class { CHANNEL_DEMAND, CHANNEL_READAHEAD, CHANNEL_WRITEBACK, CHANNEL_CLASSES };
enum channel_state { CHANNEL_UP, CHANNEL_CONNECTING, CHANNEL_DOWN };

struct donor;
struct wire;

/* One NBD request. The owner embeds it first in its own structure. */
struct request {
    struct request *next; /* in the channel's done list, or the owner's lists */
    struct channel *channel;
    uint64_t started_ns, done_ns;
    uint32_t bytes;
    bool carries;                     /* a page, one way or the other */
    uint64_t next_offset, end_offset; /* of a read by libnbd: where the next chunk begins, and the last one ends */
    int error;                        /* 0 or errno, when done */
};

/* What pulse.c knows of a channel. */
struct beat {
    struct request request; /* the heartbeat: it never appears on the done list */
    bool out;
    bool carries;          /* it asks for a page that is no hole, as far as is known */
    uint32_t idle;         /* looks in a row at a barren channel that nobody asked for a page */
    bool short_answered;   /* since it is up: a heartbeat that carries no page */
    bool pending;          /* something was under way at the last look */
    uint32_t silent;       /* looks in a row, with something under way, that saw no byte come */
    uint32_t stuck;        /* the same, that saw no request end */
    uint32_t patience;     /* so many silent ones are too many; 0: PATIENCE_LOOKS */
    uint64_t heard, ended; /* the counters at the last look */
    uint64_t took_ns;      /* of a heartbeat that was answered since the last look; 0: none was */
};

struct channel {
    struct donor *donor;
    enum channel_class class;
    enum channel_state state;
    struct nbd_handle *nbd; /* negotiates; then keeps the socket, or the traffic, too, where there is no wire */
    struct wire *wire;      /* NULL while connecting and where libnbd moves the bytes (TLS) */
    int fd;                 /* registered with the loop, -1 if none */
    uint32_t polled;        /* EPOLL* now registered */
    uint32_t in_flight;
    uint64_t retry_ns;           /* DOWN: when to try again */
    uint32_t attempt;            /* of a round of attempts, one an address: names.h */
    char address[ADDRESS_BYTES]; /* where it connects, or is connected; "": what the URI says */
    char round[CAUSE_BYTES];     /* why the attempts of this round failed, where there are several addresses */
    uint32_t n_carried;          /* pages' requests that were answered since it is up */
    bool carries;                /* such a request was sent since it is up */
    bool barren;                 /* it broke with such requests under way, none of which was ever answered: pulse.h */
    bool inherited;              /* an earlier pager used this donor, and we have not been connected to it so far */
    uint64_t n_ended;            /* requests */
    uint64_t n_chunks;           /* of reads by libnbd */
    uint64_t longest_ns;         /* request since the last look */
    char cause[CAUSE_BYTES];     /* why it is not up: cause.h */
    struct beat beat;
    struct request *done_head, **done_tail;
};

struct donor_counters {
    _Atomic uint64_t read_bytes, written_bytes, trimmed_bytes, reads, writes, trims, errors, reconnects,
        checksum_errors;
};

/* Of a slot, a piece of extent_bytes of the export. Evict thread only. */
enum slot_state {
    SLOT_FREE = 0,
    SLOT_USED,
    SLOT_GIVEN_UP, /* to be trimmed before it is used again */
    SLOT_TRIMMING,
};

struct donor {
    char *uri;
    char *host;        /* the machine that it is on: machine.h */
    struct name *name; /* the addresses of that machine: names.h; NULL: it is a Unix socket */
    char *identity;    /* "" if the server gives none */
    uint64_t export_bytes;
    uint32_t n_slots;
    uint8_t *slots;                 /* enum slot_state */
    _Atomic uint32_t used_slots;    /* of copies, in whatever state */
    _Atomic uint32_t n_given_up;    /* slots that are not trimmed so far */
    _Atomic uint64_t away_since_ns; /* 0: the evict thread can write to it */
    _Atomic uint64_t lost_pages;    /* that were on no other donor when it was lost */
    bool backup;                    /* a copy of all, written behind */
    _Atomic bool lost;              /* its memory is gone: nothing on it is read again */
    _Atomic bool draining;          /* its copies are moved elsewhere */
    _Atomic bool removed;           /* holds nothing and is never used again */
    const struct donor *before;     /* one that was removed and had the same export, or NULL */
    /* Kept by pulse.c; the last two by the fault thread. */
    _Atomic uint64_t down_since_ns; /* when the first of its connections broke; 0: all are up */
    _Atomic uint32_t smoothed_us;   /* latency of late */
    _Atomic bool slow;              /* used last */
    _Atomic uint64_t data_at;       /* where it lately held a page that is no hole, plus one; 0: not known */
    /* The latest of its channels', and the latest that the log has: cause.c, under its lock. */
    char cause[CAUSE_BYTES], told_cause[CAUSE_BYTES];
    bool can_trim;
    bool libnbd_only; /* --transport libnbd */
    struct channel channels[CHANNEL_CLASSES];
    _Atomic int states[CHANNEL_CLASSES]; /* copies of channels[].state, for status */
    struct donor_counters counters;
    _Atomic uint64_t *kept_checksum_errors; /* in the state file, for the next pager; NULL: there is none */
    struct histogram latency;               /* demand reads */
    struct pulse pulse;
};

/* A page that came from it is not what was written there. */
static inline void donor_count_checksum_error(struct donor *donor)
{
    atomic_fetch_add_explicit(&donor->counters.checksum_errors, 1, memory_order_relaxed);
    if (donor->kept_checksum_errors)
        atomic_fetch_add_explicit(donor->kept_checksum_errors, 1, memory_order_relaxed);
}

/* Nothing is ever asked of it again. */
static inline bool donor_gone(const struct donor *donor)
{
    return atomic_load_explicit(&donor->lost, memory_order_relaxed) ||
           atomic_load_explicit(&donor->removed, memory_order_relaxed);
}

#define EXTENT_MIN_BYTES (64ull << 10)

/* Connects all channels, one after the other. libnbd_only is set. Returns 0, or -errno with a text. */
int donor_open(struct donor *donor, const char *uri, char *text, size_t text_bytes);
/* As an earlier pager knew it: uri, identity, host, export_bytes, flags and can_trim are set. Nothing is connected.
 */
void donor_inherit(struct donor *donor);
/* Cuts its export into slots. Returns 0 or -ENOMEM. */
int donor_cut(struct donor *donor, uint64_t extent_bytes);
/* Whether it is the URI of an NBD export. */
bool donor_uri_valid(const char *uri);
/* The part of an URI that names a machine; NULL: no memory. */
char *donor_host(const char *uri);
void donor_close(struct donor *donor);

/* Where this channel connects, in the buffer: the donor's URI with the address and with what the class adds. */
const char *channel_uri(const struct channel *channel, char uri[CHANNEL_URI_BYTES]);

/* Each returns 0 (the request will appear on the done list) or -errno (it will not). */
int channel_read(struct channel *channel, struct request *request, void *buf, uint32_t bytes, uint64_t offset);
int channel_write(struct channel *channel, struct request *request, const void *buf, uint32_t bytes, uint64_t offset);
int channel_trim(struct channel *channel, struct request *request, uint32_t bytes, uint64_t offset);

/* After the negotiation: from now on our own code moves the bytes, if it can. */
void channel_go_direct(struct channel *channel);
/* Sends what was queued. Requests may appear on the done list if the connection breaks. */
void channel_flush(struct channel *channel, int epoll_fd);
/* Takes what has come, without asking epoll first. Does nothing where libnbd moves the bytes. */
void channel_receive(struct channel *channel, int epoll_fd);
/* Registers with, or keeps up to date in, an epoll; data.ptr is the channel. */
void channel_poll(struct channel *channel, int epoll_fd);
/* Handles EPOLL* events: moves bytes, finishes requests, notices a dead peer. */
void channel_service(struct channel *channel, int epoll_fd, uint32_t events);
/* Closes the connection of a donor that was removed. */
void channel_retire(struct channel *channel, int epoll_fd);
/* DOWN and due: starts to connect again. */
void channel_revive(struct channel *channel, int epoll_fd, uint64_t now_ns);
/* Its state for others: one that is barren counts as one that connects. */
void channel_publish(struct channel *channel);
/* Gives the connection up: all that is under way fails. */
void channel_break(struct channel *channel, int epoll_fd, const char *why);
/* Makes its libnbd handle; false: no memory. */
bool channel_create(struct channel *channel);
/*
 * Connects, waiting until the donor has negotiated or timeout_ms is over; or, if the machine does not answer at all,
 * silent_ms. 0, or -errno with a reason in text.
 */
int channel_connect(struct channel *channel, int timeout_ms, int silent_ms, char *text, size_t text_bytes);
/* Takes the next finished request, or NULL. */
struct request *channel_done(struct channel *channel);

#endif
