/* SPDX-License-Identifier: MIT */
#include "donor/secure.h"

#include "common/nbd_protocol.h"
#include "donor/address.h"

#include <assert.h>
#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Room for an option with two context names, or a reply with a description: strings have 4096 bytes at most. */
#define BUFFER_BYTES (2 * NBD_MAX_STRING + 1024)
/* More replies to one option fail the negotiation. */
#define REPLIES_MAX 64u
#define WHY_BYTES   192
#define NO_SUCH     "it offers no TLS, and nbds:// does not go on without: "

enum step {
    STEP_CONNECT,
    STEP_GREETING,
    STEP_STARTTLS,
    STEP_TLS,
    STEP_STRUCTURED,
    STEP_CONTEXTS,
    STEP_GO,
    STEP_DONE,
};

struct secure {
    int fd;
    enum step step;
    int failed; /* the -errno of the step that failed */
    bool key_failed;
    struct psk psk;
    char *export, *identity;
    const char *contexts[2];
    struct tls *tls;
    struct export_facts facts;
    char description[NBD_MAX_STRING + 1];
    char why[WHY_BYTES];
    uint32_t n_replies; /* to the option that was sent last */
    uint32_t tx_at, tx_end, rx_end;
    uint8_t tx[BUFFER_BYTES], rx[BUFFER_BYTES];
};

/* A reply to an option, in rx. */
struct reply {
    uint32_t type, length;
    const uint8_t *data;
};

static int fail(struct secure *secure, int error, const char *why)
{
    snprintf(secure->why, sizeof(secure->why), "%s", why);
    secure->failed = error;
    return error;
}

struct secure *secure_new(const struct secure_wishes *wishes)
{
    struct secure *secure = calloc(1, sizeof(*secure));

    if (!secure)
        return NULL;
    secure->export = strdup(wishes->export);
    secure->identity = strdup(wishes->identity);
    secure->psk = *wishes->psk;
    memcpy(secure->contexts, wishes->contexts, sizeof(secure->contexts));
    secure->facts.bytes = -1;
    secure->fd = address_connect(wishes->address);
    if (secure->fd < 0)
        fail(secure, secure->fd, strerror(-secure->fd));
    if (!secure->export || !secure->identity) {
        secure_free(secure);
        return NULL;
    }
    return secure;
}

void secure_free(struct secure *secure)
{
    if (!secure)
        return;
    tls_free(secure->tls);
    if (secure->fd >= 0)
        close(secure->fd);
    psk_wipe(&secure->psk);
    free(secure->export);
    free(secure->identity);
    free(secure);
}

int secure_fd(const struct secure *secure)
{
    return secure->fd;
}

struct tls *secure_tls(const struct secure *secure)
{
    return secure->tls;
}

const struct export_facts *secure_facts(const struct secure *secure)
{
    return &secure->facts;
}

const char *secure_description(const struct secure *secure)
{
    return secure->description;
}

const char *secure_why(const struct secure *secure)
{
    return secure->why;
}

bool secure_key_failed(const struct secure *secure)
{
    return secure->key_failed;
}

bool secure_wants_output(const struct secure *secure)
{
    return secure->step == STEP_CONNECT || secure->tx_at < secure->tx_end ||
           (secure->tls && tls_has_output(secure->tls));
}

/* --- bytes --- */

