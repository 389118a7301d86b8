/* SPDX-License-Identifier: MIT */
#include "memserver/clients.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_S UINT64_C(1000000000)

bool client_id_is_valid(const char *id)
{
    size_t length = strlen(id);
    for (size_t i = 0; i < length; i++) {
        if (iscntrl((unsigned char)id[i])) {
            return false;
        }
    }
    return length > 0 && length <= CLIENT_ID_MAX;
}

struct client *client_find(const struct clients *clients, const char *id)
{
    struct client *client = clients->first;
    while (client != NULL && strcmp(client->id, id) != 0) {
        client = client->next;
    }
    return client;
}

struct client *client_take(struct clients *clients, const char *id)
{
    struct client *client = client_find(clients, id);
    if (client != NULL || clients->n == CLIENTS_MAX) {
        return client;
    }
    client = calloc(1, sizeof(*client));
    if (client == NULL) {
        return NULL;
    }
    memcpy(client->id, id, strlen(id));
    atomic_store(&client->quota.limit_pages, STORE_NO_LIMIT);
    atomic_store(&client->bytes_per_s, STORE_NO_LIMIT);
    client->max_connections = STORE_NO_LIMIT;
    client->next = clients->first;
    clients->first = client;
    clients->n++;
    return client;
}

void client_drop(struct clients *clients, struct client *client)
{
    if (client->n_exports > 0 || client->max_connections != STORE_NO_LIMIT ||
        atomic_load(&client->quota.limit_pages) != STORE_NO_LIMIT ||
        atomic_load(&client->bytes_per_s) != STORE_NO_LIMIT) {
        return;
    }
    struct client **at = &clients->first;
    while (*at != client) {
        at = &(*at)->next;
    }
    *at = client->next;
    clients->n--;
    free(client);
}

void client_limits_set(struct client *client, const struct client_limits *limits)
{
    if (limits->set_rate && atomic_exchange(&client->bytes_per_s, limits->bytes_per_s) != limits->bytes_per_s) {
        /* What was sent before was counted at another rate. */
        atomic_store(&client->busy_until_ns, 0);
    }
    if (limits->set_connections) {
        client->max_connections = limits->connections;
    }
    if (limits->set_resident) {
        uint64_t bytes = limits->resident_bytes;
        atomic_store(&client->quota.limit_pages, bytes == STORE_NO_LIMIT ? bytes : bytes / STORE_PAGE_BYTES);
    }
}

int64_t client_wait_ns(struct client *client, int64_t now_ns)
{
    int64_t ahead_ns = atomic_load_explicit(&client->busy_until_ns, memory_order_relaxed) - now_ns;
    return ahead_ns > CLIENT_BURST_NS ? ahead_ns - CLIENT_BURST_NS : 0;
}

void client_charge(struct client *client, int64_t now_ns, uint64_t bytes)
{
    uint64_t rate = atomic_load_explicit(&client->bytes_per_s, memory_order_relaxed);
    int64_t until_ns = atomic_load_explicit(&client->busy_until_ns, memory_order_relaxed);
    /* A payload has less than 2^32 bytes, so that the product has less than 62 bits. */
    int64_t takes_ns = (int64_t)(bytes * NS_PER_S / rate);
    int64_t next_ns;
    do {
        next_ns = (until_ns > now_ns ? until_ns : now_ns) + takes_ns;
    } while (!atomic_compare_exchange_weak_explicit(&client->busy_until_ns, &until_ns, next_ns, memory_order_relaxed,
                                                    memory_order_relaxed));
}
