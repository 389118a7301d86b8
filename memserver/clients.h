/* SPDX-License-Identifier: MIT */
/*
 * Clients: those for whom exports are made (export-add names them), each with limits and counters over all its
 * exports and connections. A client is known from its first export or limit on, until it has neither. Exports without
 * a client have no such limits.
 *
 * The lock of struct exports guards the list and what is marked so below; the functions that need it say so. The
 * workers use the rest without a lock, request by request.
 */
#ifndef GHOSTBOX_MEMSERVER_CLIENTS_H
#define GHOSTBOX_MEMSERVER_CLIENTS_H

#include "memserver/store.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CLIENT_ID_MAX 64u
#define CLIENTS_MAX   4096u
/* Below this rate one page would take longer than a second. */
#define CLIENT_RATE_MIN 4096u
/* A client that sent nothing for a while may send so much faster than its rate. */
#define CLIENT_BURST_NS INT64_C(50000000)

struct client_counters {
    _Atomic uint64_t requests, read_bytes, written_bytes;
    _Atomic uint64_t writes_refused;      /* there was no space below max_resident_bytes */
    _Atomic uint64_t connections_refused; /* there were max_connections, not 0 */
    _Atomic uint64_t delays;              /* a connection had to wait for max_bytes_per_s */
};

struct client {
    char id[CLIENT_ID_MAX + 1];
    struct store_quota quota;      /* max_resident_bytes, and what is resident */
    _Atomic uint64_t bytes_per_s;  /* max_bytes_per_s, or STORE_NO_LIMIT */
    _Atomic int64_t busy_until_ns; /* until then its requests so far take at bytes_per_s */
    struct client_counters counters;

    /* Guarded by the lock of struct exports. */
    uint64_t max_connections; /* STORE_NO_LIMIT: any number */
    uint64_t epoch;           /* how often its connections were closed by client-close */
    unsigned n_exports, n_connections;
    unsigned n_ending; /* of n_connections: those that client-close has shut down */
    struct client *next;
};

struct clients {
    struct client *first;
    unsigned n;
};

/* What client-set changes. */
struct client_limits {
    bool set_rate, set_connections, set_resident;
    uint64_t bytes_per_s, connections, resident_bytes; /* STORE_NO_LIMIT: no limit */
};

/* Whether a text is an id: 1 to CLIENT_ID_MAX bytes without control characters. */
bool client_id_is_valid(const char *id);
/* Returns the client of this id, or NULL. The caller holds the lock, as for the two functions below. */
struct client *client_find(const struct clients *clients, const char *id);
/* Returns the client of this id, which is made if there is none; NULL: no memory, or CLIENTS_MAX are there. */
struct client *client_take(struct clients *clients, const char *id);
/* Frees the client if it has neither an export nor a limit. */
void client_drop(struct clients *clients, struct client *client);
void client_limits_set(struct client *client, const struct client_limits *limits);

/*
 * Returns how many nanoseconds the client's next request has to wait, 0 if it may begin. In any thread, as
 * client_charge().
 */
int64_t client_wait_ns(struct client *client, int64_t now_ns);
/* Counts the payload of a request that begins. */
void client_charge(struct client *client, int64_t now_ns, uint64_t bytes);

/* Whether the client's requests have to ask client_wait_ns(). */
static inline bool client_is_limited(const struct client *client)
{
    return client != NULL && atomic_load_explicit(&client->bytes_per_s, memory_order_relaxed) != STORE_NO_LIMIT;
}

#endif
