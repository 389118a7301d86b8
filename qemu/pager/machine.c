/* SPDX-License-Identifier: MIT */
#include "machine.h"

#include "donor.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#define OUR_IDENTITY "GhostBox memory " /* memserver/negotiate.c */
#define MACHINE      ", machine "
#define LOOPBACK     "loopback"

/* Whether the description is ours and names a machine; what it says then is the result, without its end. */
static const char *find_named(const char *identity)
{
    const char *at = strncmp(identity, OUR_IDENTITY, strlen(OUR_IDENTITY)) == 0 ? strstr(identity, MACHINE) : NULL;

    return at ? at + strlen(MACHINE) : NULL;
}

/* IPv4 in IPv6's clothes (::ffff:1.2.3.4) is IPv4. */
static int to_text(const struct sockaddr_storage *address, char text[INET6_ADDRSTRLEN])
{
    struct in_addr four;

    if (address->ss_family == AF_INET) {
        four = ((const struct sockaddr_in *)address)->sin_addr;
    } else if (address->ss_family == AF_INET6) {
        const struct in6_addr *six = &((const struct sockaddr_in6 *)address)->sin6_addr;

        if (!IN6_IS_ADDR_V4MAPPED(six)) {
            strcpy(text, LOOPBACK);
            return IN6_IS_ADDR_LOOPBACK(six) || inet_ntop(AF_INET6, six, text, INET6_ADDRSTRLEN) ? 0 : -1;
        }
        memcpy(&four, six->s6_addr + 12, sizeof(four));
    } else {
        return -1;
    }
    strcpy(text, LOOPBACK);
    return ntohl(four.s_addr) >> 24 == IN_LOOPBACKNET || inet_ntop(AF_INET, &four, text, INET6_ADDRSTRLEN) ? 0 : -1;
}

char *machine_of(const char *identity, const char *uri, int fd)
{
    const char *named = find_named(identity);
    struct sockaddr_storage address;
    socklen_t length = sizeof(address);
    char text[INET6_ADDRSTRLEN];

    if (named)
        return strndup(named, strcspn(named, ","));
    if (getpeername(fd, (struct sockaddr *)&address, &length) < 0 || to_text(&address, text) < 0)
        return donor_host(uri);
    return strdup(text);
}
