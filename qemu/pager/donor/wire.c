/* SPDX-License-Identifier: MIT */
#include "donor/wire.h"

#include "common/nbd_protocol.h"
#include "common/page_memory.h"
#include "common/tls.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* A power of two, so that a cookie's lower bits are its slot's number. */
#define SLOTS    512u
#define RX_BYTES 32768u
#define IOVS     512u
/* The longest body that is skipped, such as an error's text; a longer one breaks the connection. */
#define SKIP_MAX 8192u
/* More error chunks for one request break the connection: a donor must not keep the thread busy without end. */
#define ERRORS_MAX 16u
/* Receives in one call. A donor that sends without end must not keep the thread from the other donors. */
#define RECEIVES_MAX 64

struct slot {
    struct slot *next; /* in the list of free slots, or of unsent requests */
    struct request *request;
    uint8_t *read_to;          /* where a read's bytes go */
    const uint8_t *write_from; /* where a write's bytes are */
    uint64_t offset;
    uint32_t bytes;
    uint32_t seen; /* of a read: how many of its bytes have come, in order */
    uint32_t n_errors;
    int error;
    bool sent;       /* the whole request was sent; a reply before that breaks the connection */
    uint64_t cookie; /* of the request that uses the slot, or used it last */
    struct nbd_request header;
};

struct wire {
    int fd;
    struct tls *tls; /* NULL: the bytes are not encrypted */
    bool structured;
    bool blocked;
    struct slot slots[SLOTS];
    struct slot *free;
    struct slot *unsent, **unsent_tail;
    size_t sent; /* bytes of the first unsent request that were sent */
    uint64_t received;

    /* The body that is being received: its slot (NULL: none), and where its bytes go. */
    struct slot *body_of;
    uint8_t *body;
    uint32_t body_left;
    bool body_last; /* the end of the body completes the request */
    uint32_t skip;
    uint32_t rx_at, rx_end;
    uint8_t rx[RX_BYTES];
};

struct wire *wire_create(int fd, struct tls *tls, bool structured_replies)
{
    struct wire *wire = calloc(1, sizeof(*wire));

    if (!wire)
        return NULL;
    page_memory_hide(wire, sizeof(*wire));
    wire->fd = fd;
    wire->tls = tls;
    wire->structured = structured_replies;
    wire->unsent_tail = &wire->unsent;
    for (uint32_t i = 0; i < SLOTS; i++) {
        wire->slots[i].cookie = i;
        wire->slots[i].next = wire->free;
        wire->free = &wire->slots[i];
    }
    return wire;
}

void wire_destroy(struct wire *wire)
{
    free(wire);
}

static int queue(struct wire *wire, uint16_t command, struct slot set)
{
    struct slot *slot = wire->free;

    if (!slot)
        return -EAGAIN;
    wire->free = slot->next;
    /* Each request has a cookie of its own, so that a late reply to an old request is noticed. */
    set.cookie = slot->cookie + SLOTS;
    set.header = (struct nbd_request){
        .magic = htobe32(NBD_REQUEST_MAGIC),
        .command = htobe16(command),
        .cookie = htobe64(set.cookie),
        .offset = htobe64(set.offset),
        .length = htobe32(set.bytes),
    };
    *slot = set;
    *wire->unsent_tail = slot;
    wire->unsent_tail = &slot->next;
    return 0;
}

int wire_read(struct wire *wire, struct request *request, void *buf, uint32_t bytes, uint64_t offset)
{
    return queue(wire, NBD_CMD_READ,
                 (struct slot){.request = request, .read_to = buf, .bytes = bytes, .offset = offset});
}

int wire_write(struct wire *wire, struct request *request, const void *buf, uint32_t bytes, uint64_t offset)
{
    return queue(wire, NBD_CMD_WRITE,
                 (struct slot){.request = request, .write_from = buf, .bytes = bytes, .offset = offset});
}

int wire_trim(struct wire *wire, struct request *request, uint32_t bytes, uint64_t offset)
{
    return queue(wire, NBD_CMD_TRIM, (struct slot){.request = request, .bytes = bytes, .offset = offset});
}

static bool encrypted_waits(const struct wire *wire)
{
    return wire->tls && tls_has_output(wire->tls);
}

