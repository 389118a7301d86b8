/* SPDX-License-Identifier: MIT */
/* A server's session and a client of GnuTLS's own record layer, which does what ours never does, in this thread. */
#include "tests/c/check.h"

#include "common/tls.h"

#include <gnutls/crypto.h>

#include <errno.h>
#include <gnutls/gnutls.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TURNS_MAX 1000u
#define SENT_MAX  100000u
#define PRIORITY                                                                                                     \
    "NONE:+VERS-TLS1.3:+ECDHE-PSK:+AES-128-GCM:+CHACHA20-POLY1305:+AEAD:+SHA256:+GROUP-X25519:+COMP-NULL:+SIGN-ALL"

static const struct psk key = {.n_bytes = 16, .bytes = "sixteen bytes .."};

struct peer {
    int fds[2];
    struct tls *server;
    gnutls_session_t client;
    gnutls_psk_client_credentials_t credentials;
    uint8_t sent[SENT_MAX]; /* what the client has sent and did not reach the socket yet */
    size_t n_sent;
    bool holds_back;
};

static bool find(void *ctx, const uint8_t *identity, size_t identity_bytes, struct psk *psk)
{
    (void)ctx;
    (void)identity;
    (void)identity_bytes;
    *psk = key;
    return true;
}

static ssize_t push(gnutls_transport_ptr_t ptr, const void *data, size_t bytes)
{
    struct peer *peer = ptr;
    if (!peer->holds_back) {
        return send(peer->fds[1], data, bytes, 0);
    }
    CHECK(bytes <= SENT_MAX - peer->n_sent);
    memcpy(peer->sent + peer->n_sent, data, bytes);
    peer->n_sent += bytes;
    return (ssize_t)bytes;
}

static ssize_t pull(gnutls_transport_ptr_t ptr, void *data, size_t bytes)
{
    const struct peer *peer = ptr;
    return recv(peer->fds[1], data, bytes, 0);
}

static int pull_never_waits(gnutls_transport_ptr_t ptr, unsigned int ms)
{
    (void)ptr;
    (void)ms;
    return 1;
}

/* Shakes hands. The client takes records with contents of `most` bytes at most; 0: of any size. */
static void peer_open(struct peer *peer, const char *priority, size_t most)
{
    gnutls_datum_t bytes = {(unsigned char *)(uintptr_t)key.bytes, key.n_bytes};
    memset(peer, 0, sizeof(*peer));
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, peer->fds), 0);
    peer->server = tls_server_new(peer->fds[0], find, NULL);
    CHECK(peer->server != NULL);
    CHECK_EQUAL(gnutls_init(&peer->client, GNUTLS_CLIENT | GNUTLS_NONBLOCK), 0);
    CHECK_EQUAL(gnutls_priority_set_direct(peer->client, priority, NULL), 0);
    CHECK_EQUAL(gnutls_psk_allocate_client_credentials(&peer->credentials), 0);
    CHECK_EQUAL(gnutls_psk_set_client_credentials(peer->credentials, "me", &bytes, GNUTLS_PSK_KEY_RAW), 0);
    CHECK_EQUAL(gnutls_credentials_set(peer->client, GNUTLS_CRD_PSK, peer->credentials), 0);
    if (most > 0) {
        CHECK_EQUAL(gnutls_record_set_max_recv_size(peer->client, most), 0);
    }
    gnutls_transport_set_ptr(peer->client, peer);
    gnutls_transport_set_push_function(peer->client, push);
    gnutls_transport_set_pull_function(peer->client, pull);
    gnutls_transport_set_pull_timeout_function(peer->client, pull_never_waits);
    gnutls_handshake_set_timeout(peer->client, 0);
    int server = -EAGAIN, client = GNUTLS_E_AGAIN;
    for (unsigned i = 0; i < TURNS_MAX && (server == -EAGAIN || client == GNUTLS_E_AGAIN); i++) {
        client = client != 0 ? gnutls_handshake(peer->client) : 0;
        server = server != 0 ? tls_handshake(peer->server) : 0;
    }
    CHECK_EQUAL(client, 0);
    CHECK_EQUAL(server, 0);
}

