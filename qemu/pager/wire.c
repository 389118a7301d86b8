/* SPDX-License-Identifier: MIT */
#include "wire.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define REQUEST_MAGIC    0x25609513u
#define SIMPLE_MAGIC     0x67446698u
#define STRUCTURED_MAGIC 0x668e33efu

#define COMMAND_READ  0u
#define COMMAND_WRITE 1u
#define COMMAND_TRIM  4u

#define CHUNK_DONE        1u
#define CHUNK_NONE        0u
#define CHUNK_DATA        1u
#define CHUNK_HOLE        2u
#define CHUNK_ERROR_FIRST 0x8000u /* this bit: an error */

/* A power of two, so that a cookie gives its slot by a mask. */
#define SLOTS    512u
#define RX_BYTES 32768u
#define IOVS     512u
/* An error's text and the like; more than this is nonsense. */
#define SKIP_MAX 8192u
/* Errors about parts of one request: after so many the donor means to keep us busy. */
#define ERRORS_MAX 16u
/* Receives in one call: a donor that sends without end must not keep its thread from the other donors. */
#define RECEIVES_MAX 64

struct nbd_request {
    uint32_t magic;
    uint16_t flags, command;
    uint64_t cookie, offset;
    uint32_t length;
} __attribute__((packed));

struct simple_reply {
    uint32_t magic, error;
    uint64_t cookie;
} __attribute__((packed));

struct chunk_header {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie;
    uint32_t length;
} __attribute__((packed));

struct slot {
    struct slot *next; /* free, or to be sent */
    struct request *request;
    uint8_t *read_to;          /* of a read */
    const uint8_t *write_from; /* of a write */
    uint64_t offset;
    uint32_t bytes;
    uint32_t seen; /* of a read: bytes that have come, from its first on */
    uint32_t n_errors;
    int error;
    bool sent;       /* as a whole: a reply before that is none */
    uint64_t cookie; /* of the present use */
    struct nbd_request header;
};

struct wire {
    int fd;
    bool structured;
    bool blocked;
    struct slot slots[SLOTS];
    struct slot *free;
    struct slot *unsent, **unsent_tail;
    size_t sent; /* bytes of the first unsent one that have left */
    uint64_t received;

    /* The body that is being received: its slot, and where it goes (NULL: nowhere). */
    struct slot *body_of;
    uint8_t *body;
    uint32_t body_left;
    bool body_last; /* its end completes the request */
    uint32_t skip;
    uint32_t rx_at, rx_end;
    uint8_t rx[RX_BYTES];
};

struct wire *wire_create(int fd, bool structured_replies)
{
    struct wire *wire = calloc(1, sizeof(*wire));