/* Returns 0 once all is sent, -EAGAIN, or -errno. */
static int transmit(struct secure *secure)
{
    while (secure->tx_at < secure->tx_end || (secure->step > STEP_TLS && tls_has_output(secure->tls))) {
        struct iovec iov = {secure->tx + secure->tx_at, secure->tx_end - secure->tx_at};
        ssize_t sent;

        if (secure->step > STEP_TLS) {
            sent = tls_send(secure->tls, &iov, iov.iov_len > 0 ? 1 : 0);
        } else {
            sent = send(secure->fd, iov.iov_base, iov.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
            sent = sent < 0 ? -errno : sent;
        }
        if (sent == -EINTR)
            continue;
        if (sent < 0)
            return sent == -EAGAIN ? -EAGAIN : fail(secure, (int)sent, strerror((int)-sent));
        secure->tx_at += (uint32_t)sent;
    }
    secure->tx_at = secure->tx_end = 0;
    return 0;
}

/* Returns 0 when more bytes have come, -EAGAIN, or -errno. */
static int receive(struct secure *secure)
{
    struct iovec iov = {secure->rx + secure->rx_end, BUFFER_BYTES - secure->rx_end};
    ssize_t got;

    if (secure->step > STEP_TLS) {
        got = tls_receive(secure->tls, &iov, 1, true);
        if (got == -EPROTO)
            return fail(secure, -EPROTO, tls_why(secure->tls));
    } else {
        got = recv(secure->fd, iov.iov_base, iov.iov_len, MSG_DONTWAIT);
        got = got < 0 ? -errno : got;
    }
    if (got == 0)
        return fail(secure, -ECONNRESET, "it closed the connection");
    if (got < 0)
        return got == -EAGAIN || got == -EINTR ? -EAGAIN : fail(secure, (int)got, strerror((int)-got));
    secure->rx_end += (uint32_t)got;
    return 0;
}

static void consume(struct secure *secure, uint32_t bytes)
{
    secure->rx_end -= bytes;
    memmove(secure->rx, secure->rx + bytes, secure->rx_end);
}

static void put(struct secure *secure, const void *data, size_t bytes)
{
    assert(bytes <= BUFFER_BYTES - secure->tx_end);
    memcpy(secure->tx + secure->tx_end, data, bytes);
    secure->tx_end += (uint32_t)bytes;
}

static void put_u16(struct secure *secure, uint16_t value)
{
    value = htobe16(value);
    put(secure, &value, sizeof(value));
}

static void put_u32(struct secure *secure, uint32_t value)
{
    value = htobe32(value);
    put(secure, &value, sizeof(value));
}

static void put_text(struct secure *secure, const char *text)
{
    put_u32(secure, (uint32_t)strlen(text));
    put(secure, text, strlen(text));
}

/* --- options --- */

static void option_begin(struct secure *secure, uint32_t option, uint32_t length)
{
    struct nbd_option_header header = {
        .magic = htobe64(NBD_OPTION_MAGIC), .option = htobe32(option), .length = htobe32(length)};

    put(secure, &header, sizeof(header));
    secure->n_replies = 0;
}

/* Begins a step: queues what the step sends. */
static void step_begin(struct secure *secure, enum step step)
{
    uint32_t name_bytes = (uint32_t)strlen(secure->export), length = 4 + name_bytes + 4, n_contexts = 0;

    secure->step = step;
    switch (step) {
    case STEP_STARTTLS:
        put_u32(secure, NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
        option_begin(secure, NBD_OPT_STARTTLS, 0);
        break;
    case STEP_STRUCTURED:
        option_begin(secure, NBD_OPT_STRUCTURED_REPLY, 0);
        break;
    case STEP_CONTEXTS:
        for (int i = 0; i < 2; i++) {
            n_contexts += secure->contexts[i] != NULL;
            length += secure->contexts[i] ? 4 + (uint32_t)strlen(secure->contexts[i]) : 0;
        }
        option_begin(secure, NBD_OPT_SET_META_CONTEXT, length);
        put_text(secure, secure->export);
        put_u32(secure, n_contexts);
        for (int i = 0; i < 2; i++)
            if (secure->contexts[i])
                put_text(secure, secure->contexts[i]);
        break;
    case STEP_GO:
        option_begin(secure, NBD_OPT_GO, 4 + name_bytes + 6);
        put_text(secure, secure->export);
        put_u16(secure, 2);
        put_u16(secure, NBD_INFO_DESCRIPTION);
        put_u16(secure, NBD_INFO_BLOCK_SIZE);
        break;
    case STEP_CONNECT:
    case STEP_GREETING:
    case STEP_TLS:
    case STEP_DONE:
        break;
    }
}

/* Returns 0 when the socket is connected. */
static int connect_step(struct secure *secure)
{
    struct pollfd poll_fd = {.fd = secure->fd, .events = POLLOUT};
    int error = 0;
    socklen_t length = sizeof(error);

    if (poll(&poll_fd, 1, 0) <= 0)
        return -EAGAIN;
    if (getsockopt(secure->fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
        error = errno;
    if (error)
        return fail(secure, -error, strerror(error));
    step_begin(secure, STEP_GREETING);
    return 0;
}

static int greeting_step(struct secure *secure)
{
    struct nbd_greeting greeting;

    if (secure->rx_end < sizeof(greeting))
        return receive(secure);
    memcpy(&greeting, secure->rx, sizeof(greeting));
    consume(secure, sizeof(greeting));
    uint16_t wanted = NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES;

    if (be64toh(greeting.magic) != NBD_MAGIC || be64toh(greeting.option_magic) != NBD_OPTION_MAGIC ||
        (be16toh(greeting.handshake_flags) & wanted) != wanted)
        return fail(secure, -EPROTO, "it is no NBD server that can speak TLS");
    step_begin(secure, STEP_STARTTLS);
    return 0;
}

static uint32_t option_of(enum step step)
{
    static const uint32_t options[] = {
        [STEP_STARTTLS] = NBD_OPT_STARTTLS,
        [STEP_STRUCTURED] = NBD_OPT_STRUCTURED_REPLY,
        [STEP_CONTEXTS] = NBD_OPT_SET_META_CONTEXT,
        [STEP_GO] = NBD_OPT_GO,
    };

    return options[step];
}

/*
 * Finds the next reply in rx, where it stays until reply_drop(). Returns 1 if the reply is complete, what receive()
 * returns if it is not, or -EPROTO.
 */
static int reply_look(struct secure *secure, struct reply *reply)
{
    struct nbd_option_reply head;

    if (secure->rx_end < sizeof(head))
        return receive(secure);
    memcpy(&head, secure->rx, sizeof(head));
    *reply = (struct reply){.type = be32toh(head.type), .length = be32toh(head.length)};
    if (be64toh(head.magic) != NBD_OPT_REPLY_MAGIC || be32toh(head.option) != option_of(secure->step) ||
        reply->length > BUFFER_BYTES - sizeof(head) || secure->n_replies == REPLIES_MAX)
        return fail(secure, -EPROTO, "it answered an option with something else");
    if (secure->rx_end < sizeof(head) + reply->length)
        return receive(secure);
    reply->data = secure->rx + sizeof(head);
    return 1;
}

static void reply_drop(struct secure *secure, const struct reply *reply)
{
    consume(secure, (uint32_t)sizeof(struct nbd_option_reply) + reply->length);
    secure->n_replies++;
}

/* Fails with the server's own message, in which '?' stands for unprintable bytes. Returns error. */
static int refused(struct secure *secure, const struct reply *reply, int error, const char *what)
{
    char words[96] = "";
    size_t length = reply->length < sizeof(words) - 1 ? reply->length : sizeof(words) - 1;

    for (size_t i = 0; i < length; i++)
        words[i] = isprint(reply->data[i]) ? (char)reply->data[i] : '?';
    snprintf(secure->why, sizeof(secure->why), "%s%s (NBD error %u)", what, length ? words : "it gives no reason",
             reply->type & ~NBD_REP_ERR(0));
    secure->failed = error;
    return error;
}

static int starttls_step(struct secure *secure)
{
    struct reply reply = {0};
    int rc = reply_look(secure, &reply);

    if (rc <= 0)
        return rc;
    if (reply.type != NBD_REP_ACK)
        return refused(secure, &reply, -ENOTSUP, NO_SUCH);
    reply_drop(secure, &reply);
    /* Bytes from before TLS would count as encrypted ones, and an attacker on the network may have sent them. */
    if (secure->rx_end > 0)
        return fail(secure, -EPROTO, "it sent bytes behind its answer to STARTTLS");
    secure->tls = tls_client_new(secure->fd, secure->identity, &secure->psk);
    psk_wipe(&secure->psk);
    if (!secure->tls)
        return fail(secure, -ENOMEM, "no memory for TLS");
    step_begin(secure, STEP_TLS);
    return 0;
}

static int tls_step(struct secure *secure)
{
    char text[WHY_BYTES];
    int rc = tls_handshake(secure->tls);

    if (rc == 0) {
        step_begin(secure, STEP_STRUCTURED);
        return 0;
    }
    if (rc == -EAGAIN)
        return rc;
    secure->key_failed = true;
    snprintf(text, sizeof(text), "TLS: %s", tls_why(secure->tls));
    return fail(secure, rc, text);
}

static int structured_step(struct secure *secure)
{
    struct reply reply = {0};
    int rc = reply_look(secure, &reply);

    if (rc <= 0)
        return rc;
    secure->facts.structured = reply.type == NBD_REP_ACK;
    reply_drop(secure, &reply);
    /* Contexts need structured replies. */
    step_begin(secure, secure->facts.structured ? STEP_CONTEXTS : STEP_GO);
    return 0;
}

/* Which contexts the server knows does not matter: that their names were sent is enough (negotiate.c). */
static int contexts_step(struct secure *secure)
{
    struct reply reply = {0};
    int rc = reply_look(secure, &reply);

    if (rc <= 0)
        return rc;
    reply_drop(secure, &reply);
    if (reply.type != NBD_REP_META_CONTEXT)
        step_begin(secure, STEP_GO);
    return 0;
}

static void info_take(struct secure *secure, const struct reply *reply)
{
    struct export_facts *facts = &secure->facts;
    struct nbd_info_export export;
    struct nbd_info_block_size block;
    uint16_t type = 0;

    if (reply->length >= sizeof(type))
        memcpy(&type, reply->data, sizeof(type));
    type = be16toh(type);
    if (type == NBD_INFO_EXPORT && reply->length == sizeof(export)) {
        memcpy(&export, reply->data, sizeof(export));
        uint64_t bytes = be64toh(export.size_bytes);
        uint16_t flags = be16toh(export.transmission_flags);

        facts->bytes = bytes <= INT64_MAX ? (int64_t)bytes : -1;
        facts->read_only = flags & NBD_FLAG_READ_ONLY;
        facts->sees_all = flags & NBD_FLAG_CAN_MULTI_CONN;
        facts->can_trim = flags & NBD_FLAG_SEND_TRIM;
    } else if (type == NBD_INFO_BLOCK_SIZE && reply->length == sizeof(block)) {
        memcpy(&block, reply->data, sizeof(block));
        facts->min_block = be32toh(block.minimum_bytes);
        facts->max_read = be32toh(block.maximum_bytes);
    } else if (type == NBD_INFO_DESCRIPTION && reply->length - sizeof(type) < sizeof(secure->description)) {
        memcpy(secure->description, reply->data + sizeof(type), reply->length - sizeof(type));
        secure->description[reply->length - sizeof(type)] = '\0';
    }
}

static int go_step(struct secure *secure)
{
    struct reply reply = {0};
    int rc = reply_look(secure, &reply);

    if (rc <= 0)
        return rc;
    if (reply.type == NBD_REP_INFO) {
        info_take(secure, &reply);
    } else if (reply.type != NBD_REP_ACK) {
        return refused(secure, &reply, -ENOENT, "it does not open the export with this key: ");
    }
    reply_drop(secure, &reply);
    if (reply.type == NBD_REP_INFO)
        return 0;
    if (secure->rx_end > 0 || secure->facts.bytes < 0)
        return fail(secure, -EPROTO, "it did not give the export's size, or sent more than was asked for");
    step_begin(secure, STEP_DONE);
    return 0;
}

int secure_step(struct secure *secure)
{
    static int (*const steps[])(struct secure *) = {
        [STEP_CONNECT] = connect_step, [STEP_GREETING] = greeting_step,     [STEP_STARTTLS] = starttls_step,
        [STEP_TLS] = tls_step,         [STEP_STRUCTURED] = structured_step, [STEP_CONTEXTS] = contexts_step,
        [STEP_GO] = go_step,
    };
    int rc = secure->failed;

    while (rc == 0 && secure->step != STEP_DONE) {
        rc = transmit(secure);
        rc = rc < 0 ? rc : steps[secure->step](secure);
    }
    return rc;
}
