/* SPDX-License-Identifier: MIT */
/*
 * Names of donors. libnbd looks a URI's name up each time that it connects, and waits for the answer; the thread that
 * does so serves all donors. So a name is looked up once, and what it stood for is connected to from then on.
 */
#ifndef GHOSTBOX_ADDRESS_H
#define GHOSTBOX_ADDRESS_H

#include <stddef.h>

/* "ADDRESS:PORT" of who is at the other end; NULL: not a network, or an address that no URI can carry. */
char *address_of_peer(int fd);
/* The same of the machine that an nbd:// URI names. May take as long as the resolver does. NULL: not found. */
char *address_look_up(const char *uri);
/* The URI with ADDRESS:PORT in place of its host and port. */
void address_put(const char *uri, const char *address, char *buf, size_t buf_bytes);

#endif
