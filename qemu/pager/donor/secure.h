/* SPDX-License-Identifier: MIT */
/*
 * The negotiation with a donor over TLS, by code of our own, because libnbd cannot hand a TLS session over: connect,
 * greeting, STARTTLS, TLS, structured replies, contexts, GO. The negotiation never waits, and never goes on without
 * TLS: it fails if the server, or an attacker on the network, refuses STARTTLS.
 *
 * The negotiation goes through its steps in their order, and never back; a step that fails is the last one.
 */
#ifndef GHOSTBOX_PAGER_SECURE_H
#define GHOSTBOX_PAGER_SECURE_H

#include "common/psk.h"
#include "common/tls.h"

#include <stdbool.h>
#include <stdint.h>

/* What a server says about its export. */
struct export_facts {
    int64_t bytes;                      /* -1: not known */
    int64_t max_read, min_block;        /* bytes; 0: the server gives none */
    bool read_only, sees_all, can_trim; /* sees_all: its connections see each other's writes */
    bool structured;                    /* structured replies were negotiated */
};

struct secure_wishes {
    const char *address; /* ADDRESS:PORT as a URI has it */
    const char *export;
    const char *identity;
    const struct psk *psk;
    const char *contexts[2]; /* names of metadata contexts; NULL: none. They must outlive the struct secure. */
};

struct secure;

/* Begins to connect; errors show in secure_step(). Returns NULL if there is no memory. */
struct secure *secure_new(const struct secure_wishes *wishes);
/* Closes the socket. NULL is allowed. */
void secure_free(struct secure *secure);

/*
 * Goes on with the negotiation. Returns 0 when it is done, -EAGAIN if the socket is waited for, or another -errno
 * when it has failed; then secure_why() says why.
 */
int secure_step(struct secure *secure);
/* Whether the negotiation waits until the socket is writable. It always waits until the socket is readable, too. */
bool secure_wants_output(const struct secure *secure);
const char *secure_why(const struct secure *secure);
/* Whether the negotiation has failed in the TLS handshake, as it does with a wrong key. */
bool secure_key_failed(const struct secure *secure);

int secure_fd(const struct secure *secure);
/* Returns the TLS session, for use once the negotiation is done. secure_free() frees it. */
struct tls *secure_tls(const struct secure *secure);
const struct export_facts *secure_facts(const struct secure *secure);
/* Returns the export's description; "" if the server gives none. */
const char *secure_description(const struct secure *secure);

#endif
