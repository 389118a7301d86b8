/* SPDX-License-Identifier: MIT */
#include "session/session.h"

#include "evict/discard.h"
#include "evict/evict.h"
#include "evict/zap.h"
#include "regions/regions.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Copies the process's name. It goes into logs and JSON, so bytes that are not printable ASCII become '?'. */
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
        link_close(&loop->links, link);
}

static void accept_region(struct link *link, struct region *region, uint32_t seq)
{
    struct gb_region_ok ok = {.h = link_header(GB_MSG_REGION_OK, seq, sizeof(ok)), .region_id = region->id};

    link->region = region;
    link->state = LINK_SERVING;
    link_send(link, &ok, sizeof(ok));
}

static void on_region(struct evict_loop *loop, struct link *link, const struct gb_region *message, const int fds[3])
{
    const struct client client = {.pid = link->pid, .pidfd = link->pidfd, .comm = link->comm};
    char text[GB_PROTO_TEXT_BYTES];

    if (fds[0] < 0 || fds[1] < 0 || fds[2] < 0) {
        link_close_fds(fds);
        link_reject(&loop->links, link, EPROTO, "REGION came without its three descriptors");
        return;
    }
    if (link->resume) {
        bool fds_taken;
        struct region *region = region_resumed(loop->pager, &client, message, fds, &fds_taken);

        if (!fds_taken)
            link_close_fds(fds);
        if (!region) {
            link_reject(&loop->links, link, ESTALE,
                        "this pager does not know the region: it was served by another one");
            return;
        }
        close(link->pidfd);
        link->pidfd = -1;
        accept_region(link, region, message->h.seq);
        return;
    }
    struct region *region = region_admit(loop->pager, &client, message, fds, text, sizeof(text));

    if (!region) {
        int error = errno;

        link_close_fds(fds);
        link_reject(&loop->links, link, error, text);
        return;
    }
    accept_region(link, region, message->h.seq);
}

static bool is(const union link_message *message, enum gb_msg_type type, size_t bytes)
{
    return message->h.type == type && message->h.bytes == bytes;
}

static void on_zap_done(struct evict_loop *loop, struct link *link, const struct gb_done *message)
{
    if (!zap_done(loop, link, message))
        link_reject(&loop->links, link, EPROTO, "it answered a zap that was not asked for");
}

static void on_bye(struct evict_loop *loop, struct link *link, uint32_t seq)
{
    struct gb_header done = link_header(GB_MSG_BYE_DONE, seq, sizeof(done));

    region_end(loop->pager, link->region);
    link_send(link, &done, sizeof(done));
    link_close(&loop->links, link);
}

static void on_message(void *owner, struct link *link, const union link_message *m, int fds[3])
{
    struct evict_loop *loop = owner;
    bool serving = link->state == LINK_SERVING;

    if (is(m, GB_MSG_REGION, sizeof(m->region)) && link->state == LINK_REGION) {
        on_region(loop, link, &m->region, fds);
        return;
    }
    link_close_fds(fds);
    if (m->h.version != GB_PROTO_VERSION)
        link_reject(&loop->links, link, EPROTO, "the shim and the pager are of different versions");
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
        link_reject(&loop->links, link, EPROTO, "unexpected message");
}

static void on_closed(void *owner, struct link *link)
{
    zap_abandon(owner, link);
    discard_abandon(owner, link);
}

const struct link_handler session_handler = {.message = on_message, .closed = on_closed};
