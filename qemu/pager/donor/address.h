/* SPDX-License-Identifier: MIT */
/* Addresses in URIs of donors, and their lookup. All functions may be called in any thread. */
#ifndef GHOSTBOX_ADDRESS_H
#define GHOSTBOX_ADDRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ADDRESSES_MAX 8
/* "[" IPv6 "%25" interface "]:" port */
#define ADDRESS_BYTES 80

/* The addresses of one machine, each as "ADDRESS:PORT" in the form of a URI. */
struct addresses {
    char text[ADDRESSES_MAX][ADDRESS_BYTES];
    uint32_t n;
};

/* Whether the URI is nbd:// and names its machine by a name, which has to be looked up, or by an address. */
enum address_kind { ADDRESS_NONE, ADDRESS_LITERAL, ADDRESS_NAME };
enum address_kind address_kind_of(const char *uri);

/* Writes the address of a socket's peer. Returns false if it is not a connected network socket. */
bool address_of_peer(int fd, char text[ADDRESS_BYTES]);
/*
 * Finds all addresses of the machine that an nbd:// URI names, in the order in which to try them (getaddrinfo(3)).
 * Waits for the resolver, which may take seconds. Returns NULL, or an error for people if there is no address.
 */
const char *address_look_up(const char *uri, struct addresses *found);
/* Writes the URI with `address` ("ADDRESS:PORT") in place of its host and port into buf. */
void address_put(const char *uri, const char *address, char *buf, size_t buf_bytes);
/* Begins to connect to ADDRESS:PORT, without waiting. Returns a socket, or -errno. */
int address_connect(const char *address);

#endif
