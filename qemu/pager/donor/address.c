/* SPDX-License-Identifier: MIT */
#include "donor/address.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NBD_PORT "10809"

/* The part HOST[:PORT] of a URI. */
struct authority {
    const char *begin;
    size_t length;
};

static struct authority find_authority(const char *uri)
{
    const char *begin = strstr(uri, "://");

    begin = begin ? begin + 3 : uri;
    size_t length = strcspn(begin, "/?#");
    const char *user_end = memchr(begin, '@', length);

    if (!user_end)
        return (struct authority){begin, length};
    return (struct authority){user_end + 1, length - (size_t)(user_end + 1 - begin)};
}

static bool to_text(const struct sockaddr *address, socklen_t length, char text[ADDRESS_BYTES])
{
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (address->sa_family != AF_INET && address->sa_family != AF_INET6)
        return false;
    if (getnameinfo(address, length, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0)
        return false;
    /* A link-local address has its interface behind a '%', which a URI writes as %25 (RFC 6874). */
    char *zone = strchr(host, '%');
    int host_length = (int)(zone ? (size_t)(zone - host) : strlen(host));
    int written = snprintf(text, ADDRESS_BYTES, address->sa_family == AF_INET6 ? "[%.*s%s%s]:%s" : "%.*s%s%s:%s",
                           host_length, host, zone ? "%25" : "", zone ? zone + 1 : "", port);

    return written > 0 && written < ADDRESS_BYTES;
}

bool address_of_peer(int fd, char text[ADDRESS_BYTES])
{
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);

    return getpeername(fd, (struct sockaddr *)&address, &length) == 0 &&
           to_text((struct sockaddr *)&address, length, text);
}

/* Splits "host:port", "host", "[v6]:port" or "[v6]" in place. */
static void split(char *text, char **host, const char **port)
{
    char *end = *text == '[' ? strchr(text, ']') : NULL;
    char *colon = strchr(end ? end : text, ':');

    *host = end ? text + 1 : text;
    *port = NBD_PORT;
    if (colon) {
        *colon = '\0';
        *port = colon + 1;
    }
    if (end)
        *end = '\0';
}

/*
 * Asks the resolver for the host of an nbd:// URI. Returns an error of getaddrinfo(), or 0: then *found is to be
 * freed.
 */
static int resolve(const char *uri, int flags, struct addrinfo **found)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = flags};
    struct authority authority = find_authority(uri);
    char *text = strndup(authority.begin, authority.length);
    char *host, *zone;
    const char *port;

    if (!text)
        return EAI_MEMORY;
    split(text, &host, &port);
    zone = strstr(host, "%25");
    if (zone)
        memmove(zone + 1, zone + 3, strlen(zone + 3) + 1);
    int rc = getaddrinfo(host, port, &hints, found);

    free(text);
    return rc;
}

enum address_kind address_kind_of(const char *uri)
{
    struct addrinfo *found;

    if (strncmp(uri, "nbd://", 6) != 0 && strncmp(uri, "nbds://", 7) != 0)
        return ADDRESS_NONE;
    if (resolve(uri, AI_NUMERICHOST, &found) != 0)
        return ADDRESS_NAME;
    freeaddrinfo(found);
    return ADDRESS_LITERAL;
}

static bool has(const struct addresses *addresses, const char *text)
{
    for (uint32_t i = 0; i < addresses->n; i++)
        if (strcmp(addresses->text[i], text) == 0)
            return true;
    return false;
}

const char *address_look_up(const char *uri, struct addresses *found)
{
    struct addrinfo *first = NULL;
    int rc = resolve(uri, 0, &first);

    found->n = 0;
    if (rc != 0)
        return gai_strerror(rc);
    for (const struct addrinfo *each = first; each && found->n < ADDRESSES_MAX; each = each->ai_next) {
        char text[ADDRESS_BYTES] = "";

        if (to_text(each->ai_addr, each->ai_addrlen, text) && !has(found, text))
            memcpy(found->text[found->n++], text, ADDRESS_BYTES);
    }
    freeaddrinfo(first);
    return found->n > 0 ? NULL : gai_strerror(EAI_NONAME);
}

void address_put(const char *uri, const char *address, char *buf, size_t buf_bytes)
{
    struct authority authority = find_authority(uri);

    snprintf(buf, buf_bytes, "%.*s%s%s", (int)(authority.begin - uri), uri, address,
             authority.begin + authority.length);
}

int address_connect(const char *address)
{
    struct addrinfo *found;
    const int on = 1;

    if (resolve(address, AI_NUMERICHOST, &found) != 0)
        return -EINVAL;
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int rc = fd < 0 ? -errno : 0;

    if (rc == 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        if (connect(fd, found->ai_addr, found->ai_addrlen) < 0 && errno != EINPROGRESS)
            rc = -errno;
    }
    freeaddrinfo(found);
    if (rc < 0 && fd >= 0)
        close(fd);
    return rc < 0 ? rc : fd;
}
