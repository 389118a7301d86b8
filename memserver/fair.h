/* SPDX-License-Identifier: MIT */
/*
 * Fair shares: which connection a worker serves next when connections of several clients are ready.
 *
 * The connections of one client are a lane; connections that have opened no export are a lane, too. Lanes take turns
 * by deficit round robin (Shreedhar and Varghese, 1995): at each visit a lane may have FAIR_QUANTUM_BYTES of traffic,
 * and what it had beyond that counts at its next visit. So with n lanes that have work, each gets the same share
 * whatever its number of connections and the size of its requests, and a client with little work waits for one turn
 * of each of the others at most. Within a lane, connections are served in the order in which they became ready.
 *
 * For that, a turn must be short: while lanes share a worker, a turn moves FAIR_QUANTUM_BYTES at most. A worker whose
 * connections are all of one client does not use the queue: it serves them as their events come, in long turns.
 *
 * A struct fair belongs to one worker; only its thread calls these functions.
 */
#ifndef GHOSTBOX_MEMSERVER_FAIR_H
#define GHOSTBOX_MEMSERVER_FAIR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

/* Traffic of about 20 us. */
#define FAIR_QUANTUM_BYTES INT64_C(65536)
/* What a turn costs beside its bytes, in bytes of traffic. */
#define FAIR_TURN_BYTES 4096

/* The place of one connection. It is a part of its connection. Zeroed, it is in the newcomers' lane. */
struct fair_node {
    struct fair_lane *lane; /* NULL: the newcomers' */
    bool queued;
    TAILQ_ENTRY(fair_node) ready;
};

struct fair_lane {
    const void *key; /* the client, or the export if that has none */
    unsigned n_nodes;
    bool active; /* the lane is in fair.active: it has nodes that are ready, or it is visited */
    int64_t deficit;
    TAILQ_HEAD(fair_nodes, fair_node) ready;
    TAILQ_ENTRY(fair_lane) all, next;
};

struct fair {
    struct fair_lane newcomers;
    unsigned n_lanes;  /* without the newcomers' */
    unsigned n_active; /* lanes in `active` */
    TAILQ_HEAD(fair_lanes, fair_lane) lanes, active;
    struct fair_lane *visited; /* NULL: no visit is under way */
};

void fair_open(struct fair *fair);

/* Puts a connection into the lane of this key. Without memory for a new lane it stays where it is. */
void fair_join(struct fair *fair, struct fair_node *node, const void *key);
/* Takes a connection out. */
void fair_leave(struct fair *fair, struct fair_node *node);

/* Says that the connection is ready. Does nothing if that is known. */
void fair_add(struct fair *fair, struct fair_node *node);
/*
 * Returns the next connection of the visit, which is no longer ready then. NULL ends the visit; the next call begins
 * one of the next lane.
 */
struct fair_node *fair_next(struct fair *fair);
/* Counts what a turn has cost. */
void fair_charge(struct fair *fair, const struct fair_node *node, int64_t bytes);

static inline bool fair_is_empty(const struct fair *fair)
{
    return fair->n_active == 0;
}

#endif
