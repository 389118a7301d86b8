/* SPDX-License-Identifier: MIT */
#include "nbd_tls.h"

#include "common/nbd_protocol.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Waits until the socket is ready, for limit_ms at most. Returns 0 or -ETIMEDOUT. */
static int ready_wait(int fd, short events, int limit_ms)
{
    struct pollfd poll_fd = {.fd = fd, .events = events};
    return poll(&poll_fd, 1, limit_ms) > 0 ? 0 : -ETIMEDOUT;
}

static int handshake_run(struct tls *tls, int fd, int limit_ms)
{
    int rc = tls_handshake(tls);
    while (rc == -EAGAIN) {
        rc = ready_wait(fd, tls_has_output(tls) ? POLLIN | POLLOUT : POLLIN, limit_ms);
        rc = rc < 0 ? rc : tls_handshake(tls);
    }
    return rc;
}

/* Receives the greeting and sends STARTTLS as the first option. Returns NULL, or a text that says what failed. */
static const char *starttls(int fd)
{
    const uint32_t flags = htobe32(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
    const struct nbd_option_header option = {.magic = htobe64(NBD_OPTION_MAGIC), .option = htobe32(NBD_OPT_STARTTLS)};
    struct nbd_greeting greeting;
    struct nbd_option_reply reply;
    uint8_t request[sizeof(flags) + sizeof(option)];
    memcpy(request, &flags, sizeof(flags));
    memcpy(request + sizeof(flags), &option, sizeof(option));
    if (recv(fd, &greeting, sizeof(greeting), MSG_WAITALL) != (ssize_t)sizeof(greeting) ||
        send(fd, request, sizeof(request), MSG_NOSIGNAL) != (ssize_t)sizeof(request) ||
        recv(fd, &reply, sizeof(reply), MSG_WAITALL) != (ssize_t)sizeof(reply)) {
        return "the handshake failed";
    }
    return be32toh(reply.type) == NBD_REP_ACK ? NULL : "it offers no TLS";
}

static const char *export_choose(struct tls *tls, int fd, const char *export, int limit_ms, uint64_t *export_bytes)
{
    uint32_t name_bytes = (uint32_t)strlen(export);
    struct nbd_option_header option = {
        .magic = htobe64(NBD_OPTION_MAGIC), .option = htobe32(NBD_OPT_EXPORT_NAME), .length = htobe32(name_bytes)};
    struct iovec iov[] = {{&option, sizeof(option)}, {(void *)(uintptr_t) export, name_bytes}};
    uint8_t reply[sizeof(uint64_t) + sizeof(uint16_t)]; /* size and flags */
    size_t got = 0;
    if (sealed_send(tls, fd, iov, 2, limit_ms) < 0) {
        return "the handshake failed";
    }
    while (got < sizeof(reply)) {
        ssize_t n = sealed_receive(tls, fd, reply + got, sizeof(reply) - got, limit_ms);
        if (n <= 0) {
            return "the handshake failed";
        }
        got += (size_t)n;
    }
    memcpy(export_bytes, reply, sizeof(*export_bytes));
    *export_bytes = be64toh(*export_bytes);
    return NULL;
}

const char *nbd_negotiate_sealed(int fd, const char *keys, const char *export, int limit_ms, struct tls **tls,
                                 uint64_t *export_bytes)
{
    static char text[512];
    struct psk psk;
    int rc = psk_file_find(keys, export, &psk, text, sizeof(text));
    const char *failure = rc == -ENOKEY ? "the key file has no key for this export" : rc < 0 ? text : starttls(fd);
    *tls = failure == NULL ? tls_client_new(fd, export, &psk) : NULL;
    psk_wipe(&psk);
    if (failure != NULL) {
        return failure;
    }
    if (*tls == NULL) {
        return "out of memory";
    }
    if (handshake_run(*tls, fd, limit_ms) < 0) {
        return "the TLS handshake failed";
    }
    return export_choose(*tls, fd, export, limit_ms, export_bytes);
}

int sealed_send(struct tls *tls, int fd, const struct iovec *iov, int n, int limit_ms)
{
    struct iovec left[2];
    size_t skip = 0;
    while (n > 0 || tls_has_output(tls)) {
        ssize_t taken;
        if (n > 0 && skip > 0) {
            /* The rest of a buffer that was taken in part is sent alone. */
            left[0] = (struct iovec){(uint8_t *)iov->iov_base + skip, iov->iov_len - skip};
            taken = tls_send(tls, left, 1);
        } else {
            taken = tls_send(tls, iov, (unsigned)n);
        }
        if (taken < 0 && taken != -EAGAIN) {
            errno = (int)-taken;
            return -1;
        }
        skip += taken > 0 ? (size_t)taken : 0;
        while (n > 0 && skip >= iov->iov_len) {
            skip -= iov->iov_len;
            iov++;
            n--;
        }
        if (tls_has_output(tls) && ready_wait(fd, POLLOUT, limit_ms) < 0) {
            errno = ETIMEDOUT;
            return -1;
        }
    }
    return 0;
}

ssize_t sealed_receive(struct tls *tls, int fd, void *buffer, size_t bytes, int limit_ms)
{
    struct iovec iov = {buffer, bytes};
    for (;;) {
        ssize_t n = tls_receive(tls, &iov, 1, true);
        if (n >= 0) {
            return n;
        }
        int rc = n == -EAGAIN && limit_ms > 0 ? ready_wait(fd, POLLIN, limit_ms) : (int)n;
        if (rc < 0) {
            errno = -rc;
            return -1;
        }
    }
}
