/* SPDX-License-Identifier: MIT */
#include "memserver/fair.h"

#include <stdlib.h>

static void lane_open(struct fair_lane *lane, const void *key)
{
    *lane = (struct fair_lane){.key = key};
    TAILQ_INIT(&lane->ready);
}

void fair_open(struct fair *fair)
{
    *fair = (struct fair){.n_lanes = 0};
    TAILQ_INIT(&fair->lanes);
    TAILQ_INIT(&fair->active);
    lane_open(&fair->newcomers, NULL);
}

static struct fair_lane *lane_of(struct fair *fair, const struct fair_node *node)
{
    return node->lane != NULL ? node->lane : &fair->newcomers;
}

static void lane_activate(struct fair *fair, struct fair_lane *lane)
{
    if (lane->active) {
        return;
    }
    lane->active = true;
    lane->deficit += lane->deficit <= 0 ? FAIR_QUANTUM_BYTES : 0;
    TAILQ_INSERT_TAIL(&fair->active, lane, next);
    fair->n_active++;
}

/* Takes a lane without ready connections out. It keeps what it owes, but not what it did not use. */
static void lane_rest(struct fair *fair, struct fair_lane *lane)
{
    if (!lane->active) {
        return;
    }
    lane->active = false;
    lane->deficit = lane->deficit < 0 ? lane->deficit : 0;
    TAILQ_REMOVE(&fair->active, lane, next);
    fair->n_active--;
}

static void node_dequeue(struct fair *fair, struct fair_node *node)
{
    struct fair_lane *lane = lane_of(fair, node);
    if (node->queued) {
        node->queued = false;
        TAILQ_REMOVE(&lane->ready, node, ready);
    }
}

void fair_join(struct fair *fair, struct fair_node *node, const void *key)
{
    struct fair_lane *lane = TAILQ_FIRST(&fair->lanes);
    while (lane != NULL && lane->key != key) {
        lane = TAILQ_NEXT(lane, all);
    }
    if (lane == NULL) {
        lane = malloc(sizeof(*lane));
        if (lane == NULL) {
            return;
        }
        lane_open(lane, key);
        TAILQ_INSERT_TAIL(&fair->lanes, lane, all);
        fair->n_lanes++;
    }
    fair_leave(fair, node);
    node->lane = lane;
    lane->n_nodes++;
}

void fair_leave(struct fair *fair, struct fair_node *node)
{
    struct fair_lane *lane = lane_of(fair, node);
    node_dequeue(fair, node);
    if (TAILQ_EMPTY(&lane->ready) && fair->visited != lane) {
        lane_rest(fair, lane);
    }
    node->lane = NULL;
    if (lane == &fair->newcomers || --lane->n_nodes > 0) {
        return;
    }
    lane_rest(fair, lane);
    fair->visited = fair->visited == lane ? NULL : fair->visited;
    TAILQ_REMOVE(&fair->lanes, lane, all);
    fair->n_lanes--;
    free(lane);
}

void fair_add(struct fair *fair, struct fair_node *node)
{
    struct fair_lane *lane = lane_of(fair, node);
    if (node->queued) {
        return;
    }
    node->queued = true;
    TAILQ_INSERT_TAIL(&lane->ready, node, ready);
    lane_activate(fair, lane);
}

/* Begins the visit of the next lane that owes nothing. There is an active lane. */
static void visit_begin(struct fair *fair)
{
    struct fair_lane *lane = TAILQ_FIRST(&fair->active);
    while (lane->deficit <= 0) {
        lane->deficit += FAIR_QUANTUM_BYTES;
        TAILQ_REMOVE(&fair->active, lane, next);
        TAILQ_INSERT_TAIL(&fair->active, lane, next);
        lane = TAILQ_FIRST(&fair->active);
    }
    fair->visited = lane;
}

static void visit_end(struct fair *fair)
{
    struct fair_lane *lane = fair->visited;
    fair->visited = NULL;
    if (TAILQ_EMPTY(&lane->ready)) {
        lane_rest(fair, lane);
        return;
    }
    lane->deficit += FAIR_QUANTUM_BYTES;
    TAILQ_REMOVE(&fair->active, lane, next);
    TAILQ_INSERT_TAIL(&fair->active, lane, next);
}

struct fair_node *fair_next(struct fair *fair)
{
    if (fair->visited == NULL && fair->n_active == 0) {
        return NULL;
    }
    if (fair->visited == NULL) {
        visit_begin(fair);
    }
    struct fair_node *node = TAILQ_FIRST(&fair->visited->ready);
    if (node == NULL || fair->visited->deficit <= 0) {
        visit_end(fair);
        return NULL;
    }
    node_dequeue(fair, node);
    return node;
}

void fair_charge(struct fair *fair, const struct fair_node *node, int64_t bytes)
{
    lane_of(fair, node)->deficit -= bytes;
}
