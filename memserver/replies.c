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
    /* Neighbours, such as the headers of replies without data, go as one. */
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

/* Takes sent bytes off the front. */
static void replies_advance(struct replies *replies, size_t sent)
{
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

enum replies_status replies_send(struct replies *replies, int fd)
{
    if (replies_empty(replies)) {
        return REPLIES_SENT;
    }
    struct msghdr message = {.msg_iov = &replies->iov[replies->first], .msg_iovlen = replies->count - replies->first};
    ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
        return errno == EAGAIN || errno == EINTR ? REPLIES_BLOCKED : REPLIES_FAILED;
    }
    replies_advance(replies, (size_t)sent);
    if (!replies_empty(replies)) {
        return REPLIES_BLOCKED;
    }
    replies_drop(replies);
    return REPLIES_SENT;
}
