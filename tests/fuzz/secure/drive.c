/* SPDX-License-Identifier: MIT */
/*
 * The pager's negotiation with a donor over TLS (secure.h), in this process and thread; the input is what the donor
 * sends.
 *
 * Input: bit 0 of the first byte says what the donor sends. Unset: the rest of the input, without TLS, and nothing
 * else. Set: an honest negotiation up to the TLS handshake, and then the rest of the input, encrypted. The other bits
 * say in portions of how many bytes. Checked besides what sanitizers check: the negotiation never succeeds without
 * TLS; a success has a size and a description that ends; a failure has a reason; and when the donor has closed its
 * socket, the negotiation waits for nothing.
 */
#include "tests/fuzz/drive.h"

#include "common/log.h"
#include "common/nbd_protocol.h"
#include "donor/address.h"
#include "donor/secure.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TURNS_MAX     200000u
#define REQUEST_BYTES (4 + sizeof(struct nbd_option_header)) /* the client's flags, and STARTTLS */

static const struct psk psk = {.n_bytes = PSK_MIN_BYTES, .bytes = "sixteen bytes..."};

struct drive {
    int donor_fd;
    struct tls *donor; /* the donor's session; NULL: the donor does without TLS */
    struct secure *secure;
    unsigned n_turns;
    int rc; /* of the last secure_step() */
};

static int client_fd;

/* Replaces the function of address.c. drive.donor_fd is the other end of the socket. */
int address_connect(const char *address)
{
    (void)address;
    return client_fd;
}

static bool find_key(void *ctx, const uint8_t *identity, size_t identity_bytes, struct psk *found)
{
    (void)ctx;
    *found = psk;
    return identity_bytes == 2 && memcmp(identity, "me", 2) == 0;
}

static void step(struct drive *drive)
{
    static uint8_t sink[65536];
    struct iovec iov = {sink, sizeof(sink)};
    drive->n_turns++;
    assert(drive->n_turns <= TURNS_MAX);
    drive->rc = secure_step(drive->secure);
    if (drive->donor != NULL) {
        while (tls_receive(drive->donor, &iov, 1, true) > 0) {
        }
        return;
    }
    while (recv(drive->donor_fd, sink, sizeof(sink), MSG_DONTWAIT) > 0) {
    }
}

static void say_plain(int fd, const void *bytes, size_t size)
{
    ssize_t sent = send(fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    assert(sent == (ssize_t)size);
}

/* Plays an honest donor until the TLS handshake is over. */
static void seal(struct drive *drive)
{
    const struct nbd_greeting greeting = {.magic = htobe64(NBD_MAGIC),
                                          .option_magic = htobe64(NBD_OPTION_MAGIC),
                                          .handshake_flags = htobe16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)};
    const struct nbd_option_reply ack = {
        .magic = htobe64(NBD_OPT_REPLY_MAGIC), .option = htobe32(NBD_OPT_STARTTLS), .type = htobe32(NBD_REP_ACK)};
    uint8_t request[REQUEST_BYTES];
    say_plain(drive->donor_fd, &greeting, sizeof(greeting));
    drive->rc = secure_step(drive->secure);
    ssize_t got = recv(drive->donor_fd, request, sizeof(request), MSG_DONTWAIT);
    assert(got == (ssize_t)REQUEST_BYTES);
    say_plain(drive->donor_fd, &ack, sizeof(ack));
    drive->donor = tls_server_new(drive->donor_fd, find_key, NULL);
    assert(drive->donor != NULL);
    int rc = -EAGAIN;
    while (rc == -EAGAIN) {
        drive->n_turns++;
        assert(drive->n_turns <= TURNS_MAX);
        drive->rc = secure_step(drive->secure);
        rc = tls_handshake(drive->donor);
    }
    assert(rc == 0);
}

static void say(struct drive *drive, const uint8_t *data, size_t size)
{
    struct iovec iov = {(void *)(uintptr_t)data, size};
    ssize_t sent = drive->donor != NULL ? tls_send(drive->donor, &iov, 1)
                                        : send(drive->donor_fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    /* After a failure the client may have closed its socket. */
    assert(sent == (ssize_t)size || drive->rc != -EAGAIN);
}

static void end_check(const struct drive *drive)
{
    assert(drive->rc != -EAGAIN);
    assert((drive->rc == 0) == (*secure_why(drive->secure) == '\0'));
    if (drive->rc == 0) {
        assert(drive->donor != NULL && secure_tls(drive->secure) != NULL);
        assert(secure_facts(drive->secure)->bytes >= 0);
        assert(strlen(secure_description(drive->secure)) <= NBD_MAX_STRING);
    }
}

void drive_input(const uint8_t *data, size_t size)
{
    int fds[2];
    if (size == 0) {
        return;
    }
    log_open("fuzz", NULL, LOG_ERROR);
    int rc = socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds);
    assert(rc == 0);
    client_fd = fds[1];
    struct secure_wishes wishes = {.address = "",
                                   .export = "export",
                                   .identity = "me",
                                   .psk = &psk,
                                   .contexts = {"x-fuzz:long", NBD_DEMAND_CONTEXT}};
    struct drive drive = {.donor_fd = fds[0], .secure = secure_new(&wishes), .rc = -EAGAIN};
    assert(drive.secure != NULL);
    if ((data[0] & 1) != 0) {
        seal(&drive);
    }
    size_t portion = (data[0] >> 1) == 0 ? 4096 : (size_t)(data[0] >> 1) * 7;
    for (size_t at = 1; at < size && drive.rc == -EAGAIN; at += portion) {
        say(&drive, data + at, size - at < portion ? size - at : portion);
        step(&drive);
    }
    shutdown(fds[0], SHUT_WR);
    while (drive.rc == -EAGAIN) {
        step(&drive);
    }
    end_check(&drive);
    tls_free(drive.donor);
    secure_free(drive.secure);
    close(fds[0]);
}
