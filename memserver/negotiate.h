/* SPDX-License-Identifier: MIT */
/* The handshake: fixed newstyle negotiation up to GO or EXPORT_NAME. */
#ifndef GHOSTBOX_MEMSERVER_NEGOTIATE_H
#define GHOSTBOX_MEMSERVER_NEGOTIATE_H

#include "memserver/connection.h"

/* An option's data longer than this is not kept, but skipped and answered with NBD_REP_ERR_TOO_BIG. */
#define NEGOTIATE_OPTION_MAX_BYTES 16384u
/* A client that has sent so many options is not going to be served. */
#define NEGOTIATE_OPTIONS_MAX 256u

void negotiate_greet(struct connection *connection);
enum connection_parse negotiate_parse(struct connection *connection);

#endif
