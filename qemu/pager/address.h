/* SPDX-License-Identifier: MIT */
/* Addresses in URIs of donors, and what the resolver says. */
#ifndef GHOSTBOX_ADDRESS_H
#define GHOSTBOX_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ADDRESSES_MAX 8
/* "[" IPv6 "%25" interface "]:" port */
#define ADDRESS_BYTES 80

/* Each is "ADDRESS:PORT" as a URI has it. */
struct addresses {
    char text[ADDRESSES_MAX][ADDRESS_BYTES];
    uint32_t n;
};

/* Whether the URI is nbd:// and names its machine by a name, which has to be looked up, or by an address. */
enum address_kind { ADDRESS_NONE, ADDRESS_LITERAL, ADDRESS_NAME };
enum address_kind address_kind_of(const char *uri);

/* Of who is at the other end. False: not a network. */
bool address_of_peer(int fd, char text[ADDRESS_BYTES]);
/*
 * All addresses of the machine that an nbd:// URI names, the one to try first first (getaddrinfo(3)). May take as
 * long as the resolver does. Returns NULL, or why there is none.
 */
const char *address_look_up(const char *uri, struct addresses *found);
/* The URI with ADDRESS:PORT in place of its host and port. */
void address_put(const char *uri, const char *address, char *buf, size_t buf_bytes);

#endif