bool wire_blocked(const struct wire *wire)
{
    return wire->blocked || encrypted_waits(wire);
}

uint64_t wire_received(const struct wire *wire)
{
    return wire->tls ? tls_received(wire->tls) : wire->received;
}

const char *wire_why(const struct wire *wire, int rc)
{
    const char *why = wire->tls ? tls_why(wire->tls) : "";

    return *why ? why : strerror(-rc);
}

/* Adds [bytes, bytes + length) without its first *skip bytes, and takes the bytes that it skips off *skip. */
static void add_iov(struct iovec *iov, unsigned *n, const void *bytes, size_t length, size_t *skip)
{
    if (*skip >= length) {
        *skip -= length;
        return;
    }
    /* sendmsg(2) does not write to these bytes. */
    iov[(*n)++] = (struct iovec){(uint8_t *)(uintptr_t)bytes + *skip, length - *skip};
    *skip = 0;
}

static unsigned gather(const struct wire *wire, struct iovec *iov)
{
    size_t skip = wire->sent;
    unsigned n = 0;

    for (const struct slot *slot = wire->unsent; slot && n + 2 <= IOVS; slot = slot->next) {
        add_iov(iov, &n, &slot->header, sizeof(slot->header), &skip);
        if (slot->write_from)
            add_iov(iov, &n, slot->write_from, slot->bytes, &skip);
    }
    return n;
}

static void advance(struct wire *wire, size_t sent)
{
    wire->sent += sent;
    while (wire->unsent) {
        struct slot *slot = wire->unsent;
        size_t length = sizeof(slot->header) + (slot->write_from ? slot->bytes : 0);

        if (wire->sent < length)
            return;
        wire->sent -= length;
        slot->sent = true;
        wire->unsent = slot->next;
    }
    wire->unsent_tail = &wire->unsent;
}

/* Sends once. Returns how many bytes the socket or the TLS session has taken, or -errno. */
static ssize_t send_once(struct wire *wire)
{
    struct iovec iov[IOVS];
    unsigned n = gather(wire, iov);

    if (wire->tls)
        return tls_send(wire->tls, iov, n);
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = n};
    ssize_t sent = sendmsg(wire->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);

    return sent < 0 ? -errno : sent;
}

int wire_flush(struct wire *wire)
{
    wire->blocked = false;
    while (wire->unsent || encrypted_waits(wire)) {
        ssize_t sent = send_once(wire);

        if (sent == -EINTR)
            continue;
        if (sent == -EAGAIN) {
            wire->blocked = true;
            return 0;
        }
        if (sent < 0)
            return (int)sent;
        advance(wire, (size_t)sent);
    }
    return 0;
}

static void finish(struct wire *wire, struct slot *slot)
{
    struct request *request = slot->request;
    int error = slot->error;

    /* A read that lacks bytes has failed: the missing bytes must never count as zeroes. */
    if (!error && slot->read_to && slot->seen != slot->bytes)
        error = EPROTO;
    slot->request = NULL;
    slot->next = wire->free;
    wire->free = slot;
    request_complete(request, error);
}

void wire_abort(struct wire *wire, int error)
{
    wire->unsent = NULL;
    wire->unsent_tail = &wire->unsent;
    for (uint32_t i = 0; i < SLOTS; i++)
        if (wire->slots[i].request) {
            wire->slots[i].error = error;
            finish(wire, &wire->slots[i]);
        }
}

static struct slot *slot_of(struct wire *wire, uint64_t cookie_be)
{
    uint64_t cookie = be64toh(cookie_be);
    struct slot *slot = &wire->slots[cookie % SLOTS];

    return slot->request && slot->sent && slot->cookie == cookie ? slot : NULL;
}

static int errno_of(uint32_t error_be)
{
    uint32_t error = be32toh(error_be);

    return error > 0 && error < 4096 ? (int)error : EIO;
}

static void body_begin(struct wire *wire, struct slot *slot, uint8_t *to, uint32_t bytes, bool last)
{
    wire->body_of = slot;
    wire->body = to;
    wire->body_left = bytes;
    wire->body_last = last;
}

static void body_advance(struct wire *wire, uint32_t bytes)
{
    struct slot *slot = wire->body_of;

    wire->body += bytes;
    wire->body_left -= bytes;
    slot->seen += bytes;
    if (wire->body_left > 0)
        return;
    wire->body_of = NULL;
    if (wire->body_last)
        finish(wire, slot);
}

