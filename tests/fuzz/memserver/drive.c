/* SPDX-License-Identifier: MIT */
/*
 * A hostile client of the memory server: one connection over a socket pair, in this process and thread. One of the
 * exports has a key, so that STARTTLS is answered, and the bytes after it reach the handshake of TLS.
 *
 * Input: the first byte says how the stream begins (bits 0 and 1: with nothing, or with a canned handshake for simple
 * or for structured replies) and in which portions it arrives (the other bits); the rest is the stream. Checked, in
 * addition to what sanitizers check: the connection ends when the client does, within a bounded number of turns; no
 * client stays attached; and memory that is a hole by the bitmap is zero.
 */
#include "tests/fuzz/drive.h"

#include "common/log.h"
#include "memserver/connection.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* This is no multiple of a page, and has more pages than a word of the bitmap has bits. */
#define EXPORT_BYTES 270001u
#define TURNS_MAX    1000000u

#define CLIENT_FLAGS     "\0\0\0\3"
#define STRUCTURED_REPLY "IHAVEOPT\0\0\0\10\0\0\0\0"
#define SET_CONTEXT      "IHAVEOPT\0\0\0\12\0\0\0\34\0\0\0\1a\0\0\0\1\0\0\0\17base:allocation"
#define GO               "IHAVEOPT\0\0\0\7\0\0\0\7\0\0\0\1a\0\0"

static const char simple_prefix[] = CLIENT_FLAGS GO;
static const char structured_prefix[] = CLIENT_FLAGS STRUCTURED_REPLY SET_CONTEXT GO;

struct drive {
    int client_fd;
    struct connection *connection; /* NULL: it has ended */
    unsigned n_turns;
};

static void client_drain(const struct drive *drive)
{
    static uint8_t sink[65536];
    while (recv(drive->client_fd, sink, sizeof(sink), MSG_DONTWAIT) > 0) {
    }
}

/* Runs turns of the connection until it wants more input, or has ended. */
static void connection_drive(struct drive *drive)
{
    enum connection_step step = STEP_AGAIN;
    while (step != STEP_INPUT) {
        bool worked;
        assert(drive->n_turns < TURNS_MAX);
        drive->n_turns++;
        step = connection_run(drive->connection, &worked);
        client_drain(drive);
        if (step == STEP_CLOSED) {
            connection_free(drive->connection);
            drive->connection = NULL;
            return;
        }
        /* A turn receives once, so there may be more input. */
        step = worked && step == STEP_INPUT ? STEP_AGAIN : step;
    }
}

static void stream_send(struct drive *drive, const uint8_t *data, size_t size, size_t portion)
{
    while (size > 0 && drive->connection != NULL) {
        size_t bytes = size < portion ? size : portion;
        ssize_t sent = send(drive->client_fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        assert(sent > 0 || errno == EAGAIN || errno == EPIPE);
        data += sent > 0 ? sent : 0;
        size -= sent > 0 ? (size_t)sent : 0;
        connection_drive(drive);
    }
}

static const uint8_t zeroes[EXPORT_BYTES];

static void holes_check(void *ctx, const struct export *export)
{
    (void)ctx;
    const struct store *store = &export->store;
    uint64_t offset = 0;
    assert(export->n_clients == 0);
    assert(store_resident_bytes(store) <= store->mapped_bytes);
    while (offset < store->size_bytes) {
        struct store_run run = store_run_at(store, offset, store->size_bytes - offset);
        assert(run.is_data || memcmp(store->memory + offset, zeroes, run.length_bytes) == 0);
        offset += run.length_bytes;
    }
}

void drive_input(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return;
    }
    log_open("fuzz", NULL, LOG_ERROR);
    struct exports exports;
    struct counters counters = {0};
    uint64_t free_bytes;
    int fds[2];
    exports_open(&exports, 3 * store_round_up(EXPORT_BYTES));
    const struct psk psk = {.n_bytes = PSK_MIN_BYTES, .bytes = "sixteen bytes..."};
    int rc = export_add(&exports, "a", EXPORT_BYTES, NULL, NULL, &free_bytes);
    assert(rc == 0);
    rc = export_add(&exports, "other", 1, NULL, NULL, &free_bytes);
    assert(rc == 0);
    rc = export_add(&exports, "sealed", 1, &psk, NULL, &free_bytes);
    assert(rc == 0);
    rc = socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds);
    assert(rc == 0);
    struct drive drive = {.client_fd = fds[0], .connection = connection_new(fds[1], "fuzz", &exports, &counters)};
    assert(drive.connection != NULL);

    unsigned mode = data[0] & 3;
    size_t portion = (data[0] >> 2) == 0 ? SIZE_MAX : (size_t)(data[0] >> 2) * 37;
    if (mode == 1) {
        stream_send(&drive, (const uint8_t *)simple_prefix, sizeof(simple_prefix) - 1, SIZE_MAX);
    } else if (mode != 0) {
        stream_send(&drive, (const uint8_t *)structured_prefix, sizeof(structured_prefix) - 1, SIZE_MAX);
    }
    assert(mode == 0 || drive.connection->phase == PHASE_TRANSMISSION);
    stream_send(&drive, data + 1, size - 1, portion);
    shutdown(fds[0], SHUT_WR);
    while (drive.connection != NULL) {
        connection_drive(&drive);
    }
    close(fds[0]);
    exports_visit(&exports, NULL, holes_check, NULL);
    exports_close(&exports);
}
