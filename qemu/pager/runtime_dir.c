/* SPDX-License-Identifier: MIT */
#include "runtime_dir.h"

#include "log.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

/* Whether the path still leads to the socket that we made there. */
static bool socket_there(const struct pager *pager)
{
    struct stat st;

    return lstat(pager->options->listen, &st) == 0 && st.st_ino == pager->listen_inode;
}

/* Processes that are connected stay so; those that come back, and new ones, find the new socket. */
static void listen_anew(struct evict_loop *loop)
{
    struct pager *pager = loop->pager;
    int before = pager->listen_fd;
    int rc = link_listen(pager);

    if (rc < 0) {
        log_error("cannot listen on %s again: %s", pager->options->listen, strerror(-rc));
        if (pager->listen_fd >= 0 && pager->listen_fd != before)
            close(pager->listen_fd);
        pager->listen_fd = before;
        return;
    }
    struct epoll_event listening = {.events = EPOLLIN, .data.ptr = loop};

    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, pager->listen_fd, &listening) < 0)
        log_error("cannot wait for connections: %s", strerror(errno));
    close(before);
    log_warning("the socket %s was gone: made anew", pager->options->listen);
}

static void state_anew(struct pager *pager)
{
    char text[256] = "";
    bool made = false;

    pager_lock(pager);
    int rc = state_restore(&pager->state, &pager->pool, &made, text, sizeof(text));
    pager_unlock(pager);
    if (rc < 0)
        log_error("%s", text);
    else if (made)
        log_warning("the state file %s was gone: made anew", pager->state.path);
}

void runtime_dir_restore(struct evict_loop *loop)
{
    if (!atomic_exchange(&loop->pager->files_asked, false))
        return;
    if (!socket_there(loop->pager))
        listen_anew(loop);
    state_anew(loop->pager);
}
