/* SPDX-License-Identifier: MIT */
/*
 * A hostile donor at the other end of a wire, in this process and thread: the input says what the pager asks and what
 * the donor answers.
 *
 * Input: the first byte chooses structured replies (bit 0), small socket buffers (bit 1) and the portions in which
 * the donor sends (the other bits); then come operations, see `enum operation`. The donor reads requests as a real
 * one does, so the input need not guess cookies. Checked, in addition to what sanitizers check:
 *
 * - each request completes exactly once, and not before the donor has it as a whole;
 * - a read without error has all its bytes from the donor, each at its place; no reply writes to it after that;
 * - an honest reply to a request completes it, as long as the donor has sent nothing wrong on this connection;
 * - the donor receives the bytes of writes as they are.
 */
#include "tests/fuzz/drive.h"

#include "common/nbd_protocol.h"
#include "qemu/pager/donor/wire.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define REQUESTS_MAX 2048u
#define BYTES_MAX    (8u << 20) /* size of all buffers of an input together */
#define SMALL_BUFFER 4096
#define CANARY       0xc5u /* fills a buffer before bytes come; no donor sends it */

enum operation {
    OP_READ,
    OP_WRITE,
    OP_TRIM,
    OP_BURST,
    OP_FLUSH,
    OP_RAW,    /* the donor sends bytes of the input */
    OP_COOKIE, /* the next reply has another cookie */
    OP_SIMPLE,
    OP_DATA,
    OP_HOLE,
    OP_ERROR,
    OP_NONE,
    OP_HONEST,
    OP_END, /* the donor sends nothing more */
    OPS
};

struct request {
    struct drive *drive;
    enum nbd_command command;
    uint8_t *buf;
    uint64_t offset;
    uint32_t bytes;
    uint64_t cookie; /* as it was on the wire */
    bool touched;    /* the donor has sent a reply to it */
    bool done;
    int error;
};

struct drive {
    const uint8_t *input;
    size_t left;
    struct wire *wire;
    int pager_fd, donor_fd; /* donor_fd -1: the donor has closed it */
    bool structured, aborting, broken;
    bool lied;        /* the donor has sent raw bytes or a wrong cookie, which the pager may take for anything */
    bool canary_sent; /* the canary was in a header, which may be taken for content after wrong bytes */
    size_t portion;
    uint64_t cookie_change;
    size_t buffer_bytes;
    uint32_t n_requests, n_seen; /* requests that are queued, and that the donor has as a whole, in the same order */
    uint32_t n_headers;
    uint32_t payload_at; /* bytes that have come of the payload that is being received */
    uint8_t header[28];
    uint32_t header_at;
    struct request requests[REQUESTS_MAX];
};

struct reply {
    uint8_t bytes[64];
    size_t length;
};

static uint64_t take(struct drive *drive, unsigned n_bytes)
{
    uint64_t value = 0;

    for (; n_bytes > 0 && drive->left > 0; n_bytes--, drive->left--)
        value = value << 8 | *drive->input++;
    return value;
}

/* Returns the donor's byte at an offset of the export: never the canary, never zero. */
static uint8_t content(uint64_t offset)
{
    return (uint8_t)(1 + (offset * 7 + (offset >> 9)) % 190);
}

static bool byte_comes_from_donor(const struct drive *drive, const struct request *request, uint32_t i)
{
    if (drive->lied)
        return request->buf[i] != CANARY || drive->canary_sent;
    return request->buf[i] == content(request->offset + i) || request->buf[i] == 0;
}

static void donor_read(struct drive *drive);

void request_complete(struct request *request, int error)
{
    struct drive *drive = request->drive;

    assert(!request->done);
    request->done = true;
    request->error = error;
    if (!drive->aborting) {
        donor_read(drive);
        assert(request - drive->requests < drive->n_seen);
    }
    for (uint32_t i = 0; error == 0 && request->command == NBD_CMD_READ && i < request->bytes; i++)
        assert(byte_comes_from_donor(drive, request, i));
    free(request->buf);
    request->buf = NULL;
}

/* --- the pager's side --- */

