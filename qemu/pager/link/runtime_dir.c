/* SPDX-License-Identifier: MIT */
#include "link/runtime_dir.h"

#include "log.h"
#include "pool/state_anew.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

/* Whether the path still leads to the socket that this process made there. */
static bool socket_there(const struct pager *pager)
{
    struct stat st;

    return lstat(pager->options->listen, &st) == 0 && st.st_ino == pager->listen_inode;
}

/*
 * Makes the socket for shims anew. Processes stay connected; those that connect again, and new ones, find the new
 * one.
 */
static void listen_anew(struct links *links)
{
    struct pager *pager = links->pager;
    int before = pager->listen_fd;
    int rc = link_listen(pager);

    if (rc < 0) {
        log_error("cannot listen on %s again: %s", pager->options->listen, strerror(-rc));
        if (pager->listen_fd >= 0 && pager->listen_fd != before)
            close(pager->listen_fd);
        pager->listen_fd = before;
        return;
    }
    struct epoll_event listening = {.events = EPOLLIN, .data.ptr = links->owner};

    if (epoll_ctl(links->epoll_fd, EPOLL_CTL_ADD, pager->listen_fd, &listening) < 0)
        log_error("cannot wait for connections: %s", strerror(errno));
    close(before);
    log_warning("the socket %s had been removed: it was made anew", pager->options->listen);
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
        log_warning("the state file %s had been removed: it was made anew", pager->state.path);
}

void runtime_dir_restore(struct links *links)
{
    if (!atomic_exchange(&links->pager->files_asked, false))
        return;
    if (!socket_there(links->pager))
        listen_anew(links);
    state_anew(links->pager);
}
