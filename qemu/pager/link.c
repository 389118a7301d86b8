/* SPDX-License-Identifier: MIT */
/* Connections of shims: see ../proto/proto.h. A peer that breaks the protocol is disconnected, nothing else. */
#include "clock.h"
#include "evict.h"
#include "log.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 16
#define LINKS   (sizeof(((struct evict_loop *)0)->links) / sizeof(struct link))

union message {
    struct gb_header h;
    struct gb_hello hello;
    struct gb_region region;
    struct gb_done done;
    struct gb_range_msg range;
    uint8_t bytes[512];
};

struct gb_header link_header(enum gb_msg_type type, uint32_t seq, size_t bytes)
{
    return (struct gb_header){.magic = GB_PROTO_MAGIC,
                              .version = GB_PROTO_VERSION,
                              .type = (uint16_t)type,
                              .seq = seq,
                              .bytes = (uint32_t)bytes};
}

static bool somebody_listens(const struct sockaddr_un *address)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    bool listens = fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0;

    if (fd >= 0)
        close(fd);
    return listens;
}

int link_listen(struct pager *pager)
{
    const char *path = pager->options->listen;
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    if (strlen(path) >= sizeof(address.sun_path))
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    if (somebody_listens(&address))
        return -EADDRINUSE;
    unlink(path);
    pager->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (pager->listen_fd < 0 || bind(pager->listen_fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        return -errno;
    /* Who may use it is decided by SO_PEERCRED, so that QEMU needs no group of ours. */
    if (chmod(path, 0666) < 0 || listen(pager->listen_fd, BACKLOG) < 0)
        return -errno;
    struct stat st;

    pager->listen_inode = lstat(path, &st) == 0 ? st.st_ino : 0;
    return 0;
}

static bool uid_allowed(const struct options *options, uid_t uid)
{
    if (uid == 0 || uid == geteuid())
        return true;
    for (uint32_t i = 0; i < options->n_peer_uids; i++)
        if (options->peer_uids[i] == uid)
            return true;
    return false;
}

/* A place for a new connection. If all are taken, whoever has been the longest without handing memory over goes. */
static struct link *find_place(struct evict_loop *loop)
{
    struct link *oldest = NULL;

    for (size_t i = 0; i < LINKS; i++) {
        struct link *link = &loop->links[i];

        if (link->state == LINK_FREE)
            return link;
        if (link->state != LINK_SERVING && (!oldest || link->opened_ns < oldest->opened_ns))
            oldest = link;
    }
    if (oldest) {
        log_warning("process %d connected and handed no memory over: it makes room for another", oldest->pid);
        link_close(loop, oldest);
    }
    return oldest;
}

struct link *link_of(struct evict_loop *loop, const struct region *region)
{
    for (size_t i = 0; region && i < LINKS; i++)
        if (loop->links[i].state == LINK_SERVING && loop->links[i].region == region)
            return &loop->links[i];
    return NULL;
}

int link_send(struct link *link, const void *message, size_t bytes)
{
    /* The shim reads at once; a queue that is full means that it does not live. */
    struct pollfd fd = {.fd = link->fd, .events = POLLOUT};

    if (send(link->fd, message, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)bytes)
        return 0;
    if (errno == EAGAIN && poll(&fd, 1, 1000) == 1 &&
        send(link->fd, message, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)bytes)
        return 0;
    int error = errno;

    if (error == EPIPE)
        log_debug("process %d has closed its connection", link->pid);
    else
        log_warning("process %d: cannot send: %s", link->pid, strerror(error));
    shutdown(link->fd, SHUT_RDWR);
    return -error;
}

static void reject(struct evict_loop *loop, struct link *link, int error, const char *text)
{
    struct gb_reject message = {.h = link_header(GB_MSG_REJECT, 0, sizeof(message)), .error = error};

    snprintf(message.text, sizeof(message.text), "%s", text);
    log_warning("process %d refused: %s", link->pid, text);
    if (send(link->fd, &message, sizeof(message), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        log_debug("process %d: cannot send: %s", link->pid, strerror(errno));
    link_close(loop, link);
}

void link_accept(struct evict_loop *loop)
{
    int fd = accept4(loop->pager->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct ucred cred;
    socklen_t length = sizeof(cred);
    struct link *link = fd < 0 ? NULL : find_place(loop);

    if (fd < 0)
        return;
    if (!link || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &length) < 0) {
        close(fd);
        return;
    }
    *link = (struct link){.state = LINK_HELLO, .fd = fd, .pidfd = -1, .pid = cred.pid, .opened_ns = clock_ns()};
    if (!uid_allowed(loop->pager->options, cred.uid)) {
        char text[GB_PROTO_TEXT_BYTES];

        snprintf(text, sizeof(text), "user id %u may not use this pager (see --peer-uid)", cred.uid);
        reject(loop, link, EACCES, text);
        return;
    }
    link->pidfd = (int)syscall(SYS_pidfd_open, cred.pid, 0);
    if (link->pidfd < 0) {
        reject(loop, link, errno, "its process cannot be watched");
        return;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = link};

    epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

void link_close(struct evict_loop *loop, struct link *link)
{
    struct pager *pager = loop->pager;
    struct region *region = link->region;

    if (link->state == LINK_FREE)
        return;
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, link->fd, NULL);
    close(link->fd);
    if (region) {
        link->state = LINK_HELLO; /* zap_abandon and discard_abandon must not send */
        zap_abandon(loop, link);
        discard_abandon(loop, link);
        pager_lock(pager);
        region->connected = false;
        pager_unlock(pager);
    } else if (link->pidfd >= 0) {
        close(link->pidfd);
    }
    link->state = LINK_FREE;
    link->region = NULL;
}

/* The name goes into logs and JSON: whatever is not plain ASCII is a question mark. */
static void take_comm(struct link *link, const char comm[16])
{
    memcpy(link->comm, comm, sizeof(link->comm));
    link->comm[sizeof(link->comm) - 1] = '\0';
    for (char *c = link->comm; *c; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
}

static void on_hello(struct evict_loop *loop, struct link *link, const struct gb_hello *hello)
{
    struct pager *pager = loop->pager;
    struct gb_welcome welcome = {
        .h = link_header(GB_MSG_WELCOME, hello->h.seq, sizeof(welcome)),
        .uffd_features = features_uffd_mask(&pager->features),
        .register_modes = features_register_modes(),
    };
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {&welcome, sizeof(welcome)};
    struct msghdr message = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &pager->device_fd, sizeof(int));
    link->resume = hello->flags & GB_HELLO_RESUME;
    take_comm(link, hello->comm);
    link->state = LINK_REGION;
    if (sendmsg(link->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        link_close(loop, link);
}

static void accept_region(struct link *link, struct region *region, uint32_t seq)
{
    struct gb_region_ok ok = {.h = link_header(GB_MSG_REGION_OK, seq, sizeof(ok)), .region_id = region->id};

    link->region = region;
    link->state = LINK_SERVING;
    link_send(link, &ok, sizeof(ok));
}

static void close_all(const int fds[3])
{
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static void on_region(struct evict_loop *loop, struct link *link, const struct gb_region *message, const int fds[3])
{
    char text[GB_PROTO_TEXT_BYTES];

    if (fds[0] < 0 || fds[1] < 0 || fds[2] < 0) {
        close_all(fds);
        reject(loop, link, EPROTO, "REGION came without its three descriptors");
        return;
    }
    if (link->resume) {
        bool fds_taken;
        struct region *region = region_resumed(loop, link, message, fds, &fds_taken);

        if (!fds_taken)
            close_all(fds);
        if (!region) {
            reject(loop, link, ESTALE, "this pager does not know the region: it was served by another one");
            return;
        }
        close(link->pidfd);
        link->pidfd = -1;
        accept_region(link, region, message->h.seq);
        return;
    }
    struct region *region = region_admit(loop, link, message, fds, text, sizeof(text));

    if (!region) {
        int error = errno;

        close_all(fds);
        reject(loop, link, error, text);
        return;
    }
    accept_region(link, region, message->h.seq);
}

static bool header_valid(const union message *message, ssize_t bytes)
{
    return bytes >= (ssize_t)sizeof(message->h) && message->h.magic == GB_PROTO_MAGIC &&
           message->h.bytes == (uint32_t)bytes;
}

static bool is(const union message *message, enum gb_msg_type type, size_t bytes)
{
    return message->h.type == type && message->h.bytes == bytes;
}

static void on_zap_done(struct evict_loop *loop, struct link *link, const struct gb_done *message)
{
    if (!zap_done(loop, link, message))
        reject(loop, link, EPROTO, "it answered a zap that was not asked for");
}

static void on_bye(struct evict_loop *loop, struct link *link, uint32_t seq)
{
    struct gb_header done = link_header(GB_MSG_BYE_DONE, seq, sizeof(done));

    region_end(loop->pager, link->region);
    link_send(link, &done, sizeof(done));
    link_close(loop, link);
}

static void on_message(struct evict_loop *loop, struct link *link, const union message *m, int fds[3])
{
    bool serving = link->state == LINK_SERVING;

    if (is(m, GB_MSG_REGION, sizeof(m->region)) && link->state == LINK_REGION) {
        on_region(loop, link, &m->region, fds);
        return;
    }
    close_all(fds);
    if (m->h.version != GB_PROTO_VERSION)
        reject(loop, link, EPROTO, "the shim and the pager are of different versions");
    else if (is(m, GB_MSG_HELLO, sizeof(m->hello)) && link->state == LINK_HELLO)
        on_hello(loop, link, &m->hello);
    else if (serving && is(m, GB_MSG_BYE, sizeof(m->h)))
        on_bye(loop, link, m->h.seq);
    else if (serving && is(m, GB_MSG_ZAP_DONE, sizeof(m->done)))
        on_zap_done(loop, link, &m->done);
    else if (serving && is(m, GB_MSG_DISCARD_BEGIN, sizeof(m->range)))
        discard_begin(loop, link, &m->range);
    else if (serving && is(m, GB_MSG_DISCARD_END, sizeof(m->range)))
        discard_end(loop, link, &m->range);
    else
        reject(loop, link, EPROTO, "unexpected message");
}

static void take_fds(struct msghdr *message, int fds[3])
{
    for (struct cmsghdr *cmsg = CMSG_FIRSTHDR(message); cmsg; cmsg = CMSG_NXTHDR(message, cmsg)) {
        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);

        for (size_t i = 0; i < n; i++) {
            int fd;

            memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(int));
            if (i < 3 && fds[i] < 0)
                fds[i] = fd;
            else
                close(fd);
        }
    }
}

void link_readable(struct evict_loop *loop, struct link *link)
{
    union message message;
    char control[CMSG_SPACE(3 * sizeof(int))];
    struct iovec iov = {&message, sizeof(message)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    int fds[3] = {-1, -1, -1};

    if (link->state == LINK_FREE)
        return;
    ssize_t got = recvmsg(link->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    /* A peer that closes with our message unread resets the connection: its last words come after the error. */
    if (got < 0 && errno == ECONNRESET)
        got = recvmsg(link->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        if (link->region)
            log_info("process %d (%s) closed its connection", link->pid, link->comm);
        link_close(loop, link);
        return;
    }
    take_fds(&header, fds);
    if (!header_valid(&message, got)) {
        close_all(fds);
        reject(loop, link, EPROTO, "not a message of this protocol");
        return;
    }
    on_message(loop, link, &message, fds);
}
