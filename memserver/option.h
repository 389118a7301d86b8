/* SPDX-License-Identifier: MIT */
/* One option of the handshake: its data, and the replies to it. */
#ifndef GHOSTBOX_MEMSERVER_OPTION_H
#define GHOSTBOX_MEMSERVER_OPTION_H

#include "memserver/connection.h"

/* The data of one option, which the parser takes off the front. */
struct option {
    uint32_t type;
    const uint8_t *data;
    uint32_t left;
    bool bad; /* the parser has asked for more bytes than the option has */
};

/*
 * Each takes bytes off the front. If the option has fewer bytes, it sets `bad` and returns NULL or 0. What
 * option_bytes() returns has no '\0' at its end.
 */
const uint8_t *option_bytes(struct option *option, uint32_t bytes);
uint16_t option_u16(struct option *option);
uint32_t option_u32(struct option *option);

/* Writes the header of a reply at `at`. */
void reply_head(void *at, uint32_t option, uint32_t type, uint32_t length);
/* Queues a reply with room for `length` bytes of data. Returns where the data go. */
uint8_t *reply_add(struct connection *connection, uint32_t option, uint32_t type, uint32_t length);
void reply_ack(struct connection *connection, uint32_t option);
/* Queues a reply that refuses the option. The message is for people: clients show it. */
void reply_refuse(struct connection *connection, uint32_t option, uint32_t type, const char *message);

#endif
