/* SPDX-License-Identifier: MIT */
#include "memserver/replies.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

static const uint8_t zeroes[REPLIES_ZERO_BYTES];

void replies_data(struct replies *replies, const void *data, size_t bytes)
{
    if (bytes == 0) {
        return;
    }
    struct iovec *last = replies->count > replies->first ? &replies->iov[replies->count - 1] : NULL;
    /* Bytes that follow the last ones in memory, such as headers of replies without data, share their iovec. */
    if (last != NULL && (const uint8_t *)last->iov_base + last->iov_len == (const uint8_t *)data) {
        last->iov_len += bytes;
        return;
    }
    assert(replies->count < REPLIES_IOVS);
    replies->iov[replies->count++] = (struct iovec){.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
}

void *replies_header(struct replies *replies, uint32_t bytes)
{
    assert(replies->arena_used + bytes <= REPLIES_ARENA_BYTES);
    uint8_t *header = replies->arena + replies->arena_used;
    replies->arena_used += bytes;
    replies_data(replies, header, bytes);
    return header;
}

void replies_zeroes(struct replies *replies, size_t bytes)
{
    assert(bytes <= sizeof(zeroes));
    replies_data(replies, zeroes, bytes);
}

void replies_blob(struct replies *replies, uint8_t *blob, size_t bytes)
{
    assert(replies->blob == NULL);
    replies->blob = blob;
    replies_data(replies, blob, bytes);
}

void replies_drop(struct replies *replies)
{
    free(replies->blob);
    replies->blob = NULL;
    replies->first = 0;
    replies->count = 0;
    replies->arena_used = 0;
}

/* The front of the queue, as many bytes of it as a turn may send. Its last buffer may be a part of a longer one. */
struct front {
    struct iovec *iov;
    unsigned n_iov;
    size_t bytes;
    size_t cut_bytes; /* by which the last buffer was made shorter */
};

static struct front front_cut(struct replies *replies, size_t max_bytes)
{
    struct front front = {.iov = &replies->iov[replies->first]};
    unsigned n_left = replies->count - replies->first;
    while (front.n_iov < n_left && front.bytes < max_bytes) {
        front.bytes += front.iov[front.n_iov++].iov_len;
    }
    if (front.bytes > max_bytes) {
        front.cut_bytes = front.bytes - max_bytes;
        front.bytes = max_bytes;
        front.iov[front.n_iov - 1].iov_len -= front.cut_bytes;
    }
    return front;
}

/* Takes bytes that were sent off the front of the queue, whose last buffer gets its length back. */
static void replies_advance(struct replies *replies, const struct front *front, size_t sent)
{
    if (front->n_iov > 0) {
        front->iov[front->n_iov - 1].iov_len += front->cut_bytes;
    }
    replies->n_sent += sent;
    while (replies->first < replies->count) {
        struct iovec *iov = &replies->iov[replies->first];
        if (sent < iov->iov_len) {
            iov->iov_base = (uint8_t *)iov->iov_base + sent;
            iov->iov_len -= sent;
            return;
        }
        sent -= iov->iov_len;
        replies->first++;
    }
}

enum replies_status replies_send(struct replies *replies, int fd, size_t max_bytes)
{
    if (replies_empty(replies)) {
        return REPLIES_SENT;
    }
    struct front front = front_cut(replies, max_bytes);
    struct msghdr message = {.msg_iov = front.iov, .msg_iovlen = front.n_iov};
    ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    replies_advance(replies, &front, sent > 0 ? (size_t)sent : 0);
    if (sent < 0) {
        return errno == EAGAIN || errno == EINTR ? REPLIES_BLOCKED : REPLIES_FAILED;
    }
    if (!replies_empty(replies)) {
        return (size_t)sent == front.bytes ? REPLIES_MORE : REPLIES_BLOCKED;
    }
    replies_drop(replies);
    return REPLIES_SENT;
}

enum replies_status replies_encrypt(struct replies *replies, struct tls *tls, size_t max_bytes)
{
    struct front front = front_cut(replies, max_bytes);
    ssize_t taken = tls_send(tls, front.iov, front.n_iov);
    replies_advance(replies, &front, taken > 0 ? (size_t)taken : 0);
    if (taken < 0) {
        errno = (int)-taken;
        return errno == EAGAIN ? REPLIES_BLOCKED : REPLIES_FAILED;
    }
    if (tls_has_output(tls)) {
        return REPLIES_BLOCKED;
    }
    if (!replies_empty(replies)) {
        return (size_t)taken == front.bytes ? REPLIES_MORE : REPLIES_BLOCKED;
    }
    replies_drop(replies);
    return REPLIES_SENT;
}
