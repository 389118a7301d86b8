/* SPDX-License-Identifier: MIT */
#include "link.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define HANDSHAKE_TIMEOUT_S 30u
#define REGION_FDS          3
#define FDS_MAX             8

_Static_assert(sizeof(((struct sockaddr_un *)0)->sun_path) == 108, "what the message below says");

static const char *error_text(int error)
{
    const char *text = strerrordesc_np(error);

    return text ? text : "unknown error";
}

void link_set_timeout(int sock, unsigned int seconds)
{
    struct timeval timeout = {.tv_sec = (time_t)seconds};

    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
    setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
}

int link_open(const char *path, struct text *text)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path)) {
        text_set(text, "the pager's socket path is longer than 107 bytes: %s", path);
        return -ENAMETOOLONG;
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (sock < 0) {
        int error = errno;

        text_set(text, "cannot make a socket: %s", error_text(error));
        return -error;
    }
    link_set_timeout(sock, HANDSHAKE_TIMEOUT_S);
    if (connect(sock, (struct sockaddr *)&address, sizeof(address)) < 0) {
        int error = errno;

        text_set(text, "cannot connect to the pager at %s: %s", path, error_text(error));
        close(sock);
        return -error;
    }
    return sock;
}

static int send_with_fds(int sock, const void *message, size_t bytes, const int *fds, size_t n_fds)
{
    char control[CMSG_SPACE(REGION_FDS * sizeof(int))] __attribute__((aligned(8))) = {0};
    struct iovec part = {.iov_base = (void *)(uintptr_t)message, .iov_len = bytes};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t sent;

    if (n_fds) {
        header.msg_control = control;
        header.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&header);

        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, n_fds * sizeof(int));
    }
    do
        sent = sendmsg(sock, &header, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return -errno;
    return (size_t)sent == bytes ? 0 : -EMSGSIZE;
}

static void header_set(struct gb_header *header, enum gb_msg_type type, uint32_t seq, uint32_t bytes)
{
    *header = (struct gb_header){GB_PROTO_MAGIC, GB_PROTO_VERSION, (uint16_t)type, seq, bytes};
}

int link_send(int sock, void *message, enum gb_msg_type type, uint32_t seq, uint32_t bytes)
{
    header_set(message, type, seq, bytes);
    return send_with_fds(sock, message, bytes, NULL, 0);
}

/* Keeps the first descriptor that came in *fd (if fd is given) and closes the others. */
static void take_fds(struct msghdr *header, int *fd)
{
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(header); cmsg; cmsg = CMSG_NXTHDR(header, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        for (size_t i = 0; i < n; i++) {
            int got;

            memcpy(&got, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(int));
            if (fd && *fd < 0)
                *fd = got;
            else
                close(got);
        }
    }
}

static int check_header(const struct gb_header *header, size_t bytes, struct text *text)
{
    if (bytes < sizeof(*header) || header->magic != GB_PROTO_MAGIC) {
        text_set(text, "the program that answers at the pager's socket does not speak the pager's protocol");
        return -EPROTO;
    }
    if (header->version != GB_PROTO_VERSION) {
        text_set(text,
                 "the pager speaks version %u of the protocol, this shim version %u: install both from one build",
                 header->version, GB_PROTO_VERSION);
        return -EPROTO;
    }
    if (header->bytes != bytes) {
        text_set(text, "the pager sent a message of %zu bytes that says it has %u", bytes, header->bytes);
        return -EPROTO;
    }
    return 0;
}