static void peer_close(struct peer *peer)
{
    tls_free(peer->server);
    gnutls_deinit(peer->client);
    gnutls_psk_free_client_credentials(peer->credentials);
    close(peer->fds[0]);
    close(peer->fds[1]);
}

static void server_receives(struct peer *peer, const char *text)
{
    char got[64] = "";
    struct iovec into = {got, sizeof(got)};
    CHECK_EQUAL(tls_receive(peer->server, &into, 1, true), (long)strlen(text));
    CHECK_TEXT(got, text);
}

static void client_receives(struct peer *peer, const char *text)
{
    char got[64] = "";
    struct iovec from = {(void *)(uintptr_t)text, strlen(text)};
    CHECK_EQUAL(tls_send(peer->server, &from, 1), (long)strlen(text));
    ssize_t n = gnutls_record_recv(peer->client, got, sizeof(got));
    if (n == GNUTLS_E_AGAIN) { /* it has read a change of keys */
        n = gnutls_record_recv(peer->client, got, sizeof(got));
    }
    CHECK_EQUAL(n, (long)strlen(text));
    CHECK_TEXT(got, text);
}

/* Returns how many records the client has received with the server's present key. */
static unsigned records_received(const struct peer *peer)
{
    unsigned char number[8];
    CHECK_EQUAL(gnutls_record_get_state(peer->client, 1, NULL, NULL, NULL, number), 0);
    return number[7];
}

/* Sends a record of the client's with this kind of contents, under this outer type. */
static void send_record(struct peer *peer, uint8_t outer, uint8_t kind, const void *contents, size_t bytes)
{
    uint8_t plain[64], record[128] = {outer, 3, 3, 0, (uint8_t)(bytes + 1 + 16)}, nonce[12];
    const uint8_t head[5] = {23, 3, 3, 0, record[4]}; /* GnuTLS authenticates this, whatever has come */
    size_t sealed = sizeof(record) - 5;
    unsigned char number[8];
    gnutls_datum_t iv, secret;
    gnutls_aead_cipher_hd_t cipher;
    CHECK_EQUAL(gnutls_record_get_state(peer->client, 0, NULL, &iv, &secret, number), 0);
    CHECK_EQUAL(gnutls_aead_cipher_init(&cipher, gnutls_cipher_get(peer->client), &secret), 0);
    memcpy(nonce, iv.data, sizeof(nonce));
    for (unsigned i = 0; i < 8; i++) {
        nonce[4 + i] ^= number[i];
    }
    memcpy(plain, contents, bytes);
    plain[bytes] = kind;
    CHECK_EQUAL(gnutls_aead_cipher_encrypt(cipher, nonce, sizeof(nonce), head, sizeof(head), 16, plain, bytes + 1,
                                           record + 5, &sealed),
                0);
    gnutls_aead_cipher_deinit(cipher);
    number[7]++;
    CHECK_EQUAL(gnutls_record_set_state(peer->client, 0, number), 0);
    CHECK_EQUAL(send(peer->fds[1], record, 5 + sealed, 0), (long)(5 + sealed));
}

static void empty_records_of_the_handshake_end_it(void)
{
    /* The head of a message of 100 bytes, a change of keys, and 26 of them: GnuTLS waits for the rest. */
    static const uint8_t part[30] = {24, 0, 0, 100};
    static const uint8_t outer[] = {23, 22, 21};
    for (unsigned i = 0; i < 3; i++) {
        struct peer peer;
        uint8_t got[8];
        struct iovec into = {got, sizeof(got)};
        peer_open(&peer, PRIORITY, 0);
        send_record(&peer, 23, 22, part, sizeof(part));
        CHECK_EQUAL(tls_receive(peer.server, &into, 1, true), -EAGAIN);
        send_record(&peer, outer[i], 22, "", 0);
        CHECK_EQUAL(tls_receive(peer.server, &into, 1, true), -EPROTO);
        CHECK(!tls_has_input(peer.server));
        CHECK_EQUAL(gnutls_record_recv(peer.client, got, sizeof(got)), GNUTLS_E_FATAL_ALERT_RECEIVED);
        CHECK_EQUAL(gnutls_alert_get(peer.client), GNUTLS_A_UNEXPECTED_MESSAGE);
        peer_close(&peer);
    }
}

