/* SPDX-License-Identifier: MIT */
/* Which connection is closed when there are too many that have opened no export. */
#include "tests/c/check.h"

#include "memserver/handshakes.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <unistd.h>

#define ENTRIES 16

static struct handshake entries[ENTRIES];
static int ends[ENTRIES]; /* the clients' ends of the connections */

static struct sockaddr_storage address_of(const char *text)
{
    struct sockaddr_storage out = {0};
    struct sockaddr_in in = {.sin_family = AF_INET};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6};
    if (inet_pton(AF_INET, text, &in.sin_addr) == 1) {
        memcpy(&out, &in, sizeof(in));
    } else {
        CHECK_EQUAL(inet_pton(AF_INET6, text, &in6.sin6_addr), 1);
        memcpy(&out, &in6, sizeof(in6));
    }
    return out;
}

static enum handshakes_room enter(struct handshakes *handshakes, unsigned i, const char *address)
{
    struct sockaddr_storage storage = address_of(address);
    int pair[2];
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    ends[i] = pair[1];
    return handshakes_enter(handshakes, &entries[i], pair[0], (struct sockaddr *)&storage);
}

static bool is_closed(unsigned i)
{
    char byte;
    return recv(ends[i], &byte, 1, MSG_DONTWAIT) == 0;
}

static void end(struct handshakes *handshakes, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        handshakes_leave(handshakes, &entries[i]);
        close(entries[i].fd);
        close(ends[i]);
    }
    CHECK_EQUAL(handshakes->n, 0);
    handshakes_close(handshakes);
}

static void the_oldest_of_an_address_makes_room_for_its_newest(void)
{
    struct handshakes handshakes;
    CHECK_EQUAL(handshakes_open(&handshakes, 8, 2), 0);
    CHECK_EQUAL(enter(&handshakes, 0, "192.0.2.1"), HANDSHAKES_FREE);
    CHECK_EQUAL(enter(&handshakes, 1, "192.0.2.2"), HANDSHAKES_FREE);
    CHECK_EQUAL(enter(&handshakes, 2, "192.0.2.1"), HANDSHAKES_FREE);
    CHECK_EQUAL(enter(&handshakes, 3, "192.0.2.1"), HANDSHAKES_OF_ADDRESS);
    CHECK(is_closed(0));
    CHECK(!is_closed(1) && !is_closed(2) && !is_closed(3));
    CHECK_EQUAL(handshakes.n, 3);
    CHECK_EQUAL(handshakes.n_closed, 1);
    end(&handshakes, 4);
}

static void one_that_has_opened_its_export_counts_no_more(void)
{
    struct handshakes handshakes;
    CHECK_EQUAL(handshakes_open(&handshakes, 8, 2), 0);
    for (unsigned i = 0; i < 6; i++) {
        CHECK_EQUAL(enter(&handshakes, i, "192.0.2.1"), HANDSHAKES_FREE);
        handshakes_leave(&handshakes, &entries[i]);
    }
    CHECK_EQUAL(enter(&handshakes, 6, "192.0.2.1"), HANDSHAKES_FREE);
    for (unsigned i = 0; i < 7; i++) {
        CHECK(!is_closed(i));
    }
    end(&handshakes, 7);
}

static void the_address_with_most_makes_room_for_all(void)
{
    struct handshakes handshakes;
    CHECK_EQUAL(handshakes_open(&handshakes, 4, 4), 0);
    enter(&handshakes, 0, "192.0.2.9");
    enter(&handshakes, 1, "192.0.2.1");
    enter(&handshakes, 2, "192.0.2.1");
    enter(&handshakes, 3, "192.0.2.1");
    CHECK_EQUAL(enter(&handshakes, 4, "192.0.2.2"), HANDSHAKES_OF_ALL);
    CHECK_EQUAL(enter(&handshakes, 5, "192.0.2.3"), HANDSHAKES_OF_ALL);
    CHECK(is_closed(1) && is_closed(2));
    CHECK(!is_closed(0) && !is_closed(3) && !is_closed(4) && !is_closed(5));
    /* All addresses have one: the newcomer stays. */
    CHECK_EQUAL(enter(&handshakes, 6, "192.0.2.4"), HANDSHAKES_OF_ALL);
    CHECK(!is_closed(6));
    CHECK_EQUAL(handshakes.n, 4);
    end(&handshakes, 7);
}

static void an_address_is_the_same_in_both_protocols_and_a_network_of_ipv6_is_one(void)
{
    struct handshakes handshakes;
    CHECK_EQUAL(handshakes_open(&handshakes, 8, 1), 0);
    CHECK_EQUAL(enter(&handshakes, 0, "192.0.2.1"), HANDSHAKES_FREE);
    CHECK_EQUAL(enter(&handshakes, 1, "::ffff:192.0.2.1"), HANDSHAKES_OF_ADDRESS);
    CHECK_EQUAL(enter(&handshakes, 2, "::ffff:192.0.2.2"), HANDSHAKES_FREE);
    CHECK_EQUAL(enter(&handshakes, 3, "2001:db8:0:1::1"), HANDSHAKES_FREE);
    CHECK_EQUAL(enter(&handshakes, 4, "2001:db8:0:1:ffff::2"), HANDSHAKES_OF_ADDRESS);
    CHECK_EQUAL(enter(&handshakes, 5, "2001:db8:0:2::1"), HANDSHAKES_FREE);
    CHECK(is_closed(0) && is_closed(3));
    end(&handshakes, 6);
}

static void room_can_be_made_until_none_is_left(void)
{
    struct handshakes handshakes;
    CHECK_EQUAL(handshakes_open(&handshakes, 8, 8), 0);
    enter(&handshakes, 0, "192.0.2.1");
    enter(&handshakes, 1, "192.0.2.1");
    CHECK(handshakes_evict(&handshakes));
    CHECK(is_closed(0) && !is_closed(1));
    CHECK(handshakes_evict(&handshakes));
    CHECK(is_closed(1));
    CHECK(!handshakes_evict(&handshakes));
    CHECK_EQUAL(handshakes.n_closed, 2);
    end(&handshakes, 2);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(the_oldest_of_an_address_makes_room_for_its_newest),
        TEST(one_that_has_opened_its_export_counts_no_more),
        TEST(the_address_with_most_makes_room_for_all),
        TEST(an_address_is_the_same_in_both_protocols_and_a_network_of_ipv6_is_one),
        TEST(room_can_be_made_until_none_is_left),
    };
    return TESTS_RUN(tests, argc, argv);
}
