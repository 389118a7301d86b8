/* SPDX-License-Identifier: MIT */
/* Two sessions at the two ends of a socket pair, in this thread. */
#include "tests/c/check.h"

#include "common/tls.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TURNS_MAX   100000u
#define TOTAL_BYTES (3u << 20)

static const struct psk right = {.n_bytes = 16, .bytes = "sixteen bytes .."};
static const struct psk wrong = {.n_bytes = 16, .bytes = "sixteen others.."};

struct pair {
    int fds[2];
    struct tls *server, *client;
};

static bool find(void *ctx, const uint8_t *identity, size_t identity_bytes, struct psk *psk)
{
    (void)ctx;
    *psk = right;
    return identity_bytes == 2 && memcmp(identity, "me", 2) == 0;
}

static struct pair pair_open(const char *identity, const struct psk *psk)
{
    struct pair pair;
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair.fds), 0);
    pair.server = tls_server_new(pair.fds[0], find, NULL);
    pair.client = tls_client_new(pair.fds[1], identity, psk);
    CHECK(pair.server != NULL && pair.client != NULL);
    return pair;
}

static void pair_close(struct pair *pair)
{
    tls_free(pair->client);
    tls_free(pair->server);
    close(pair->fds[0]);
    close(pair->fds[1]);
}

/* Goes on with both handshakes until each end knows how its own has ended. */
static void shake(struct pair *pair, int *server, int *client)
{
    *server = *client = -EAGAIN;
    for (unsigned i = 0; i < TURNS_MAX && (*server == -EAGAIN || *client == -EAGAIN); i++) {
        *client = *client == -EAGAIN ? tls_handshake(pair->client) : *client;
        *server = *server == -EAGAIN ? tls_handshake(pair->server) : *server;
    }
}

static struct pair pair_connect(void)
{
    struct pair pair = pair_open("me", &right);
    int server, client;
    shake(&pair, &server, &client);
    CHECK_EQUAL(server, 0);
    CHECK_EQUAL(client, 0);
    return pair;
}

static uint8_t byte_at(size_t at)
{
    return (uint8_t)(at * 31 + (at >> 9));
}

/* Sends a stream in vectors of three pieces, of lengths that fit no record, and receives it in such. */
static void stream_pass(struct tls *from, struct tls *to)
{
    static uint8_t out[TOTAL_BYTES], in[TOTAL_BYTES];
    size_t sent = 0, got = 0;
    for (size_t i = 0; i < TOTAL_BYTES; i++) {
        out[i] = byte_at(i);
    }
    memset(in, 0, sizeof(in));
    for (unsigned turn = 0; turn < TURNS_MAX && got < TOTAL_BYTES; turn++) {
        size_t piece = 1 + turn * 7919 % 70000, left = TOTAL_BYTES - sent;
        size_t first = left < 28 ? left : 28, second = left - first < piece ? left - first : piece;
        struct iovec iov[3] = {
            {out + sent, first},
            {out + sent + first, second},
            {out + sent + first + second, left - first - second < 16 ? left - first - second : 16}};
        ssize_t n = left > 0 || tls_has_output(from) ? tls_send(from, iov, left > 0 ? 3 : 0) : 0;
        CHECK(n >= 0 || n == -EAGAIN);
        sent += n > 0 ? (size_t)n : 0;
        do {
            size_t room = TOTAL_BYTES - got < 5000 + turn ? TOTAL_BYTES - got : 5000 + turn;
            struct iovec into[2] = {{in + got, room / 3}, {in + got + room / 3, room - room / 3}};
            n = tls_receive(to, into, 2, true);
            CHECK(n > 0 || n == -EAGAIN || got == TOTAL_BYTES);
            got += n > 0 ? (size_t)n : 0;
        } while (n > 0 && got < TOTAL_BYTES);
    }
    CHECK_EQUAL(got, TOTAL_BYTES);
    CHECK(memcmp(in, out, TOTAL_BYTES) == 0);
}

static void streams_pass_both_ways(void)
{
    struct pair pair = pair_connect();
    stream_pass(pair.client, pair.server);
    stream_pass(pair.server, pair.client);
    CHECK_EQUAL(tls_rekeyed(pair.client), 0);
    pair_close(&pair);
}

static void keys_are_changed_on_the_way(void)
{
    struct pair pair = pair_connect();
    tls_set_rekey(pair.client, 50);
    stream_pass(pair.client, pair.server);
    CHECK(tls_rekeyed(pair.client) > 2);
    CHECK_EQUAL(tls_rekeyed(pair.server), 0);
    stream_pass(pair.server, pair.client);
    pair_close(&pair);
}

/* Sends one byte, and receives it by one call: a program that is told to wait would sleep. */
static void byte_pass(struct tls *from, struct tls *to, uint8_t byte)
{
    uint8_t got = 0;
    struct iovec out = {&byte, 1}, in = {&got, 1};
    CHECK_EQUAL(tls_send(from, &out, 1), 1);
    CHECK_EQUAL(tls_receive(to, &in, 1, true), 1);
    CHECK_EQUAL(got, byte);
}

static void bytes_that_come_with_a_change_of_keys_are_received_at_once(void)
{
    struct pair pair = pair_connect();
    tls_set_rekey(pair.client, 1);
    for (uint8_t i = 0; i < 4; i++) {
        byte_pass(pair.client, pair.server, i);
        byte_pass(pair.server, pair.client, i);
    }
    CHECK_EQUAL(tls_rekeyed(pair.client), 3);
    pair_close(&pair);
}

