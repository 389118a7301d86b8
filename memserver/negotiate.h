/* SPDX-License-Identifier: MIT */
/* The handshake: fixed newstyle negotiation up to GO or EXPORT_NAME. */
#ifndef GHOSTBOX_MEMSERVER_NEGOTIATE_H
#define GHOSTBOX_MEMSERVER_NEGOTIATE_H

#include "memserver/connection.h"

/* Longer data of an option are skipped, and the option is answered by NBD_REP_ERR_TOO_BIG. */
#define NEGOTIATE_OPTION_MAX_BYTES 16384u
/* The connection of a client that sends more options is closed. */
#define NEGOTIATE_OPTIONS_MAX 256u

/* Queues the greeting, which the server sends first. */
void negotiate_greet(struct connection *connection);
/* Takes the client's flags, or one option, off the input and queues the replies. Worker's thread only. */
enum connection_parse negotiate_parse(struct connection *connection);

#endif
