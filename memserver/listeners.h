/* SPDX-License-Identifier: MIT */
/*
 * The listening sockets. There is one at the start; the command `listen` adds others, for a donor whose machine has a
 * new address, or whose owner wants another port: clients that know the old address still reach the donor there.
 *
 * Only the main thread accepts connections and closes sockets; the control thread changes the table, under the lock,
 * and wakes the main thread.
 */
#ifndef GHOSTBOX_MEMSERVER_LISTENERS_H
#define GHOSTBOX_MEMSERVER_LISTENERS_H

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#define LISTENERS_MAX 8
#define HOST_BYTES    64

/* An address on which the server listens; an IPv6 address has no brackets. */
struct listening {
    char host[HOST_BYTES];
    unsigned port;
};

struct listener {
    int fd;
    bool leaving; /* the main thread is to close it */
    struct listening at;
};

struct listeners {
    pthread_mutex_t lock;
    struct listener entries[LISTENERS_MAX];
    unsigned n;
    unsigned first; /* number of the entry whose address new clients are given */
    int wake_fd;    /* eventfd that is written to when the table has changed */
};

/* Makes an empty table. Returns 0 or -errno. */
int listeners_open(struct listeners *listeners);
/*
 * Listens on one more address and makes it the first entry; an address that is in the table only becomes the first.
 * `only` closes all other listening sockets; connections stay open. Port "0" picks a free port. Returns 0, or -errno
 * with an error for people in text. May be called in any thread.
 */
int listeners_add(struct listeners *listeners, const char *bind, const char *port, bool only, char *text,
                  size_t text_bytes);
/* Fills in all addresses, first the one where new clients are to connect, and returns how many. In any thread. */
unsigned listeners_list(struct listeners *listeners, struct listening found[LISTENERS_MAX]);
/*
 * Closes the sockets that are leaving and fills in what to poll: wake_fd, then the sockets. Returns how many. Main
 * thread only.
 */
unsigned listeners_poll(struct listeners *listeners, struct pollfd fds[LISTENERS_MAX + 1]);
/* Closes all sockets. No other thread may use the table any more. */
void listeners_close(struct listeners *listeners);

/* Writes a socket address as numbers: the host without brackets, "unknown" if it has none, and the port. */
void address_format(const struct sockaddr *address, socklen_t length, char *host, size_t host_bytes, unsigned *port);

#endif
