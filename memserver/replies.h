/* SPDX-License-Identifier: MIT */
/*
 * What a connection has to send: an iovec list for one sendmsg. Headers are written into the arena; data are sent
 * from where they are, an export's mapping or a block of zeroes, without a copy of ours. Both are bounded: who fills
 * the queue asks replies_have_room() first, and nothing is added until a full queue was sent as a whole.
 */
#ifndef GHOSTBOX_MEMSERVER_REPLIES_H
#define GHOSTBOX_MEMSERVER_REPLIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define REPLIES_IOVS        256u
#define REPLIES_ARENA_BYTES 12288u
/* Room for any one step of a reply but block status, which asks for more: a header and data. */
#define REPLIES_STEP_BYTES 64u
/* The longest stretch of zeroes that one iovec holds. */
#define REPLIES_ZERO_BYTES 65536u

struct replies {
    struct iovec iov[REPLIES_IOVS];
    unsigned first; /* iov[first, count) are unsent */
    unsigned count;
    uint32_t arena_used;
    uint8_t *blob; /* a reply too long for the arena: malloc'd, freed when sent */
    uint8_t arena[REPLIES_ARENA_BYTES];
};

enum replies_status { REPLIES_SENT, REPLIES_BLOCKED, REPLIES_FAILED };

static inline bool replies_empty(const struct replies *replies)
{
    return replies->first == replies->count;
}

static inline bool replies_have_room(const struct replies *replies, uint32_t header_bytes)
{
    return replies->count + 2 <= REPLIES_IOVS && replies->arena_used + header_bytes <= REPLIES_ARENA_BYTES;
}

/* Takes space for a header at the end of the queue; the caller fills it. */
void *replies_header(struct replies *replies, uint32_t bytes);
/* data must stay valid until sent. */
void replies_data(struct replies *replies, const void *data, size_t bytes);
/* At most REPLIES_ZERO_BYTES. */
void replies_zeroes(struct replies *replies, size_t bytes);
/* Takes ownership. Once for an empty queue. */
void replies_blob(struct replies *replies, uint8_t *blob, size_t bytes);

/* One system call at most: a reader that keeps up must not keep the thread. */
enum replies_status replies_send(struct replies *replies, int fd);
void replies_drop(struct replies *replies);

#endif
