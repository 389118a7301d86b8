/* SPDX-License-Identifier: MIT */
#include "address.h"

#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define NBD_PORT "10809"

/* HOST[:PORT] of a URI. */
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

static char *to_text(const struct sockaddr *address, socklen_t length)
{
    char host[NI_MAXHOST], port[NI_MAXSERV], text[NI_MAXHOST + NI_MAXSERV + 4];

    if (address->sa_family != AF_INET && address->sa_family != AF_INET6)
        return NULL;
    /* %: a link-local address, which means nothing without its interface. */
    if (getnameinfo(address, length, host, sizeof(host), port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) != 0 ||
        strchr(host, '%'))
        return NULL;
    snprintf(text, sizeof(text), address->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
    return strdup(text);
}

char *address_of_peer(int fd)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);

    if (getpeername(fd, (struct sockaddr *)&address, &length) < 0)
        return NULL;
    return to_text((struct sockaddr *)&address, length);
}

/* "host:port", "host", "[v6]:port", "[v6]" into its parts, in place. */
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

char *address_look_up(const char *uri)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    struct authority authority = find_authority(uri);
    char *text = strncmp(uri, "nbd://", 6) == 0 ? strndup(authority.begin, authority.length) : NULL;
    char *host, *address = NULL;
    const char *port;

    if (!text)
        return NULL;
    split(text, &host, &port);
    if (getaddrinfo(host, port, &hints, &found) == 0)
        address = to_text(found->ai_addr, found->ai_addrlen);
    if (found)
        freeaddrinfo(found);
    free(text);
    return address;
}

void address_put(const char *uri, const char *address, char *buf, size_t buf_bytes)
{
    struct authority authority = find_authority(uri);

    snprintf(buf, buf_bytes, "%.*s%s%s", (int)(authority.begin - uri), uri, address,
             authority.begin + authority.length);
}
