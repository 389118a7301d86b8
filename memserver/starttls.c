/* SPDX-License-Identifier: MIT */
#include "memserver/starttls.h"

#include "common/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct key_answer {
    struct export_viewer *viewer;
    struct psk *psk;
};

static void key_read(void *ctx, const struct export *export)
{
    const struct key_answer *answer = ctx;
    *answer->psk = export->psk;
    memcpy(answer->viewer->incarnation, export->incarnation, sizeof(answer->viewer->incarnation));
    answer->viewer->epoch = export->client != NULL ? export->client->epoch : 0;
}

/* Finds the key of the export whose name the client gives as its identity. The TLS handshake calls it. */
static bool key_find(void *ctx, const uint8_t *identity, size_t identity_bytes, struct psk *psk)
{
    struct connection *connection = ctx;
    struct key_answer answer = {.viewer = &connection->viewer, .psk = psk};
    memset(connection->viewer.incarnation, 0, sizeof(connection->viewer.incarnation));
    return export_visit(connection->exports, NULL, identity, identity_bytes, key_read, &answer) == 0 &&
           psk->n_bytes > 0;
}

enum starttls_result starttls_begin(struct connection *connection, uint32_t data_bytes, const char **fault)
{
    if (data_bytes != 0) {
        *fault = "NBD_OPT_STARTTLS takes no data";
        return STARTTLS_WRONG;
    }
    if (connection->encrypts) {
        *fault = "this connection is encrypted already";
        return STARTTLS_WRONG;
    }
    if (!exports_have_keys(connection->exports)) {
        *fault = "this server does not speak TLS: no export has a key";
        return STARTTLS_NONE;
    }
    if (connection_available(connection) > 0) {
        /* An attacker on the network may have sent these bytes, so that they count as the client's encrypted ones. */
        log_info("%s: the client sent bytes behind STARTTLS before it was answered: connection closed",
                 connection->peer);
        return STARTTLS_CLOSE;
    }
    connection->tls = tls_server_new(connection->fd, key_find, connection);
    if (connection->tls == NULL) {
        log_error("%s: no memory for TLS: connection closed", connection->peer);
        return STARTTLS_CLOSE;
    }
    connection->phase = PHASE_TLS;
    return STARTTLS_BEGUN;
}

/* Both ends have proved that they know the key that key_find() has found. */
static void handshake_finish(struct connection *connection)
{
    connection->encrypts = true;
    connection->viewer.tls = true;
    connection->phase = PHASE_OPTIONS;
    connection->pending = false;
    connection->structured = connection->allocation_context = connection->demand_context = false;
    log_debug("%s: TLS begins", connection->peer);
}

enum connection_step starttls_step(struct connection *connection, bool *worked)
{
    uint64_t before = tls_received(connection->tls);
    int rc = tls_handshake(connection->tls);
    *worked = tls_received(connection->tls) != before;
    if (rc == 0) {
        handshake_finish(connection);
        return STEP_AGAIN;
    }
    if (rc == -EAGAIN) {
        return tls_has_output(connection->tls) ? STEP_OUTPUT : STEP_INPUT;
    }
    log_info("%s: TLS: %s: connection closed", connection->peer, tls_why(connection->tls));
    return STEP_CLOSED;
}
