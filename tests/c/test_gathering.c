/* SPDX-License-Identifier: MIT */
#include "tests/c/check.h"

#include "memserver/gathering.h"

#define REQUEST_BYTES 28u

/* A connection for which the test plays clock and client. */
struct peer {
    struct gathering gathering;
    uint64_t now_ns, n_requests;
    uint32_t mark_bytes; /* what gathering_note() returned last */
};

static struct peer new_peer(bool always)
{
    return (struct peer){.gathering = {.always = always}, .now_ns = UINT64_C(1000000000), .mark_bytes = 1};
}

/* Plays a turn in which n_requests requests come, ns after the last turn. */
static void turn(struct peer *peer, uint64_t ns, uint32_t n_requests, uint32_t request_bytes, bool late)
{
    peer->now_ns += ns;
    peer->n_requests += n_requests;
    struct gathering_turn turn = {
        .now_ns = peer->now_ns,
        .n_requests = n_requests,
        .n_bytes = n_requests * request_bytes,
        .gathered = peer->mark_bytes > 1,
        .late = late,
        .may_try = true,
        .n_all_requests = peer->n_requests,
    };
    peer->mark_bytes = gathering_note(&peer->gathering, &turn);
}

/*
 * Plays a client with `depth` requests in flight, each sent by itself: two come in a turn of 20 us, or as many as the
 * worker waits for, at the same rate.
 */
static void load(struct peer *peer, unsigned n_turns, uint32_t depth, uint32_t request_bytes)
{
    for (unsigned i = 0; i < n_turns; i++) {
        uint32_t wanted = peer->mark_bytes / request_bytes;
        bool late = wanted > depth;
        uint32_t n = late ? depth : wanted > 2 ? wanted : 2;
        turn(peer, late ? GATHERING_WAIT_NS : n * UINT64_C(10000), n, request_bytes, late);
    }
}

/* Returns a connection with such a client, for which a trial has found that gathering pays. */
static struct peer gathered_peer(void)
{
    struct peer peer = new_peer(false);
    for (unsigned i = 0; i < 5000 && peer.gathering.phase != GATHERING_KEEPS; i++) {
        load(&peer, 1, 32, REQUEST_BYTES);
    }
    CHECK_EQUAL(peer.gathering.phase, GATHERING_KEEPS);
    return peer;
}

static void a_client_with_many_in_flight_is_waited_for(void)
{
    struct peer peer = gathered_peer();
    CHECK(peer.mark_bytes >= 2 * REQUEST_BYTES);
}

static void a_client_with_one_in_flight_is_never_waited_for(void)
{
    struct peer peer = new_peer(false);
    for (unsigned i = 0; i < 5000; i++) {
        turn(&peer, 10000, 1, REQUEST_BYTES, false);
        CHECK_EQUAL(peer.mark_bytes, 1);
    }
    CHECK_EQUAL(peer.gathering.phase, GATHERING_WATCHES);
}

static void large_requests_are_not_gathered(void)
{
    struct peer peer = new_peer(false);
    for (unsigned i = 0; i < 5000; i++) {
        turn(&peer, 20000, 2, 64u << 10, false);
        CHECK_EQUAL(peer.mark_bytes, 1);
    }
}

static void rare_requests_are_not_gathered(void)
{
    struct peer peer = new_peer(false);
    for (unsigned i = 0; i < 1000; i++) {
        turn(&peer, 1000000, 2, REQUEST_BYTES, false);
        CHECK_EQUAL(peer.mark_bytes, 1);
    }
}

static void always_needs_no_trial(void)
{
    struct peer peer = new_peer(true);
    load(&peer, 5, 32, REQUEST_BYTES);
    CHECK_EQUAL(peer.gathering.phase, GATHERING_KEEPS);
}

static void waits_that_run_out_end_it(void)
{
    struct peer peer = gathered_peer();
    for (unsigned i = 0; i < 20; i++) {
        turn(&peer, GATHERING_WAIT_NS, 2, REQUEST_BYTES, true);
    }
    CHECK_EQUAL(peer.gathering.phase, GATHERING_WATCHES);
    CHECK_EQUAL(peer.mark_bytes, 1);
}

static void a_pause_of_the_client_begins_anew(void)
{
    struct peer peer = gathered_peer();
    turn(&peer, GATHERING_GAP_NS, 1, REQUEST_BYTES, false);
    CHECK_EQUAL(peer.gathering.phase, GATHERING_WATCHES);
    CHECK_EQUAL(peer.mark_bytes, 1);
}

static void a_probe_in_which_nothing_comes_is_over(void)
{
    struct peer peer = new_peer(false);
    for (unsigned i = 0; i < 5000 && peer.gathering.phase != GATHERING_PROBES; i++) {
        turn(&peer, 20000, 2, REQUEST_BYTES, false);
    }
    CHECK_EQUAL(peer.gathering.phase, GATHERING_PROBES);
    CHECK(peer.mark_bytes > 1);
    gathering_rest(&peer.gathering, peer.now_ns + GATHERING_WAIT_NS);
    CHECK_EQUAL(peer.gathering.phase, GATHERING_WATCHES);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(a_client_with_many_in_flight_is_waited_for),
        TEST(a_client_with_one_in_flight_is_never_waited_for),
        TEST(large_requests_are_not_gathered),
        TEST(rare_requests_are_not_gathered),
        TEST(always_needs_no_trial),
        TEST(waits_that_run_out_end_it),
        TEST(a_pause_of_the_client_begins_anew),
        TEST(a_probe_in_which_nothing_comes_is_over),
    };
    return TESTS_RUN(tests, argc, argv);
}
