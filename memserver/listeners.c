/* SPDX-License-Identifier: MIT */
#include "memserver/listeners.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BACKLOG 512

void address_format(const struct sockaddr *address, socklen_t length, char *host, size_t host_bytes, unsigned *port)
{
    char port_text[8] = "0";
    if (getnameinfo(address, length, host, (socklen_t)host_bytes, port_text, sizeof(port_text),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        snprintf(host, host_bytes, "unknown");
    }
    *port = (unsigned)strtoul(port_text, NULL, 10);
}

static int socket_listen(const struct addrinfo *address)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_TCP);
    if (fd < 0) {
        return -errno;
    }
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, address->ai_addr, address->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

/* Opens the socket of a new entry. Returns 0, or -errno with an error for people in text. */
static int listener_open(struct listener *listener, const char *bind, const char *port, char *text, size_t text_bytes)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *address;
    int rc = getaddrinfo(bind, port, &hints, &address);
    if (rc != 0) {
        snprintf(text, text_bytes, "cannot listen on %s: %s", bind, gai_strerror(rc));
        return -EADDRNOTAVAIL;
    }
    int fd = socket_listen(address);
    freeaddrinfo(address);
    if (fd < 0) {
        snprintf(text, text_bytes, "cannot listen on %s port %s: %s", bind, port, strerror(-fd));
        return fd;
    }
    struct sockaddr_storage bound;
    socklen_t length = sizeof(bound);
    *listener = (struct listener){.fd = fd};
    if (getsockname(fd, (struct sockaddr *)&bound, &length) < 0) {
        rc = -errno;
        snprintf(text, text_bytes, "cannot listen on %s port %s: %s", bind, port, strerror(-rc));
        close(fd);
        return rc;
    }
    address_format((struct sockaddr *)&bound, length, listener->at.host, sizeof(listener->at.host),
                   &listener->at.port);
    return 0;
}

