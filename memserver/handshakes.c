/* SPDX-License-Identifier: MIT */
#include "memserver/handshakes.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#define IPV6_NETWORK_BYTES 8

int handshakes_open(struct handshakes *handshakes, unsigned limit, unsigned address_limit)
{
    *handshakes = (struct handshakes){.limit = limit, .address_limit = address_limit};
    handshakes->groups = calloc(limit + 1, sizeof(handshakes->groups[0]));
    if (handshakes->groups == NULL) {
        return -ENOMEM;
    }
    pthread_mutex_init(&handshakes->lock, NULL);
    return 0;
}

void handshakes_close(struct handshakes *handshakes)
{
    if (handshakes->groups != NULL) {
        pthread_mutex_destroy(&handshakes->lock);
    }
    free(handshakes->groups);
    handshakes->groups = NULL;
}

/* Writes what counts of an address. An IPv4 address that is mapped into IPv6 is the same as the IPv4 address. */
static void address_take(uint8_t out[HANDSHAKE_ADDRESS_BYTES], const struct sockaddr *address)
{
    memset(out, 0, HANDSHAKE_ADDRESS_BYTES);
    if (address->sa_family == AF_INET) {
        struct sockaddr_in in;
        memcpy(&in, address, sizeof(in));
        memset(out + 10, 0xff, 2);
        memcpy(out + 12, &in.sin_addr, sizeof(in.sin_addr));
    } else if (address->sa_family == AF_INET6) {
        struct sockaddr_in6 in6;
        memcpy(&in6, address, sizeof(in6));
        bool mapped = IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr);
        memcpy(out, &in6.sin6_addr, mapped ? HANDSHAKE_ADDRESS_BYTES : IPV6_NETWORK_BYTES);
    }
}

/* Returns the group of an address, which may be empty. The caller holds the lock. */
static struct handshake_group *group_of(struct handshakes *handshakes, const uint8_t *address)
{
    struct handshake_group *free_one = NULL;
    for (unsigned i = 0; i < handshakes->n_groups; i++) {
        struct handshake_group *group = &handshakes->groups[i];
        if (group->n > 0 && memcmp(group->first->address, address, HANDSHAKE_ADDRESS_BYTES) == 0) {
            return group;
        }
        free_one = group->n == 0 ? group : free_one;
    }
    return free_one != NULL ? free_one : &handshakes->groups[handshakes->n_groups++];
}

/* The caller holds the lock. */
static void entry_unlink(struct handshakes *handshakes, struct handshake *entry)
{
    struct handshake_group *group = group_of(handshakes, entry->address);
    *entry->link = entry->next;
    if (entry->next != NULL) {
        entry->next->link = entry->link;
    } else {
        group->last = entry->link;
    }
    entry->link = NULL;
    group->n--;
    atomic_fetch_sub(&handshakes->n, 1);
    while (handshakes->n_groups > 0 && handshakes->groups[handshakes->n_groups - 1].n == 0) {
        handshakes->n_groups--;
    }
}

/* Closes the oldest connection of a group. The caller holds the lock. */
static void oldest_close(struct handshakes *handshakes, const struct handshake_group *group)
{
    struct handshake *oldest = group->first;
    entry_unlink(handshakes, oldest);
    shutdown(oldest->fd, SHUT_RDWR);
    atomic_fetch_add(&handshakes->n_closed, 1);
}

/*
 * Returns the group with most connections; among several, not that of the newcomer (NULL: there is none). The caller
 * holds the lock, and at least one connection is listed.
 */
static const struct handshake_group *largest_group(const struct handshakes *handshakes,
                                                   const struct handshake_group *newcomer)
{
    const struct handshake_group *largest = &handshakes->groups[0];
    for (unsigned i = 1; i < handshakes->n_groups; i++) {
        const struct handshake_group *group = &handshakes->groups[i];
        if (group->n > largest->n || (group->n == largest->n && newcomer != NULL && largest == newcomer)) {
            largest = group;
        }
    }
    return largest;
}

enum handshakes_room handshakes_enter(struct handshakes *handshakes, struct handshake *entry, int fd,
                                      const struct sockaddr *address)
{
    enum handshakes_room room = HANDSHAKES_FREE;
    entry->list = handshakes;
    entry->fd = fd;
    entry->next = NULL;
    address_take(entry->address, address);
    pthread_mutex_lock(&handshakes->lock);
    struct handshake_group *group = group_of(handshakes, entry->address);
    if (group->n == 0) {
        group->last = &group->first;
    }
    entry->link = group->last;
    *group->last = entry;
    group->last = &entry->next;
    group->n++;
    if (group->n > handshakes->address_limit) {
        room = HANDSHAKES_OF_ADDRESS;
    } else if (atomic_load(&handshakes->n) == handshakes->limit) {
        room = HANDSHAKES_OF_ALL;
    }
    atomic_fetch_add(&handshakes->n, 1);
    if (room != HANDSHAKES_FREE) {
        oldest_close(handshakes, room == HANDSHAKES_OF_ADDRESS ? group : largest_group(handshakes, group));
    }
    pthread_mutex_unlock(&handshakes->lock);
    return room;
}

void handshakes_leave(struct handshakes *handshakes, struct handshake *entry)
{
    pthread_mutex_lock(&handshakes->lock);
    if (entry->link != NULL) {
        entry_unlink(handshakes, entry);
    }
    pthread_mutex_unlock(&handshakes->lock);
}

void handshake_done(struct handshake *entry)
{
    if (entry->list != NULL) {
        handshakes_leave(entry->list, entry);
    }
}

bool handshakes_evict(struct handshakes *handshakes)
{
    pthread_mutex_lock(&handshakes->lock);
    bool any = atomic_load(&handshakes->n) > 0;
    if (any) {
        oldest_close(handshakes, largest_group(handshakes, NULL));
    }
    pthread_mutex_unlock(&handshakes->lock);
    return any;
}
