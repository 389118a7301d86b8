/* SPDX-License-Identifier: MIT */
/* Limits of a client: its bandwidth, its quota of memory, and how long it is known. */
#include "tests/c/check.h"

#include "memserver/clients.h"

#include <stdlib.h>

#define MIB       (UINT64_C(1) << 20)
#define SECOND_NS INT64_C(1000000000)
#define PAGE      STORE_PAGE_BYTES

static const struct client_limits no_limits = {.set_rate = true,
                                               .set_connections = true,
                                               .set_resident = true,
                                               .bytes_per_s = STORE_NO_LIMIT,
                                               .connections = STORE_NO_LIMIT,
                                               .resident_bytes = STORE_NO_LIMIT};

static void a_client_is_known_while_it_has_an_export_or_a_limit(void)
{
    struct clients clients = {0};
    struct client *client = client_take(&clients, "a");
    CHECK(client == client_take(&clients, "a"));
    CHECK_EQUAL(clients.n, 1);
    client->n_exports = 1;
    client_drop(&clients, client);
    CHECK(client_find(&clients, "a") == client);
    struct client_limits limits = {.set_resident = true, .resident_bytes = 0};
    client_limits_set(client, &limits);
    client->n_exports = 0;
    client_drop(&clients, client);
    CHECK(client_find(&clients, "a") == client);
    client_limits_set(client, &no_limits);
    client_drop(&clients, client);
    CHECK(client_find(&clients, "a") == NULL);
    CHECK_EQUAL(clients.n, 0);
}

static void an_id_is_short_and_has_no_control_characters(void)
{
    char id[CLIENT_ID_MAX + 2] = {0};
    CHECK(!client_id_is_valid(""));
    CHECK(!client_id_is_valid("a\nb"));
    memset(id, 'x', CLIENT_ID_MAX);
    CHECK(client_id_is_valid(id));
    id[CLIENT_ID_MAX] = 'x';
    CHECK(!client_id_is_valid(id));
}

static void no_more_than_the_rate_and_a_burst_is_let_through(void)
{
    struct clients clients = {0};
    struct client *client = client_take(&clients, "a");
    struct client_limits limits = {.set_rate = true, .bytes_per_s = MIB};
    CHECK(!client_is_limited(client));
    client_limits_set(client, &limits);
    CHECK(client_is_limited(client));
    uint64_t sent = 0;
    int64_t now_ns = 1000 * SECOND_NS;
    for (int64_t end_ns = now_ns + 10 * SECOND_NS; now_ns < end_ns; now_ns += 100000) {
        while (client_wait_ns(client, now_ns) == 0) {
            client_charge(client, now_ns, PAGE);
            sent += PAGE;
        }
    }
    CHECK(sent >= 10 * MIB);
    CHECK(sent <= 10 * MIB + MIB * CLIENT_BURST_NS / SECOND_NS + 2 * PAGE);
    client_limits_set(client, &no_limits);
    client_drop(&clients, client);
}

static void a_long_request_is_paid_for_by_those_after_it(void)
{
    struct clients clients = {0};
    struct client *client = client_take(&clients, "a");
    struct client_limits limits = {.set_rate = true, .bytes_per_s = MIB};
    client_limits_set(client, &limits);
    int64_t now_ns = SECOND_NS;
    client_charge(client, now_ns, 4 * MIB);
    CHECK_EQUAL(client_wait_ns(client, now_ns), 4 * SECOND_NS - CLIENT_BURST_NS);
    CHECK_EQUAL(client_wait_ns(client, now_ns + 4 * SECOND_NS), 0);
    /* The same rate again gives nothing away; a new one begins anew. */
    client_limits_set(client, &limits);
    CHECK_EQUAL(client_wait_ns(client, now_ns), 4 * SECOND_NS - CLIENT_BURST_NS);
    limits.bytes_per_s = 2 * MIB;
    client_limits_set(client, &limits);
    CHECK_EQUAL(client_wait_ns(client, now_ns), 0);
    client_limits_set(client, &no_limits);
    client_drop(&clients, client);
}

static void a_quota_bounds_what_several_stores_hold_and_what_is_under_way(void)
{
    struct store_quota quota = {.limit_pages = 4};
    struct store one, two;
    uint64_t first = 0, second = 0, third = 0;
    CHECK_EQUAL(store_open(&one, 64 * PAGE), 0);
    CHECK_EQUAL(store_open(&two, 64 * PAGE), 0);
    one.quota = two.quota = &quota;
    CHECK(store_reserve(&one, PAGE / 2, PAGE, &first)); /* it touches two pages */
    CHECK_EQUAL(first, 2);
    CHECK(!store_reserve(&two, 0, 3 * PAGE, &second));
    CHECK(store_reserve(&two, 0, 2 * PAGE, &second));
    CHECK(!store_reserve(&one, 8 * PAGE, 1, &third));
    store_mark_written(&one, PAGE / 2, PAGE, &first);
    CHECK_EQUAL(first, 0);
    CHECK(store_reserve(&one, 0, 2 * PAGE, &third)); /* pages that are there may be written */
    CHECK_EQUAL(third, 0);
    store_unreserve(&two, second); /* this write never came */
    CHECK_EQUAL(quota.pages, 2);
    store_discard(&one, 0, 64 * PAGE);
    CHECK_EQUAL(quota.pages, 0);
    CHECK(store_reserve(&two, 0, 4 * PAGE, &second));
    store_zero(&two, 0, 4 * PAGE, &second);
    CHECK_EQUAL(second, 0);
    CHECK_EQUAL(quota.pages, 4);
    store_close(&two);
    CHECK_EQUAL(quota.pages, 0);
    store_close(&one);
}

static void a_quota_counts_what_was_written_before_it_had_a_limit(void)
{
    struct store_quota quota = {.limit_pages = STORE_NO_LIMIT};
    struct store store;
    uint64_t reserved = 0;
    CHECK_EQUAL(store_open(&store, 200 * PAGE), 0);
    store.quota = &quota;
    CHECK(store_reserve(&store, 0, 150 * PAGE, &reserved));
    CHECK_EQUAL(reserved, 0);
    store_mark_written(&store, 0, 150 * PAGE, &reserved);
    quota.limit_pages = 100;
    CHECK(!store_reserve(&store, 150 * PAGE, 1, &reserved));
    CHECK(store_reserve(&store, 10 * PAGE, 100 * PAGE, &reserved));
    store_discard(&store, 0, 51 * PAGE);
    CHECK(store_reserve(&store, 150 * PAGE, 1, &reserved));
    store_unreserve(&store, reserved);
    store_close(&store);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(a_client_is_known_while_it_has_an_export_or_a_limit),
        TEST(an_id_is_short_and_has_no_control_characters),
        TEST(no_more_than_the_rate_and_a_burst_is_let_through),
        TEST(a_long_request_is_paid_for_by_those_after_it),
        TEST(a_quota_bounds_what_several_stores_hold_and_what_is_under_way),
        TEST(a_quota_counts_what_was_written_before_it_had_a_limit),
    };
    return TESTS_RUN(tests, argc, argv);
}