static int receive(int sock, void *buf, size_t buf_bytes, int *fd, struct text *text)
{
    char control[CMSG_SPACE(FDS_MAX * sizeof(int))] __attribute__((aligned(8)));
    struct iovec part = {.iov_base = buf, .iov_len = buf_bytes};
    struct msghdr header = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    bool was_reset = false;
    ssize_t got;

    /*
     * A pager that closes with a message unread resets the connection; its last message can be read after the error.
     */
    do
        got = recvmsg(sock, &header, MSG_CMSG_CLOEXEC);
    while (got < 0 && (errno == EINTR || (errno == ECONNRESET && !was_reset && (was_reset = true))));
    if (got < 0) {
        int error = errno;

        if (error == EAGAIN)
            text_set(text, "the pager does not answer");
        else
            text_set(text, "the connection to the pager broke: %s", error_text(error));
        return -error;
    }
    take_fds(&header, fd);
    if (got == 0) {
        text_set(text, "the pager closed the connection");
        return -ECONNRESET;
    }
    if (header.msg_flags & MSG_TRUNC) {
        text_set(text, "the pager sent a message that is too long");
        return -EPROTO;
    }
    return check_header(buf, (size_t)got, text);
}

int link_receive(int sock, void *buf, size_t buf_bytes, struct text *text)
{
    return receive(sock, buf, buf_bytes, NULL, text);
}

/* Waits for an answer of this type. A REJECT becomes an error with the pager's text. */
static int expect(int sock, enum gb_msg_type type, void *answer, uint32_t bytes, int *fd, struct text *text)
{
    union {
        struct gb_header h;
        struct gb_reject reject;
        struct gb_welcome welcome;
        struct gb_region_ok ok;
    } message;
    int rc = receive(sock, &message, sizeof(message), fd, text);

    if (rc < 0)
        return rc;
    if (message.h.type == GB_MSG_REJECT && message.h.bytes == sizeof(message.reject)) {
        message.reject.text[sizeof(message.reject.text) - 1] = '\0';
        text_set(text, "the pager refuses: %s", message.reject.text);
        return message.reject.error > 0 ? -message.reject.error : -EPERM;
    }
    if (message.h.type != (uint16_t)type || message.h.bytes != bytes) {
        text_set(text, "the pager sent message %u of %u bytes where %u of %u was due", message.h.type,
                 message.h.bytes, (unsigned)type, bytes);
        return -EPROTO;
    }
    memcpy(answer, &message, bytes);
    return 0;
}

static void comm_read(char comm[16])
{
    memset(comm, 0, 16);
    const char *name = program_invocation_short_name;

    memcpy(comm, name, strnlen(name, 15));
}

int link_hello(int sock, uint32_t flags, struct gb_welcome *welcome, int *device_fd, struct text *text)
{
    struct gb_hello hello = {.flags = flags, .pid = (uint32_t)getpid()};

    *device_fd = -1;
    comm_read(hello.comm);
    int rc = link_send(sock, &hello, GB_MSG_HELLO, 1, sizeof(hello));

    /* A pager that refuses this user may have closed the connection already; its REJECT can still be read. */
    if (rc < 0 && rc != -EPIPE) {
        text_set(text, "cannot send to the pager: %s", error_text(-rc));
        return rc;
    }
    rc = expect(sock, GB_MSG_WELCOME, welcome, sizeof(*welcome), device_fd, text);
    if (rc == 0 && *device_fd < 0) {
        text_set(text, "the pager sent no userfaultfd device");
        rc = -EPROTO;
    }
    if (rc < 0 && *device_fd >= 0) {
        close(*device_fd);
        *device_fd = -1;
    }
    return rc;
}

int link_hand_over(int sock, const struct region *region, struct text *text)
{
    struct gb_region message = {
        .base = region->base,
        .length = region->length,
        .memfd_offset = region->memfd_offset,
        .page_bytes = REGION_PAGE_BYTES,
        .ioctls = region->ioctls,
    };
    int fds[REGION_FDS] = {region->uffd, region->memfd, region->pagemap};
    struct gb_region_ok ok;

    header_set(&message.h, GB_MSG_REGION, 2, sizeof(message));
    int rc = send_with_fds(sock, &message, sizeof(message), fds, REGION_FDS);

    if (rc < 0 && rc != -EPIPE) {
        text_set(text, "cannot send to the pager: %s", error_text(-rc));
        return rc;
    }
    return expect(sock, GB_MSG_REGION_OK, &ok, sizeof(ok), NULL, text);
}
