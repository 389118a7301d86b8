/* SPDX-License-Identifier: MIT */
/*
 * The queue of what a connection has to send: an iovec list for one sendmsg(). Headers are written into the arena;
 * data are sent from where they lie, an export's mapping or a block of zeroes, without another copy. List and arena
 * are bounded: a parser asks replies_have_room() before it adds to the queue, and when the queue is full, nothing is
 * added until all of it was sent.
 */
#ifndef GHOSTBOX_MEMSERVER_REPLIES_H
#define GHOSTBOX_MEMSERVER_REPLIES_H

#include "common/tls.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define REPLIES_IOVS        256u
#define REPLIES_ARENA_BYTES 12288u
/* Room for one step of any reply, a header and data; only the reply to BLOCK_STATUS needs more. */
#define REPLIES_STEP_BYTES 64u
/* The longest stretch of zeroes that one iovec holds. */
#define REPLIES_ZERO_BYTES 65536u

struct replies {
    struct iovec iov[REPLIES_IOVS];
    unsigned first; /* iov[first, count) are unsent */
    unsigned count;
    uint32_t arena_used;
    uint64_t n_sent; /* bytes that were sent so far, or given to the TLS session */
    uint8_t *blob;   /* a reply too long for the arena; malloc'd, freed when it was sent; NULL: there is none */
    uint8_t arena[REPLIES_ARENA_BYTES];
};

enum replies_status { REPLIES_SENT, REPLIES_MORE, REPLIES_BLOCKED, REPLIES_FAILED };

static inline bool replies_empty(const struct replies *replies)
{
    return replies->first == replies->count;
}

static inline bool replies_have_room(const struct replies *replies, uint32_t header_bytes)
{
    return replies->count + 2 <= REPLIES_IOVS && replies->arena_used + header_bytes <= REPLIES_ARENA_BYTES;
}

/* Adds a header to the queue and returns its place in the arena; the caller fills it. */
void *replies_header(struct replies *replies, uint32_t bytes);
/* Adds data, which must stay valid until they are sent. */
void replies_data(struct replies *replies, const void *data, size_t bytes);
/* Adds zeroes, at most REPLIES_ZERO_BYTES. */
void replies_zeroes(struct replies *replies, size_t bytes);
/* Adds a malloc'd reply, which then belongs to the queue. There may be one at a time. */
void replies_blob(struct replies *replies, uint8_t *blob, size_t bytes);

/*
 * Sends what the socket takes, at most max_bytes, by one system call at most: a client that reads quickly must not
 * keep the thread busy. REPLIES_MORE: max_bytes were sent, and some are left. REPLIES_BLOCKED: the socket took less.
 * REPLIES_FAILED: errno says why.
 */
enum replies_status replies_send(struct replies *replies, int fd, size_t max_bytes);
/* Does the same through a TLS session, by a bounded number of system calls; sends what was encrypted before, too. */
enum replies_status replies_encrypt(struct replies *replies, struct tls *tls, size_t max_bytes);
/* Empties the queue. */
void replies_drop(struct replies *replies);

#endif
