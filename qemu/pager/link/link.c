/* SPDX-License-Identifier: MIT */
#include "link/link.h"

#include "base/clock.h"
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
    /* SO_PEERCRED decides which users may connect, so that QEMU's user needs no group of the pager's. */
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

/*
 * Returns a place for a new connection. If all are taken, it closes the connection that has been open longest without
 * handing memory over. NULL: all connections serve memory.
 */
static struct link *find_place(struct links *links)
{
    struct link *oldest = NULL;

    for (size_t i = 0; i < LINKS_MAX; i++) {
        struct link *link = &links->list[i];

        if (link->state == LINK_FREE)
            return link;
        if (link->state != LINK_SERVING && (!oldest || link->opened_ns < oldest->opened_ns))
            oldest = link;
    }
    if (oldest) {
        log_warning("process %d connected and handed no memory over: it makes room for another", oldest->pid);
        link_close(links, oldest);
    }
    return oldest;
}

struct link *link_of(struct links *links, const struct region *region)
{
    for (size_t i = 0; region && i < LINKS_MAX; i++)
        if (links->list[i].state == LINK_SERVING && links->list[i].region == region)
            return &links->list[i];
    return NULL;
}

int link_send(struct link *link, const void *message, size_t bytes)
{
    /* A shim reads its messages at once. If the queue stays full, the shim hangs. */
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

void link_reject(struct links *links, struct link *link, int error, const char *text)
{
    struct gb_reject message = {.h = link_header(GB_MSG_REJECT, 0, sizeof(message)), .error = error};

    snprintf(message.text, sizeof(message.text), "%s", text);
    log_warning("process %d refused: %s", link->pid, text);
    if (send(link->fd, &message, sizeof(message), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        log_debug("process %d: cannot send: %s", link->pid, strerror(errno));
    link_close(links, link);
}

void link_accept(struct links *links)
{
    int fd = accept4(links->pager->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    struct ucred cred;
    socklen_t length = sizeof(cred);
    struct link *link = fd < 0 ? NULL : find_place(links);

    if (fd < 0)
        return;
    if (!link || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &length) < 0) {
        close(fd);
        return;
    }
    *link = (struct link){.state = LINK_HELLO, .fd = fd, .pidfd = -1, .pid = cred.pid, .opened_ns = clock_ns()};
    if (!uid_allowed(links->pager->options, cred.uid)) {
        char text[GB_PROTO_TEXT_BYTES];

        snprintf(text, sizeof(text), "user id %u may not use this pager (see --peer-uid)", cred.uid);
        link_reject(links, link, EACCES, text);
        return;
    }
    link->pidfd = (int)syscall(SYS_pidfd_open, cred.pid, 0);
    if (link->pidfd < 0) {
        link_reject(links, link, errno, "its process cannot be watched");
        return;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = link};

    epoll_ctl(links->epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

void link_close(struct links *links, struct link *link)
{
    struct pager *pager = links->pager;
    struct region *region = link->region;

    if (link->state == LINK_FREE)
        return;
    epoll_ctl(links->epoll_fd, EPOLL_CTL_DEL, link->fd, NULL);
    close(link->fd);
    if (region) {
        link->state = LINK_HELLO; /* link_of() finds it no more: the handler must not send on it */
        links->handler->closed(links->owner, link);
        pager_lock(pager);
        region->connected = false;
        pager_unlock(pager);
    } else if (link->pidfd >= 0) {
        close(link->pidfd);
    }
    link->state = LINK_FREE;
    link->region = NULL;
}

void link_close_fds(const int fds[3])
{
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static bool header_valid(const union link_message *message, ssize_t bytes)
{
    return bytes >= (ssize_t)sizeof(message->h) && message->h.magic == GB_PROTO_MAGIC &&
           message->h.bytes == (uint32_t)bytes;
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

void link_readable(struct links *links, struct link *link)
{
    union link_message message;
    char control[CMSG_SPACE(3 * sizeof(int))];
    struct iovec iov = {&message, sizeof(message)};
    struct msghdr header = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    int fds[3] = {-1, -1, -1};

    if (link->state == LINK_FREE)
        return;
    ssize_t got = recvmsg(link->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    /*
     * A shim that closes its socket with a message unread resets the connection; its last messages can be read after
     * the error.
     */
    if (got < 0 && errno == ECONNRESET)
        got = recvmsg(link->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        if (link->region)
            log_info("process %d (%s) closed its connection", link->pid, link->comm);
        link_close(links, link);
        return;
    }
    take_fds(&header, fds);
    if (!header_valid(&message, got)) {
        link_close_fds(fds);
        link_reject(links, link, EPROTO, "not a message of this protocol");
        return;
    }
    links->handler->message(links->owner, link, &message, fds);
}