static void ask(struct drive *drive, enum nbd_command command, uint32_t bytes, uint64_t offset)
{
    if (drive->broken || drive->n_requests == REQUESTS_MAX || drive->buffer_bytes + bytes > BYTES_MAX)
        return;
    struct request *request = &drive->requests[drive->n_requests];
    int rc;

    *request = (struct request){.drive = drive, .command = command, .bytes = bytes, .offset = offset};
    request->buf = malloc(bytes);
    assert(request->buf);
    for (uint32_t i = 0; i < bytes; i++)
        request->buf[i] = command == NBD_CMD_WRITE ? content(offset + i) : CANARY;
    if (command == NBD_CMD_READ)
        rc = wire_read(drive->wire, request, request->buf, bytes, offset);
    else if (command == NBD_CMD_WRITE)
        rc = wire_write(drive->wire, request, request->buf, bytes, offset);
    else
        rc = wire_trim(drive->wire, request, bytes, offset);
    if (rc < 0) {
        assert(rc == -EAGAIN);
        free(request->buf);
        return;
    }
    drive->n_requests++;
    drive->buffer_bytes += bytes;
}

static void ask_from_input(struct drive *drive, enum nbd_command command)
{
    uint32_t size = (uint32_t)take(drive, 2);
    uint32_t bytes = 1 + (size & 0x8000 ? (size & 0x7fff) * 2 : size);

    ask(drive, command, bytes, take(drive, 1) * 1000);
}

static void burst(struct drive *drive)
{
    for (uint64_t n = take(drive, 1) * 4; n > 0; n--)
        ask(drive, n % 3 ? NBD_CMD_READ : NBD_CMD_WRITE, (uint32_t)(n % 64) + 1, n * 64);
}

static void check(struct drive *drive, int rc)
{
    assert(rc <= 0);
    if (rc == 0)
        return;
    drive->broken = true;
    drive->aborting = true;
    wire_abort(drive->wire, ENOTCONN);
}

/* Has the pager receive all that has come. */
static void receive_all(struct drive *drive)
{
    int before, after;

    while (!drive->broken && ioctl(drive->pager_fd, FIONREAD, &before) == 0 && before > 0) {
        check(drive, wire_receive(drive->wire));
        ioctl(drive->pager_fd, FIONREAD, &after);
        assert(after < before);
    }
}

/* --- the donor's side --- */

static void header_received(struct drive *drive)
{
    struct request *request = &drive->requests[drive->n_headers++];
    uint64_t cookie, offset;
    uint32_t magic, bytes;
    uint16_t command;

    assert(drive->n_headers <= drive->n_requests);
    memcpy(&magic, drive->header, 4);
    memcpy(&command, drive->header + 6, 2);
    memcpy(&cookie, drive->header + 8, 8);
    memcpy(&offset, drive->header + 16, 8);
    memcpy(&bytes, drive->header + 24, 4);
    assert(be32toh(magic) == NBD_REQUEST_MAGIC && be16toh(command) == request->command);
    assert(be64toh(offset) == request->offset && be32toh(bytes) == request->bytes);
    request->cookie = be64toh(cookie);
    drive->header_at = 0;
    drive->payload_at = 0;
    if (request->command != NBD_CMD_WRITE)
        drive->n_seen++;
}

static void payload_received(struct drive *drive, uint8_t byte)
{
    const struct request *request = &drive->requests[drive->n_seen];

    assert(byte == content(request->offset + drive->payload_at));
    if (++drive->payload_at == request->bytes)
        drive->n_seen++;
}

