/* SPDX-License-Identifier: MIT */
/*
 * The listening sockets. There is one at the start; the command `listen` adds others, for a donor whose machine has
 * another address now, or whose owner wants another port: clients that know the old one still find it there.
 *
 * The main thread alone accepts and closes; the control thread changes the table, under the lock, and wakes it.
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

/* An address that is listened on, as text without brackets. */
struct listening {
    char host[HOST_BYTES];
    unsigned port;
};

struct listener {
    int fd;
    bool leaving; /* to be closed by the main thread */
    struct listening at;
};

struct listeners {
    pthread_mutex_t lock;
    struct listener entries[LISTENERS_MAX];
    unsigned n;
    unsigned first; /* the one that new clients are told of */
    int wake_fd;    /* eventfd: the table has changed */
};

/* Returns 0 or -errno. */
int listeners_open(struct listeners *listeners);
/* Listens on one more address and makes it the first; one that is there already only becomes the first. only: all
 * others are closed, their connections stay. Port "0" picks one. Returns 0, or -errno with a text. */
int listeners_add(struct listeners *listeners, const char *bind, const char *port, bool only, char *text,
                  size_t text_bytes);
/* Where new clients are to connect, and the others: returns how many there are, the first one first. */
unsigned listeners_list(struct listeners *listeners, struct listening found[LISTENERS_MAX]);
/* Main thread: closes those that leave, fills in what to poll for (the wake-up first). Returns how many. */
unsigned listeners_poll(struct listeners *listeners, struct pollfd fds[LISTENERS_MAX + 1]);
void listeners_close(struct listeners *listeners);

/* A socket's address as text. */
void address_format(const struct sockaddr *address, socklen_t length, char *host, size_t host_bytes, unsigned *port);

#endif
