/* SPDX-License-Identifier: MIT */
#include "donor/machine.h"

#include "donor/donor.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#define OUR_IDENTITY "GhostBox memory " /* memserver/negotiate.c */
#define MACHINE      ", machine "
#define LOOPBACK     "loopback"

/*
 * Returns the machine in a description, which ends at a comma or with the text; NULL if it names none or is not ours.
 */
static const char *find_named(const char *identity)
{
    const char *at = strncmp(identity, OUR_IDENTITY, strlen(OUR_IDENTITY)) == 0 ? strstr(identity, MACHINE) : NULL;

    return at ? at + strlen(MACHINE) : NULL;
}

/*
 * Writes an address; an IPv4-mapped IPv6 address (::ffff:1.2.3.4) as IPv4. Returns 0, or -1 if it is no IP address.
 */
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
