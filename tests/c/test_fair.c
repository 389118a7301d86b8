/* SPDX-License-Identifier: MIT */
/* Whose turn it is, and what shares of the traffic lanes get. */
#include "tests/c/check.h"

#include "memserver/fair.h"

#define NODES 64

static struct fair fair;
static struct fair_node nodes[NODES];
static const int ann, bob, eve; /* keys */

static void begin(struct fair *empty)
{
    fair_open(empty);
    memset(nodes, 0, sizeof(nodes));
}

static void join(unsigned first, unsigned count, const void *key)
{
    for (unsigned i = first; i < first + count; i++) {
        fair_join(&fair, &nodes[i], key);
    }
}

static void leave(unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        fair_leave(&fair, &nodes[i]);
    }
    while (fair_next(&fair) != NULL) { /* a visit of the newcomers may be under way */
    }
    CHECK_EQUAL(fair.n_lanes, 0);
    CHECK(fair_is_empty(&fair));
}

/* Serves a turn. Returns the number of the node, or -1 if there is nothing to serve. */
static int serve(int64_t bytes)
{
    struct fair_node *node = fair_next(&fair);
    if (node == NULL) {
        node = fair_next(&fair); /* a visit has ended: the next one begins */
    }
    if (node == NULL) {
        return -1;
    }
    fair_charge(&fair, node, bytes);
    return (int)(node - nodes);
}

static void connections_of_one_lane_are_served_in_order(void)
{
    begin(&fair);
    join(0, 3, &ann);
    fair_add(&fair, &nodes[2]);
    fair_add(&fair, &nodes[0]);
    fair_add(&fair, &nodes[2]);
    CHECK_EQUAL(serve(1), 2);
    CHECK_EQUAL(serve(1), 0);
    CHECK_EQUAL(serve(1), -1);
    CHECK(fair_is_empty(&fair));
    leave(3);
}

static void one_that_becomes_ready_waits_for_one_visit_of_each_other_lane(void)
{
    begin(&fair);
    join(0, 60, &ann);
    join(60, 2, &bob);
    join(62, 1, &eve);
    for (unsigned i = 0; i < 62; i++) {
        fair_add(&fair, &nodes[i]);
    }
    for (int round = 0; round < 100; round++) {
        for (int turn = 0; turn < round; turn++) { /* the others are at any place of their visits */
            int served = serve(FAIR_QUANTUM_BYTES / 3);
            fair_add(&fair, &nodes[served]);
        }
        fair_add(&fair, &nodes[62]);
        int64_t waited = 0;
        int served;
        while ((served = serve(FAIR_QUANTUM_BYTES / 3)) != 62) {
            fair_add(&fair, &nodes[served]);
            waited += FAIR_QUANTUM_BYTES / 3;
        }
        CHECK(waited <= 3 * FAIR_QUANTUM_BYTES);
    }
    leave(63);
}

static void lanes_get_equal_shares_whatever_their_connections_and_turns(void)
{
    int64_t moved[3] = {0};
    begin(&fair);
    join(0, 50, &ann); /* many connections with long turns */
    join(50, 1, &bob); /* one, with short turns */
    join(51, 5, &eve); /* turns that are longer than a quantum */
    for (unsigned i = 0; i < 56; i++) {
        fair_add(&fair, &nodes[i]);
    }
    for (int turn = 0; turn < 100000; turn++) {
        struct fair_node *node = fair_next(&fair);
        if (node == NULL) {
            continue;
        }
        int lane = node < &nodes[50] ? 0 : node == &nodes[50] ? 1 : 2;
        int64_t bytes = lane == 0 ? FAIR_QUANTUM_BYTES : lane == 1 ? 8192 : 5 * FAIR_QUANTUM_BYTES / 2;
        fair_charge(&fair, node, bytes);
        moved[lane] += bytes;
        fair_add(&fair, node);
    }
    for (int lane = 1; lane < 3; lane++) {
        CHECK(moved[lane] > moved[0] * 99 / 100 && moved[lane] < moved[0] * 101 / 100);
    }
    leave(56);
}

static void a_lane_saves_nothing_up_while_it_has_no_work(void)
{
    begin(&fair);
    join(0, 1, &ann);
    join(1, 1, &bob);
    for (int i = 0; i < 100; i++) { /* ann has visits that it does not use up */
        fair_add(&fair, &nodes[0]);
        CHECK_EQUAL(serve(1), 0);
        CHECK_EQUAL(serve(0), -1);
    }
    fair_add(&fair, &nodes[0]);
    fair_add(&fair, &nodes[1]);
    CHECK_EQUAL(serve(FAIR_QUANTUM_BYTES), 0);
    fair_add(&fair, &nodes[0]);
    CHECK_EQUAL(serve(FAIR_QUANTUM_BYTES), 1);
    leave(2);
}

static void newcomers_are_one_lane_and_move_to_that_of_their_client(void)
{
    begin(&fair);
    join(0, 1, &ann);
    for (unsigned i = 0; i < 4; i++) {
        fair_add(&fair, &nodes[i]);
    }
    CHECK_EQUAL(serve(FAIR_QUANTUM_BYTES), 0);
    fair_add(&fair, &nodes[0]);
    CHECK_EQUAL(serve(FAIR_QUANTUM_BYTES), 1);
    fair_join(&fair, &nodes[1], &ann);
    CHECK_EQUAL(serve(FAIR_QUANTUM_BYTES), 0);
    CHECK_EQUAL(serve(FAIR_QUANTUM_BYTES), 2);
    CHECK_EQUAL(fair.n_lanes, 1);
    leave(4);
}

static void a_connection_may_end_at_any_time(void)
{
    begin(&fair);
    join(0, 2, &ann);
    join(2, 1, &bob);
    for (unsigned i = 0; i < 3; i++) {
        fair_add(&fair, &nodes[i]);
    }
    struct fair_node *node = fair_next(&fair);
    CHECK(node == &nodes[0]);
    fair_leave(&fair, &nodes[1]); /* another one of the lane that is visited */
    fair_leave(&fair, &nodes[0]); /* the one that is served, the last of its lane */
    CHECK_EQUAL(fair.n_lanes, 1);
    CHECK_EQUAL(serve(1), 2);
    fair_add(&fair, &nodes[2]);
    fair_leave(&fair, &nodes[2]);
    CHECK(fair_next(&fair) == NULL);
    CHECK(fair_is_empty(&fair));
    CHECK_EQUAL(fair.n_lanes, 0);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(connections_of_one_lane_are_served_in_order),
        TEST(one_that_becomes_ready_waits_for_one_visit_of_each_other_lane),
        TEST(lanes_get_equal_shares_whatever_their_connections_and_turns),
        TEST(a_lane_saves_nothing_up_while_it_has_no_work),
        TEST(newcomers_are_one_lane_and_move_to_that_of_their_client),
        TEST(a_connection_may_end_at_any_time),
    };
    return TESTS_RUN(tests, argc, argv);
}