int listeners_open(struct listeners *listeners)
{
    *listeners = (struct listeners){.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    pthread_mutex_init(&listeners->lock, NULL);
    return listeners->wake_fd < 0 ? -errno : 0;
}

/* Returns the number of the entry that listens on this address, or LISTENERS_MAX if none does. */
static unsigned entry_find(const struct listeners *listeners, const char *bind, const char *port)
{
    for (unsigned i = 0; i < listeners->n; i++) {
        const struct listener *entry = &listeners->entries[i];
        if (!entry->leaving && strcmp(entry->at.host, bind) == 0 && entry->at.port == strtoul(port, NULL, 10)) {
            return i;
        }
    }
    return LISTENERS_MAX;
}

/* Whether a socket bound to `wildcard` takes the connections to `host`, too. */
static bool covers(const char *wildcard, const char *host)
{
    return strcmp(wildcard, "::") == 0 || (strcmp(wildcard, "0.0.0.0") == 0 && strchr(host, ':') == NULL);
}

/*
 * Adds an entry for all addresses of a port on which entries for single addresses listen. bind(2) refuses a socket
 * for all addresses while others listen on the port. So the entries that the new one covers stop listening; they stay
 * bound, so that they can listen again if the new one fails all the same.
 */
static int entry_add_over(struct listeners *listeners, const char *bind, const char *port, char *text,
                          size_t text_bytes)
{
    bool covered[LISTENERS_MAX] = {false};
    for (unsigned i = 0; i < listeners->n; i++) {
        const struct listener *entry = &listeners->entries[i];
        covered[i] = !entry->leaving && entry->at.port == strtoul(port, NULL, 10) && covers(bind, entry->at.host) &&
                     shutdown(entry->fd, SHUT_RDWR) == 0;
    }
    int rc = listener_open(&listeners->entries[listeners->n], bind, port, text, text_bytes);
    for (unsigned i = 0; i < listeners->n; i++) {
        listeners->entries[i].leaving |= covered[i] && rc == 0;
        if (covered[i] && rc < 0 && listen(listeners->entries[i].fd, BACKLOG) < 0) {
            snprintf(text, text_bytes, "cannot listen on %s port %s any more: %s", listeners->entries[i].at.host,
                     port, strerror(errno));
        }
    }
    return rc;
}

/*
 * Returns the number of the new entry, or of an entry that covers the address already, or -errno with an error for
 * people in text.
 */
static int entry_add(struct listeners *listeners, const char *bind, const char *port, char *text, size_t text_bytes)
{
    if (listeners->n == LISTENERS_MAX) {
        snprintf(text, text_bytes, "cannot listen on more than %d addresses", LISTENERS_MAX);
        return -E2BIG;
    }
    for (unsigned i = 0; i < listeners->n; i++) {
        const struct listener *entry = &listeners->entries[i];
        if (!entry->leaving && entry->at.port == strtoul(port, NULL, 10) && covers(entry->at.host, bind)) {
            return (int)i;
        }
    }
    int rc = listener_open(&listeners->entries[listeners->n], bind, port, text, text_bytes);
    rc = rc == -EADDRINUSE ? entry_add_over(listeners, bind, port, text, text_bytes) : rc;
    return rc < 0 ? rc : (int)listeners->n++;
}

int listeners_add(struct listeners *listeners, const char *bind, const char *port, bool only, char *text,
                  size_t text_bytes)
{
    pthread_mutex_lock(&listeners->lock);
    unsigned found = entry_find(listeners, bind, port);
    int rc = found < LISTENERS_MAX ? (int)found : entry_add(listeners, bind, port, text, text_bytes);
    if (rc >= 0) {
        listeners->first = (unsigned)rc;
        for (unsigned i = 0; only && i < listeners->n; i++) {
            listeners->entries[i].leaving = i != listeners->first;
        }
        rc = 0;
    }
    pthread_mutex_unlock(&listeners->lock);
    eventfd_write(listeners->wake_fd, 1);
    return rc;
}

unsigned listeners_list(struct listeners *listeners, struct listening found[LISTENERS_MAX])
{
    unsigned n = 1;
    pthread_mutex_lock(&listeners->lock);
    found[0] = listeners->entries[listeners->first].at;
    for (unsigned i = 0; i < listeners->n; i++) {
        if (i != listeners->first && !listeners->entries[i].leaving) {
            found[n++] = listeners->entries[i].at;
        }
    }
    pthread_mutex_unlock(&listeners->lock);
    return n;
}

/* Closes the sockets that are leaving; the other entries keep their order. */
static void entries_close(struct listeners *listeners)
{
    unsigned kept = 0;
    for (unsigned i = 0; i < listeners->n; i++) {
        if (listeners->entries[i].leaving) {
            close(listeners->entries[i].fd);
            continue;
        }
        if (i == listeners->first) {
            listeners->first = kept;
        }
        listeners->entries[kept++] = listeners->entries[i];
    }
    listeners->n = kept;
}

unsigned listeners_poll(struct listeners *listeners, struct pollfd fds[LISTENERS_MAX + 1])
{
    eventfd_t ignored;
    pthread_mutex_lock(&listeners->lock);
    eventfd_read(listeners->wake_fd, &ignored);
    entries_close(listeners);
    fds[0] = (struct pollfd){.fd = listeners->wake_fd, .events = POLLIN};
    unsigned n = 1;
    for (unsigned i = 0; i < listeners->n; i++) {
        fds[n++] = (struct pollfd){.fd = listeners->entries[i].fd, .events = POLLIN};
    }
    pthread_mutex_unlock(&listeners->lock);
    return n;
}

void listeners_close(struct listeners *listeners)
{
    for (unsigned i = 0; i < listeners->n; i++) {
        close(listeners->entries[i].fd);
    }
    listeners->n = 0;
    if (listeners->wake_fd >= 0) {
        close(listeners->wake_fd);
    }
}