static const uint8_t *rx_peek(const struct wire *wire, size_t bytes)
{
    return wire->rx_end - wire->rx_at >= bytes ? wire->rx + wire->rx_at : NULL;
}

/* Each parse_*() returns 1 if it consumed bytes, 0 if it needs more bytes, or -errno if the reply is wrong. */
static int parse_simple(struct wire *wire)
{
    const struct nbd_simple_reply *reply = (const void *)rx_peek(wire, sizeof(*reply));

    if (!reply)
        return 0;
    struct slot *slot = slot_of(wire, reply->cookie);

    if (!slot)
        return -EPROTO;
    if (reply->error)
        slot->error = errno_of(reply->error);
    else if (slot->read_to && wire->structured)
        return -EPROTO; /* after structured replies were negotiated, data must come in chunks */
    wire->rx_at += (uint32_t)sizeof(*reply);
    if (slot->read_to && !slot->error)
        body_begin(wire, slot, slot->read_to, slot->bytes, true);
    else
        finish(wire, slot);
    return 1;
}

/*
 * Whether a chunk is the next part of the read. Chunks must come in order, because a part that came twice would count
 * twice and hide that another part is missing.
 */
static bool is_next_part(const struct slot *slot, uint64_t offset, uint64_t bytes)
{
    return slot->read_to && bytes > 0 && offset == slot->offset + slot->seen && bytes <= slot->bytes - slot->seen;
}

static uint64_t load_be64(const uint8_t *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof(value));
    return be64toh(value);
}

static uint32_t load_u32(const uint8_t *bytes)
{
    uint32_t value;

    memcpy(&value, bytes, sizeof(value));
    return value;
}

static int parse_data(struct wire *wire, struct slot *slot, uint32_t length, bool last)
{
    const uint8_t *head = rx_peek(wire, sizeof(struct nbd_chunk) + 8);

    if (!head)
        return 0;
    uint64_t offset = load_be64(head + sizeof(struct nbd_chunk));

    if (length < 8 || !is_next_part(slot, offset, length - 8))
        return -EPROTO;
    wire->rx_at += (uint32_t)sizeof(struct nbd_chunk) + 8;
    body_begin(wire, slot, slot->read_to + (offset - slot->offset), length - 8, last);
    return 1;
}

static int parse_hole(struct wire *wire, struct slot *slot, uint32_t length, bool last)
{
    const uint8_t *head = rx_peek(wire, sizeof(struct nbd_chunk) + 12);

    if (length != 12)
        return -EPROTO;
    if (!head)
        return 0;
    uint64_t offset = load_be64(head + sizeof(struct nbd_chunk));
    uint32_t bytes = be32toh(load_u32(head + sizeof(struct nbd_chunk) + 8));

    if (!is_next_part(slot, offset, bytes))
        return -EPROTO;
    wire->rx_at += (uint32_t)sizeof(struct nbd_chunk) + 12;
    memset(slot->read_to + (offset - slot->offset), 0, bytes);
    slot->seen += bytes;
    if (last)
        finish(wire, slot);
    return 1;
}

static int parse_error(struct wire *wire, struct slot *slot, uint32_t length, bool last)
{
    const uint8_t *head = rx_peek(wire, sizeof(struct nbd_chunk) + 4);

    if (length < 6 || length > SKIP_MAX || slot->n_errors == ERRORS_MAX)
        return -EPROTO;
    if (!head)
        return 0;
    slot->error = errno_of(load_u32(head + sizeof(struct nbd_chunk)));
    slot->n_errors++;
    wire->rx_at += (uint32_t)sizeof(struct nbd_chunk) + 4;
    wire->skip = length - 4;
    if (last)
        finish(wire, slot);
    return 1;
}