    if (!wire)
        return NULL;
    wire->fd = fd;
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
    set.cookie = slot->cookie + SLOTS; /* another one each time: a late reply to an old request is noticed */
    set.header = (struct nbd_request){
        .magic = htobe32(REQUEST_MAGIC),
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
    return queue(wire, COMMAND_READ,
                 (struct slot){.request = request, .read_to = buf, .bytes = bytes, .offset = offset});
}

int wire_write(struct wire *wire, struct request *request, const void *buf, uint32_t bytes, uint64_t offset)
{
    return queue(wire, COMMAND_WRITE,
                 (struct slot){.request = request, .write_from = buf, .bytes = bytes, .offset = offset});
}

int wire_trim(struct wire *wire, struct request *request, uint32_t bytes, uint64_t offset)
{
    return queue(wire, COMMAND_TRIM, (struct slot){.request = request, .bytes = bytes, .offset = offset});
}

bool wire_blocked(const struct wire *wire)
{
    return wire->blocked;
}

uint64_t wire_received(const struct wire *wire)
{
    return wire->received;
}

/* Adds the part of [bytes, bytes + length) that is behind *skip. */
static void add_iov(struct iovec *iov, unsigned *n, const void *bytes, size_t length, size_t *skip)
{
    if (*skip >= length) {
        *skip -= length;
        return;
    }
    /* sendmsg(2) does not write through it. */
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

int wire_flush(struct wire *wire)
{
    struct iovec iov[IOVS];

    wire->blocked = false;
    while (wire->unsent) {
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = gather(wire, iov)};
        ssize_t sent = sendmsg(wire->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN) {
            wire->blocked = true;
            return 0;
        }
        if (sent < 0)
            return -errno;
        advance(wire, (size_t)sent);
    }
    return 0;
}

static void finish(struct wire *wire, struct slot *slot)
{
    struct request *request = slot->request;
    int error = slot->error;

    /* A read that was answered with less than all is no read (and never zeroes). */
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

/* Each parse_* returns 1: went on, 0: more bytes are needed, or -errno. */
static int parse_simple(struct wire *wire)
{
    const struct simple_reply *reply = (const void *)rx_peek(wire, sizeof(*reply));

    if (!reply)
        return 0;
    struct slot *slot = slot_of(wire, reply->cookie);

    if (!slot)
        return -EPROTO;
    if (reply->error)
        slot->error = errno_of(reply->error);
    else if (slot->read_to && wire->structured)
        return -EPROTO; /* the specification wants data in chunks */
    wire->rx_at += (uint32_t)sizeof(*reply);
    if (slot->read_to && !slot->error)
        body_begin(wire, slot, slot->read_to, slot->bytes, true);
    else
        finish(wire, slot);
    return 1;
}

/*
 * Whether a chunk is the next part of what was asked for. In order, or else what came twice would count twice, and
 * hide that something never came.
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
    const uint8_t *head = rx_peek(wire, sizeof(struct chunk_header) + 8);

    if (!head)
        return 0;
    uint64_t offset = load_be64(head + sizeof(struct chunk_header));

    if (length < 8 || !is_next_part(slot, offset, length - 8))
        return -EPROTO;
    wire->rx_at += (uint32_t)sizeof(struct chunk_header) + 8;
    body_begin(wire, slot, slot->read_to + (offset - slot->offset), length - 8, last);
    return 1;
}

static int parse_hole(struct wire *wire, struct slot *slot, uint32_t length, bool last)
{
    const uint8_t *head = rx_peek(wire, sizeof(struct chunk_header) + 12);

    if (length != 12)
        return -EPROTO;
    if (!head)
        return 0;
    uint64_t offset = load_be64(head + sizeof(struct chunk_header));
    uint32_t bytes = be32toh(load_u32(head + sizeof(struct chunk_header) + 8));

    if (!is_next_part(slot, offset, bytes))
        return -EPROTO;
    wire->rx_at += (uint32_t)sizeof(struct chunk_header) + 12;
    memset(slot->read_to + (offset - slot->offset), 0, bytes);
    slot->seen += bytes;
    if (last)
        finish(wire, slot);
    return 1;
}

static int parse_error(struct wire *wire, struct slot *slot, uint32_t length, bool last)
{
    const uint8_t *head = rx_peek(wire, sizeof(struct chunk_header) + 4);

    if (length < 6 || length > SKIP_MAX || slot->n_errors == ERRORS_MAX)
        return -EPROTO;
    if (!head)
        return 0;
    slot->error = errno_of(load_u32(head + sizeof(struct chunk_header)));
    slot->n_errors++;
    wire->rx_at += (uint32_t)sizeof(struct chunk_header) + 4;
    wire->skip = length - 4;
    if (last)
        finish(wire, slot);
    return 1;
}

static int parse_chunk(struct wire *wire)
{
    const struct chunk_header *head = (const void *)rx_peek(wire, sizeof(*head));

    if (!head)
        return 0;
    struct slot *slot = slot_of(wire, head->cookie);
    uint32_t length = be32toh(head->length);
    uint16_t type = be16toh(head->type);
    bool last = be16toh(head->flags) & CHUNK_DONE;

    if (!slot || !wire->structured)
        return -EPROTO;
    if (type == CHUNK_DATA)
        return parse_data(wire, slot, length, last);
    if (type == CHUNK_HOLE)
        return parse_hole(wire, slot, length, last);
    if (type & CHUNK_ERROR_FIRST)
        return parse_error(wire, slot, length, last);
    if (type != CHUNK_NONE || length != 0 || !last)
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
    if (load_u32(magic) == htobe32(SIMPLE_MAGIC))
        return parse_simple(wire);
    return load_u32(magic) == htobe32(STRUCTURED_MAGIC) ? parse_chunk(wire) : -EPROTO;
}

static int parse(struct wire *wire)
{
    int rc;

    do
        rc = parse_one(wire);
    while (rc > 0);
    /* What is left is less than a header. */
    memmove(wire->rx, wire->rx + wire->rx_at, wire->rx_end - wire->rx_at);
    wire->rx_end -= wire->rx_at;
    wire->rx_at = 0;
    return rc;
}

/* One receive: the rest of a body into its place, what follows into rx. Returns bytes, 0 (nothing there), -errno. */
static ssize_t receive_once(struct wire *wire, size_t *wanted)
{
    struct iovec iov[2];
    unsigned n = 0;

    if (wire->body_of)
        iov[n++] = (struct iovec){wire->body, wire->body_left};
    iov[n++] = (struct iovec){wire->rx + wire->rx_end, RX_BYTES - wire->rx_end};
    *wanted = iov[0].iov_len + (n == 2 ? iov[1].iov_len : 0);
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = n};
    ssize_t got = recvmsg(wire->fd, &message, MSG_DONTWAIT);

    if (got < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    return got == 0 ? -ECONNRESET : got;
}

int wire_receive(struct wire *wire)
{
    for (int turn = 0; turn < RECEIVES_MAX; turn++) {
        size_t wanted;
        ssize_t got = receive_once(wire, &wanted);

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

        if (rc < 0 || (size_t)got < wanted)
            return rc;
    }
    return 0;
}