static void a_session_that_has_not_shaken_hands_passes_nothing(void)
{
    int fds[2];
    uint8_t byte = 0;
    struct iovec iov = {&byte, 1};
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
    struct tls *server = tls_server_new(fds[0], find, NULL);
    CHECK_EQUAL(tls_send(server, &iov, 1), -EPROTO);
    CHECK_EQUAL(tls_receive(server, &iov, 1, true), -EPROTO);
    tls_free(server);
    close(fds[0]);
    close(fds[1]);
}

static void padded_and_empty_records_are_read(void)
{
    struct peer peer;
    peer_open(&peer, PRIORITY, 0);
    CHECK_EQUAL(gnutls_record_send2(peer.client, "one", 3, 1000, 0), 3);
    CHECK_EQUAL(gnutls_record_send2(peer.client, "", 0, 10, 0), 0);
    CHECK_EQUAL(gnutls_record_send2(peer.client, "two", 3, 1, 0), 3);
    server_receives(&peer, "onetwo");
    peer_close(&peer);
}

static void both_ciphers_are_spoken(void)
{
    static const char *const ciphers[] = {"+AES-128-GCM", "+CHACHA20-POLY1305"};
    for (unsigned i = 0; i < 2; i++) {
        struct peer peer;
        char priority[200];
        snprintf(priority, sizeof(priority),
                 "NONE:+VERS-TLS1.3:+ECDHE-PSK:%s:+AEAD:+SHA256:+GROUP-X25519:+COMP-NULL:+SIGN-ALL", ciphers[i]);
        peer_open(&peer, priority, 0);
        CHECK_EQUAL(gnutls_record_send(peer.client, "there", 5), 5);
        server_receives(&peer, "there");
        client_receives(&peer, "back");
        peer_close(&peer);
    }
}

static void a_peer_that_asks_for_new_keys_gets_them(void)
{
    struct peer peer;
    peer_open(&peer, PRIORITY, 0);
    for (unsigned i = 0; i < 3; i++) {
        CHECK_EQUAL(gnutls_record_send(peer.client, "before", 6), 6);
        client_receives(&peer, "mine");
        CHECK_EQUAL(gnutls_session_key_update(peer.client, GNUTLS_KU_PEER), 0);
        CHECK_EQUAL(gnutls_record_send(peer.client, " after", 6), 6);
        server_receives(&peer, "before after");
        CHECK_EQUAL(records_received(&peer), i == 0 ? 1 : 2);
        client_receives(&peer, "mine with the new key");
        CHECK_EQUAL(records_received(&peer), 1);
        CHECK_EQUAL(gnutls_record_send(peer.client, "and on", 6), 6);
        server_receives(&peer, "and on");
    }
    CHECK_TEXT(tls_why(peer.server), "");
    peer_close(&peer);
}

static void a_peer_that_takes_small_records_gets_such(void)
{
    static uint8_t out[5000], in[5000];
    struct peer peer;
    size_t got = 0, largest = 0;
    for (size_t i = 0; i < sizeof(out); i++) {
        out[i] = (uint8_t)(i * 7);
    }
    peer_open(&peer, PRIORITY, 512);
    struct iovec from = {out, sizeof(out)};
    CHECK_EQUAL(tls_send(peer.server, &from, 1), (long)sizeof(out));
    while (got < sizeof(out)) {
        ssize_t n = gnutls_record_recv(peer.client, in + got, sizeof(in) - got);
        CHECK(n > 0);
        got += (size_t)n;
        largest = (size_t)n > largest ? (size_t)n : largest;
    }
    CHECK(largest <= 512);
    CHECK(memcmp(in, out, sizeof(out)) == 0);
    peer_close(&peer);
}