static void both_ends_may_change_keys_at_a_time(void)
{
    struct pair pair = pair_connect();
    tls_set_rekey(pair.client, 2);
    tls_set_rekey(pair.server, 2);
    for (uint8_t i = 0; i < 6; i++) {
        byte_pass(pair.client, pair.server, i);
        byte_pass(pair.server, pair.client, i);
    }
    CHECK_EQUAL(tls_rekeyed(pair.client), 2);
    CHECK_EQUAL(tls_rekeyed(pair.server), 2);
    CHECK(strcmp(tls_why(pair.client), "") == 0);
    pair_close(&pair);
}

static void what_the_socket_does_not_take_is_kept(void)
{
    static uint8_t block[1 << 20];
    struct pair pair = pair_connect();
    struct iovec iov = {block, sizeof(block)};
    size_t taken = 0;
    ssize_t n;
    while ((n = tls_send(pair.client, &iov, 1)) > 0) {
        taken += (size_t)n;
    }
    CHECK_EQUAL(n, -EAGAIN);
    CHECK(tls_has_output(pair.client));
    size_t got = 0;
    for (unsigned turn = 0; turn < TURNS_MAX && got < taken; turn++) {
        struct iovec into = {block, sizeof(block)};
        n = tls_receive(pair.server, &into, 1, true);
        got += n > 0 ? (size_t)n : 0;
        n = tls_send(pair.client, NULL, 0);
        CHECK(n == 0 || n == -EAGAIN);
    }
    CHECK_EQUAL(got, taken);
    CHECK(!tls_has_output(pair.client));
    pair_close(&pair);
}

static void what_was_received_already_needs_no_socket(void)
{
    uint8_t byte[64] = "some bytes in one record";
    struct pair pair = pair_connect();
    struct iovec iov = {byte, sizeof(byte)};
    struct iovec small = {byte, 10};
    CHECK_EQUAL(tls_send(pair.client, &iov, 1), 64);
    CHECK_EQUAL(tls_receive(pair.server, &small, 1, false), -EAGAIN);
    CHECK_EQUAL(tls_receive(pair.server, &small, 1, true), 10);
    CHECK(tls_has_input(pair.server));
    iov.iov_len = 54;
    CHECK_EQUAL(tls_receive(pair.server, &iov, 1, false), 54);
    CHECK(!tls_has_input(pair.server));
    CHECK_EQUAL(tls_receive(pair.server, &iov, 1, true), -EAGAIN);
    CHECK(tls_received(pair.server) > 64);
    pair_close(&pair);
}

static void the_end_is_told(void)
{
    uint8_t byte;
    struct pair pair = pair_connect();
    struct iovec iov = {&byte, 1};
    tls_free(pair.client);
    pair.client = NULL;
    CHECK_EQUAL(tls_receive(pair.server, &iov, 1, true), 0);
    shutdown(pair.fds[1], SHUT_RDWR);
    CHECK_EQUAL(tls_receive(pair.server, &iov, 1, true), 0);
    pair_close(&pair);
}

static void refused(const char *identity, const struct psk *psk)
{
    struct pair pair = pair_open(identity, psk);
    int server, client;
    shake(&pair, &server, &client);
    CHECK_EQUAL(server, -EPROTO);
    CHECK_EQUAL(client, -EPROTO);
    CHECK_TEXT(tls_why(pair.server), "an unknown identity, or a wrong key");
    CHECK(strstr(tls_why(pair.client), "it does not know the identity, or the key is wrong") != NULL);
    pair_close(&pair);
}

static void a_wrong_key_and_an_unknown_identity_look_alike(void)
{
    refused("me", &wrong);
    refused("you", &right);
}

static void bytes_that_somebody_slips_in_end_it(void)
{
    /* A record's head (application data, TLS 1.2, 32 bytes) and no record. */
    static const uint8_t forged[5 + 32] = {0x17, 3, 3, 0, 32};
    uint8_t byte[64];
    struct pair pair = pair_connect();
    struct iovec into = {byte, sizeof(byte)};
    CHECK_EQUAL(send(pair.fds[1], forged, sizeof(forged), 0), (long)sizeof(forged));
    CHECK_EQUAL(tls_receive(pair.server, &into, 1, true), -EPROTO);
    CHECK(*tls_why(pair.server) != '\0');
    CHECK_EQUAL(tls_receive(pair.client, &into, 1, true), -EPROTO);
    CHECK(strstr(tls_why(pair.client), "the other end refused: ") != NULL);
    pair_close(&pair);
}

static void an_error_of_the_socket_is_told_as_it_is(void)
{
    uint8_t byte[8] = {0};
    struct pair pair = pair_connect();
    struct iovec iov = {byte, sizeof(byte)};
    CHECK_EQUAL(tls_send(pair.server, &iov, 1), 8);
    close(pair.fds[1]); /* the client has not read the bytes, so the kernel resets the connection */
    CHECK_EQUAL(tls_receive(pair.server, &iov, 1, true), -ECONNRESET);
    CHECK_TEXT(tls_why(pair.server), "");
    pair.fds[1] = dup(pair.fds[0]); /* pair_close() closes it */
    pair_close(&pair);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(streams_pass_both_ways),
        TEST(keys_are_changed_on_the_way),
        TEST(bytes_that_come_with_a_change_of_keys_are_received_at_once),
        TEST(both_ends_may_change_keys_at_a_time),
        TEST(what_the_socket_does_not_take_is_kept),
        TEST(what_was_received_already_needs_no_socket),
        TEST(the_end_is_told),
        TEST(a_wrong_key_and_an_unknown_identity_look_alike),
        TEST(bytes_that_somebody_slips_in_end_it),
        TEST(an_error_of_the_socket_is_told_as_it_is),
    };
    return TESTS_RUN(tests, argc, argv);
}