/* Has the donor receive what the pager has sent, and checks it. */
static void donor_read(struct drive *drive)
{
    uint8_t bytes[8192];
    ssize_t got;

    while (drive->donor_fd >= 0 && (got = recv(drive->donor_fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
        for (ssize_t i = 0; i < got; i++) {
            if (drive->n_headers > drive->n_seen) {
                payload_received(drive, bytes[i]);
                continue;
            }
            drive->header[drive->header_at++] = bytes[i];
            if (drive->header_at == sizeof(drive->header))
                header_received(drive);
        }
}

static void donor_send(struct drive *drive, const uint8_t *bytes, size_t length)
{
    drive->canary_sent = drive->canary_sent || memchr(bytes, CANARY, length);
    while (length > 0 && !drive->broken && drive->donor_fd >= 0) {
        size_t portion = length < drive->portion ? length : drive->portion;
        ssize_t sent = send(drive->donor_fd, bytes, portion, MSG_DONTWAIT | MSG_NOSIGNAL);

        assert(sent > 0 || errno == EAGAIN || errno == EPIPE);
        if (sent < 0 && errno == EPIPE)
            return;
        bytes += sent > 0 ? sent : 0;
        length -= sent > 0 ? (size_t)sent : 0;
        if (sent < 0 || drive->portion < SIZE_MAX)
            receive_all(drive);
    }
}

static void send_raw(struct drive *drive)
{
    size_t length = take(drive, 1);
    uint8_t bytes[256] = {0};

    for (size_t i = 0; i < length; i++) {
        bytes[i] = (uint8_t)take(drive, 1);
        bytes[i] = bytes[i] == CANARY ? 0 : bytes[i];
    }
    drive->lied = true;
    donor_send(drive, bytes, length);
}

static void send_content(struct drive *drive, uint64_t offset, uint32_t bytes)
{
    uint8_t *buf = malloc(bytes);

    assert(buf);
    for (uint32_t i = 0; i < bytes; i++)
        buf[i] = content(offset + i);
    donor_send(drive, buf, bytes);
    free(buf);
}

static void put(struct reply *reply, uint64_t value, unsigned n_bytes)
{
    for (; n_bytes > 0; n_bytes--)
        reply->bytes[reply->length++] = (uint8_t)(value >> (n_bytes - 1) * 8);
}

static uint64_t cookie_of(struct drive *drive, const struct request *request)
{
    uint64_t cookie = request->cookie ^ drive->cookie_change;

    drive->lied = drive->lied || drive->cookie_change;
    drive->cookie_change = 0;
    return cookie;
}

static void send_simple(struct drive *drive, const struct request *request, uint32_t error)
{
    struct reply reply = {0};

    put(&reply, NBD_SIMPLE_REPLY_MAGIC, 4);
    put(&reply, error, 4);
    put(&reply, cookie_of(drive, request), 8);
    donor_send(drive, reply.bytes, reply.length);
    if (error == 0 && request->command == NBD_CMD_READ)
        send_content(drive, request->offset, request->bytes);
}

static struct reply chunk(struct drive *drive, const struct request *request, bool last, uint16_t type,
                          uint32_t length)
{
    struct reply reply = {0};

    put(&reply, NBD_STRUCTURED_REPLY_MAGIC, 4);
    put(&reply, last, 2);
    put(&reply, type, 2);
    put(&reply, cookie_of(drive, request), 8);
    put(&reply, length, 4);
    return reply;
}

static void send_data(struct drive *drive, const struct request *request, uint32_t at, uint32_t bytes, bool last)
{
    struct reply reply = chunk(drive, request, last, NBD_REPLY_TYPE_OFFSET_DATA, bytes + 8);

    put(&reply, request->offset + at, 8);
    donor_send(drive, reply.bytes, reply.length);
    if (bytes > 0)
        send_content(drive, request->offset + at, bytes);
}

static void send_hole(struct drive *drive, const struct request *request, uint32_t at, uint32_t bytes, bool last)
{
    struct reply reply = chunk(drive, request, last, NBD_REPLY_TYPE_OFFSET_HOLE, 12);

    put(&reply, request->offset + at, 8);
    put(&reply, bytes, 4);
    donor_send(drive, reply.bytes, reply.length);
}

static void send_error(struct drive *drive, const struct request *request)
{
    uint8_t text[255] = {0};
    uint8_t error = (uint8_t)take(drive, 1), text_bytes = (uint8_t)take(drive, 1), flags = (uint8_t)take(drive, 1);
    struct reply reply =
        chunk(drive, request, flags & 1, NBD_REPLY_TYPE_ERROR + (flags & 2 ? 1u : 0u), 6u + text_bytes);

    put(&reply, error, 4);
    put(&reply, text_bytes, 2);
    donor_send(drive, reply.bytes, reply.length);
    donor_send(drive, text, text_bytes);
}

/* Answers a request as a good donor does: a read in three parts, of which the middle one is a hole. */
static void send_honest(struct drive *drive, const struct request *request)
{
    uint32_t first = request->bytes / 3, second = request->bytes / 2;

    if (!drive->structured || request->command != NBD_CMD_READ) {
        send_simple(drive, request, 0);
        return;
    }
    if (first > 0)
        send_data(drive, request, 0, first, false);
    if (second > first)
        send_hole(drive, request, first, second - first, false);
    send_data(drive, request, second, request->bytes - second, true);
}

static void answer_honestly(struct drive *drive, struct request *request)
{
    bool known = !request->touched && !request->done && request - drive->requests < drive->n_seen;

    send_honest(drive, request);
    receive_all(drive);
    assert(!known || drive->lied || drive->broken || drive->donor_fd < 0 || (request->done && !request->error));
}

static void send_part(struct drive *drive, const struct request *request, enum operation op)
{
    uint32_t at = (uint32_t)take(drive, 2), bytes = (uint32_t)take(drive, 2);
    uint8_t flags = (uint8_t)take(drive, 1);

    if (flags & 2) /* up to the end of the request */
        bytes = at < request->bytes ? request->bytes - at : bytes;
    if (op == OP_HOLE)
        send_hole(drive, request, at, flags & 4 ? bytes << 16 : bytes, flags & 1);
    else
        send_data(drive, request, at, bytes, flags & 1);
}

static void send_none(struct drive *drive, const struct request *request)
{
    uint8_t flags = (uint8_t)take(drive, 1);
    struct reply reply = chunk(drive, request, flags & 1, flags & 2 ? 3 : 0, flags & 4);

    donor_send(drive, reply.bytes, reply.length);
}

/* Answers one of the latest requests whose header the donor has; it may have been answered before. */
static void answer(struct drive *drive, enum operation op)
{
    uint32_t back = (uint32_t)take(drive, 1);

    donor_read(drive);
    if (drive->n_headers == 0)
        return;
    struct request *request = &drive->requests[back < drive->n_headers ? drive->n_headers - 1 - back : 0];

    if (op == OP_HONEST)
        answer_honestly(drive, request);
    else if (op == OP_SIMPLE)
        send_simple(drive, request, (uint32_t)take(drive, 1));
    else if (op == OP_ERROR)
        send_error(drive, request);
    else if (op == OP_NONE)
        send_none(drive, request);
    else
        send_part(drive, request, op);
    request->touched = true;
}

static void donor_close(struct drive *drive)
{
    if (drive->donor_fd < 0)
        return;
    donor_read(drive); /* with unread bytes the pager would get a reset, and lose what was sent before */
    shutdown(drive->donor_fd, SHUT_WR);
    receive_all(drive);
    if (!drive->broken)
        check(drive, wire_receive(drive->wire));
    assert(drive->broken);
    close(drive->donor_fd);
    drive->donor_fd = -1;
}

static void step(struct drive *drive)
{
    enum operation op = (enum operation)(take(drive, 1) % OPS);

    if (op == OP_READ)
        ask_from_input(drive, NBD_CMD_READ);
    else if (op == OP_WRITE)
        ask_from_input(drive, NBD_CMD_WRITE);
    else if (op == OP_TRIM)
        ask_from_input(drive, NBD_CMD_TRIM);
    else if (op == OP_BURST)
        burst(drive);
    else if (op == OP_FLUSH)
        check(drive, wire_flush(drive->wire));
    else if (op == OP_RAW)
        send_raw(drive);
    else if (op == OP_COOKIE)
        drive->cookie_change = take(drive, 1) << take(drive, 1) % 64;
    else if (op == OP_END)
        donor_close(drive);
    else
        answer(drive, op);
    receive_all(drive);
}

void drive_input(const uint8_t *data, size_t size)
{
    int fds[2], small = SMALL_BUFFER;
    int rc = socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds);
    struct drive *drive = calloc(1, sizeof(*drive));

    assert(rc == 0 && drive);
    *drive = (struct drive){.input = data, .left = size, .pager_fd = fds[0], .donor_fd = fds[1]};
    uint8_t mode = (uint8_t)take(drive, 1);

    drive->structured = mode & 1;
    drive->portion = mode >> 2 ? (size_t)(mode >> 2) * 11 : SIZE_MAX;
    for (int i = 0; i < 2 && mode & 2; i++)
        setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    drive->wire = wire_create(fds[0], NULL, drive->structured);
    assert(drive->wire);
    while (drive->left > 0 && !drive->broken)
        step(drive);
    donor_close(drive);
    for (uint32_t i = 0; i < drive->n_requests; i++)
        assert(drive->requests[i].done);
    wire_destroy(drive->wire);
    close(drive->pager_fd);
    if (drive->donor_fd >= 0)
        close(drive->donor_fd);
    free(drive);
}