static void records_that_come_byte_by_byte_are_read_once_they_are_whole(void)
{
    struct peer peer;
    uint8_t byte;
    struct iovec into = {&byte, 1};
    peer_open(&peer, PRIORITY, 0);
    peer.holds_back = true;
    for (uint8_t i = 0; i < 3; i++) {
        peer.n_sent = 0;
        CHECK_EQUAL(gnutls_session_key_update(peer.client, 0), 0);
        CHECK_EQUAL(gnutls_record_send(peer.client, &i, 1), 1);
        for (size_t at = 0; at < peer.n_sent; at++) {
            CHECK_EQUAL(tls_receive(peer.server, &into, 1, true), -EAGAIN);
            CHECK(!tls_has_input(peer.server));
            CHECK_EQUAL(send(peer.fds[1], peer.sent + at, 1, 0), 1);
        }
        CHECK_EQUAL(tls_receive(peer.server, &into, 1, true), 1);
        CHECK_EQUAL(byte, i);
    }
    peer_close(&peer);
}

static void a_record_that_is_changed_or_comes_twice_ends_it(void)
{
    for (unsigned twice = 0; twice < 2; twice++) {
        struct peer peer;
        uint8_t got[64];
        struct iovec into = {got, sizeof(got)};
        peer_open(&peer, PRIORITY, 0);
        peer.holds_back = true;
        CHECK_EQUAL(gnutls_record_send(peer.client, "page", 4), 4);
        CHECK_EQUAL(send(peer.fds[1], peer.sent, peer.n_sent, 0), (long)peer.n_sent);
        CHECK_EQUAL(tls_receive(peer.server, &into, 1, true), 4);
        if (twice == 0) {
            peer.n_sent = 0;
            CHECK_EQUAL(gnutls_record_send(peer.client, "page", 4), 4);
            peer.sent[7] ^= 1;
        }
        CHECK_EQUAL(send(peer.fds[1], peer.sent, peer.n_sent, 0), (long)peer.n_sent);
        CHECK_EQUAL(tls_receive(peer.server, &into, 1, true), -EPROTO);
        CHECK_TEXT(tls_why(peer.server), "Decryption has failed.");
        CHECK_EQUAL(tls_send(peer.server, &into, 1), -EPROTO);
        CHECK_EQUAL(gnutls_record_recv(peer.client, got, sizeof(got)), GNUTLS_E_FATAL_ALERT_RECEIVED);
        CHECK_EQUAL(gnutls_alert_get(peer.client), GNUTLS_A_BAD_RECORD_MAC);
        peer_close(&peer);
    }
}

static void what_is_sent_after_the_peers_end_arrives(void)
{
    struct peer peer;
    uint8_t byte;
    struct iovec into = {&byte, 1};
    peer_open(&peer, PRIORITY, 0);
    CHECK_EQUAL(gnutls_bye(peer.client, GNUTLS_SHUT_WR), 0);
    CHECK_EQUAL(tls_receive(peer.server, &into, 1, true), 0);
    client_receives(&peer, "one more");
    client_receives(&peer, "and another");
    peer_close(&peer);
}

static void a_length_that_no_record_has_ends_it(void)
{
    static const uint8_t head[5] = {0x17, 3, 3, 0xff, 0xff};
    struct peer peer;
    uint8_t got[64];
    struct iovec into = {got, sizeof(got)};
    peer_open(&peer, PRIORITY, 0);
    CHECK_EQUAL(send(peer.fds[1], head, sizeof(head), 0), (long)sizeof(head));
    CHECK_EQUAL(tls_receive(peer.server, &into, 1, true), -EPROTO);
    CHECK(*tls_why(peer.server) != '\0');
    peer_close(&peer);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(empty_records_of_the_handshake_end_it),
        TEST(a_session_that_has_not_shaken_hands_passes_nothing),
        TEST(padded_and_empty_records_are_read),
        TEST(both_ciphers_are_spoken),
        TEST(a_peer_that_asks_for_new_keys_gets_them),
        TEST(a_peer_that_takes_small_records_gets_such),
        TEST(records_that_come_byte_by_byte_are_read_once_they_are_whole),
        TEST(a_record_that_is_changed_or_comes_twice_ends_it),
        TEST(what_is_sent_after_the_peers_end_arrives),
        TEST(a_length_that_no_record_has_ends_it),
    };
    return TESTS_RUN(tests, argc, argv);
}
