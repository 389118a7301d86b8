/* SPDX-License-Identifier: MIT */
/*
 * NBD_OPT_STARTTLS: from here on the connection is encrypted. The client shows the key of one export, and sees only
 * that export from then on (exports.h). What was negotiated before is forgotten, as the specification demands,
 * because an attacker on the network may have sent it.
 */
#ifndef GHOSTBOX_MEMSERVER_STARTTLS_H
#define GHOSTBOX_MEMSERVER_STARTTLS_H

#include "memserver/connection.h"

enum starttls_result {
    STARTTLS_BEGUN, /* the phase is PHASE_TLS: answer, and call starttls_step() once the answer is sent */
    STARTTLS_WRONG, /* the client must not send this option so; *fault says why */
    STARTTLS_NONE,  /* this server has no keys; *fault says so */
    STARTTLS_CLOSE, /* the connection has to be closed */
};

/* Handles the option. data_bytes is the length of its data. */
enum starttls_result starttls_begin(struct connection *connection, uint32_t data_bytes, const char **fault);
/* Goes on with the handshake; after it the options begin anew. *worked says whether anything was received. */
enum connection_step starttls_step(struct connection *connection, bool *worked);

#endif