static int parse_chunk(struct wire *wire)
{
    const struct nbd_chunk *head = (const void *)rx_peek(wire, sizeof(*head));

    if (!head)
        return 0;
    struct slot *slot = slot_of(wire, head->cookie);
    uint32_t length = be32toh(head->length);
    uint16_t type = be16toh(head->type);
    bool last = be16toh(head->flags) & NBD_REPLY_FLAG_DONE;

    if (!slot || !wire->structured)
        return -EPROTO;
    if (type == NBD_REPLY_TYPE_OFFSET_DATA)
        return parse_data(wire, slot, length, last);
    if (type == NBD_REPLY_TYPE_OFFSET_HOLE)
        return parse_hole(wire, slot, length, last);
    if (type & NBD_REPLY_TYPE_IS_ERROR)
        return parse_error(wire, slot, length, last);
    if (type != NBD_REPLY_TYPE_NONE || length != 0 || !last)
        return -EPROTO;
    wire->rx_at += (uint32_t)sizeof(*head);
    finish(wire, slot);
    return 1;
}

static int parse_one(struct wire *wire)
{
    uint32_t have = wire->rx_end - wire->rx_at;

    if (wire->skip > 0) {
        uint32_t n = wire->skip < have ? wire->skip : have;

        wire->skip -= n;
        wire->rx_at += n;
        return wire->skip == 0;
    }
    if (wire->body_of) {
        uint32_t n = wire->body_left < have ? wire->body_left : have;

        memcpy(wire->body, wire->rx + wire->rx_at, n);
        wire->rx_at += n;
        body_advance(wire, n);
        return wire->body_of == NULL;
    }
    const uint8_t *magic = rx_peek(wire, sizeof(uint32_t));

    if (!magic)
        return 0;
    if (load_u32(magic) == htobe32(NBD_SIMPLE_REPLY_MAGIC))
        return parse_simple(wire);
    return load_u32(magic) == htobe32(NBD_STRUCTURED_REPLY_MAGIC) ? parse_chunk(wire) : -EPROTO;
}

static int parse(struct wire *wire)
{
    int rc;

    do
        rc = parse_one(wire);
    while (rc > 0);
    /* The bytes that are left are less than a header. */
    memmove(wire->rx, wire->rx + wire->rx_at, wire->rx_end - wire->rx_at);
    wire->rx_end -= wire->rx_at;
    wire->rx_at = 0;
    return rc;
}

/*
 * Receives once: the rest of a body goes to its place, the bytes after it go to rx. Returns how many bytes came, 0 if
 * there are none now, or -errno. *wanted is how many there was room for. Without ask_socket it takes only what a TLS
 * session has received already.
 */
static ssize_t receive_once(struct wire *wire, size_t *wanted, bool ask_socket)
{
    struct iovec iov[2];
    unsigned n = 0;

    if (wire->body_of)
        iov[n++] = (struct iovec){wire->body, wire->body_left};
    iov[n++] = (struct iovec){wire->rx + wire->rx_end, RX_BYTES - wire->rx_end};
    *wanted = iov[0].iov_len + (n == 2 ? iov[1].iov_len : 0);
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = n};
    ssize_t got;

    if (wire->tls) {
        got = tls_receive(wire->tls, iov, n, ask_socket);
    } else {
        got = recvmsg(wire->fd, &message, MSG_DONTWAIT);
        got = got < 0 ? -errno : got;
    }
    if (got < 0)
        return got == -EAGAIN || got == -EINTR ? 0 : got;
    return got == 0 ? -ECONNRESET : got;
}

/* Whether it pays to receive again: a socket that gave less than there was room for is empty. */
static bool may_have_more(const struct wire *wire, size_t got, size_t wanted)
{
    return wire->tls ? tls_has_input(wire->tls) || tls_socket_was_full(wire->tls) : got == wanted;
}

int wire_receive(struct wire *wire)
{
    /* The socket does not become readable for bytes that the TLS session holds, so all of them are taken here. */
    for (int turn = 0; turn < RECEIVES_MAX || (wire->tls && tls_has_input(wire->tls)); turn++) {
        size_t wanted;
        ssize_t got = receive_once(wire, &wanted, turn < RECEIVES_MAX);

        if (got <= 0)
            return (int)got;
        size_t bytes = (size_t)got;

        wire->received += bytes;
        if (wire->body_of) {
            uint32_t n = wire->body_left < bytes ? wire->body_left : (uint32_t)bytes;

            body_advance(wire, n);
            bytes -= n;
        }
        wire->rx_end += (uint32_t)bytes;
        int rc = parse(wire);

        if (rc < 0 || !may_have_more(wire, (size_t)got, wanted))
            return rc;
    }
    return 0;
}
