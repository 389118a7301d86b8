/* SPDX-License-Identifier: MIT */
/*
 * Hostile clients of a control socket, in this process and thread. The functions of the control thread serve them.
 *
 * Input: operations on one of four clients, see `enum operation`. Checked, in addition to what sanitizers check: each
 * line is answered by one line of valid JSON, in order, with its id; only a client that sends a line that is too long
 * is dropped; the memory that the server keeps for a client is bounded; clients do not disturb each other.
 */
#include "tests/fuzz/drive.h"

/* The limit of a line is lower than in the programs, so that inputs over the limit are played fast. */
#include "common/control.h"
#undef CONTROL_MAX_LINE
#define CONTROL_MAX_LINE (32u << 10)
/* Time stands still, so that no client counts as stalled because the fuzzer was stopped. */
#include <time.h>
#define clock_gettime(clock, now) ((void)(*(now) = (struct timespec){.tv_sec = 1}))
/* The .c file is included because the functions of the control thread are static. */
#include "common/control.c" /* NOLINT(bugprone-suspicious-include) */

#include <assert.h>
#include <sys/ioctl.h>

#define N_CLIENTS    4
#define TEXT_MAX     (128u << 10) /* bytes that all clients of an input may send */
#define BIG_BYTES    (20u << 10)
#define SMALL_BUFFER 4096 /* a socket's buffer, in which a big answer does not fit */
#define TURNS_MAX    100000u
#define QUIET_TURNS  3u

enum operation {
    OP_SEND,   /* the client sends bytes of the input */
    OP_LINE,   /* the client sends bytes of the input and a newline */
    OP_REPEAT, /* the client sends one byte many times */
    OP_TURN,   /* the server runs a turn */
    OP_READ,   /* the client reads some of its answers */
    OP_HALF,   /* the client shuts its sending side down */
    OP_CLOSE,  /* the client closes its socket, and another client takes its place */
    OPS
};

struct text {
    char *bytes;
    size_t length;
};

struct peer {
    int fd; /* -1: not connected */
    bool half_closed;
    struct text sent, got;
};

struct drive {
    const uint8_t *input;
    size_t left;
    size_t text_bytes;
    struct control *control;
    struct peer peers[N_CLIENTS];
};

static json_t *echo(void *ctx, const json_t *args, struct control_error *err)
{
    (void)ctx, (void)err;
    json_t *value = json_object_get(args, "value");
    return value != NULL ? json_incref(value) : json_null();
}

static json_t *fail(void *ctx, const json_t *args, struct control_error *err)
{
    (void)ctx;
    const char *text = json_string_value(json_object_get(args, "value"));
    return control_fail(err, "not-found", "no export named '%s'", text != NULL ? text : "");
}

static json_t *big(void *ctx, const json_t *args, struct control_error *err)
{
    (void)ctx, (void)args, (void)err;
    char *text = malloc(BIG_BYTES);
    assert(text != NULL);
    memset(text, 'b', BIG_BYTES);
    json_t *result = json_stringn(text, BIG_BYTES);
    free(text);
    return result;
}

static const struct control_command commands[] = {{"echo", echo}, {"fail", fail}, {"big", big}, {NULL, NULL}};

static uint8_t take(struct drive *drive)
{
    if (drive->left == 0) {
        return 0;
    }
    drive->left--;
    return *drive->input++;
}

static void append(struct text *text, const char *bytes, size_t length)
{
    text->bytes = realloc(text->bytes, text->length + length + 1);
    assert(text->bytes != NULL);
    memcpy(text->bytes + text->length, bytes, length);
    text->length += length;
}

/* Runs one turn of the server. */
static void turn(struct drive *drive)
{
    struct pollfd fds[CONTROL_MAX_CLIENTS + 2];
    int timeout_ms;
    nfds_t n = waits_collect(drive->control, fds, &timeout_ms);
    assert(n <= sizeof(fds) / sizeof(fds[0]));
    if (poll(fds, n, 0) > 0) {
        events_handle(drive->control, fds);
    }
    for (int i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        const struct client *client = &drive->control->clients[i];
        assert(client->in_bytes <= client->in_capacity);
        assert(client->in_capacity <= 2 * CONTROL_MAX_LINE + 4 * READ_CHUNK);
    }
}

static void peer_read(struct peer *peer, size_t limit)
{
    char bytes[8192];
    ssize_t got;
    while (limit > 0 &&
           (got = recv(peer->fd, bytes, limit < sizeof(bytes) ? limit : sizeof(bytes), MSG_DONTWAIT)) > 0) {
        append(&peer->got, bytes, (size_t)got);
        limit -= (size_t)got;
    }
}

static void peer_connect(struct drive *drive, struct peer *peer)
{
    struct sockaddr_un address;
    socklen_t length = sizeof(address);
    int rc = getsockname(drive->control->listen_fd, (struct sockaddr *)&address, &length);
    assert(rc == 0);
    *peer = (struct peer){.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    assert(peer->fd >= 0);
    rc = connect(peer->fd, (struct sockaddr *)&address, length);
    assert(rc == 0);
    turn(drive);
    for (int i = 0, bytes = SMALL_BUFFER; i < CONTROL_MAX_CLIENTS; i++) {
        setsockopt(drive->control->clients[i].fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    }
    append(&peer->sent, "", 0);
    append(&peer->got, "", 0);
}

static void peer_send(struct drive *drive, struct peer *peer, const char *bytes, size_t length)
{
    if (peer->half_closed || drive->text_bytes + length > TEXT_MAX) {
        return;
    }
    drive->text_bytes += length;
    for (unsigned n_turns = 0; length > 0; n_turns++) {
        assert(n_turns < TURNS_MAX);
        ssize_t sent = send(peer->fd, bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            return; /* the client was dropped: peer_close() checks whether rightly */
        }
        if (sent > 0) {
            append(&peer->sent, bytes, (size_t)sent);
            bytes += sent;
            length -= (size_t)sent;
            continue;
        }
        turn(drive);
        peer_read(peer, SIZE_MAX); /* the server reads nothing from a client that does not read */
    }
}

/*
 * Whether a line of the text may be longer than a client may send. The server reads in portions, so it may accept it.
 */
static bool too_long(const struct text *text)
{
    size_t start = 0;
    for (size_t i = 0; i < text->length; i++) {
        if (text->bytes[i] == '\n') {
            start = i + 1;
        } else if (i - start >= CONTROL_MAX_LINE - 1) {
            return true;
        }
    }
    return false;
}

static void answer_check(const char *line, size_t line_bytes, const char *answer, size_t answer_bytes)
{
    json_t *request = json_loadb(line, line_bytes, JSON_REJECT_DUPLICATES, NULL);
    json_t *got = json_loadb(answer, answer_bytes, JSON_REJECT_DUPLICATES, NULL);
    assert(json_is_object(got));
    const json_t *ok = json_object_get(got, "ok"), *error = json_object_get(got, "error");
    assert(json_is_true(ok) ? json_object_get(got, "result") != NULL : json_is_false(ok));
    assert(json_is_true(ok) || json_is_string(json_object_get(error, "message")));
    json_t *id = json_object_get(request, "id"), *same = json_object_get(got, "id");
    assert(same != NULL);
    if (json_is_integer(id) || json_is_string(id)) {
        assert(json_equal(id, same));
    }
    json_decref(request);
    json_decref(got);
}

/* Checks the answers that have come; `all` says that each line must have one. */
static void answers_check(const struct peer *peer, bool all)
{
    const char *line = peer->sent.bytes, *sent_end = line + peer->sent.length;
    const char *answer = peer->got.bytes, *got_end = answer + peer->got.length;
    while (line < sent_end) {
        const char *line_end = memchr(line, '\n', (size_t)(sent_end - line));
        const char *answer_end = answer < got_end ? memchr(answer, '\n', (size_t)(got_end - answer)) : NULL;
        if (line_end == NULL || answer_end == NULL) {
            assert(line_end == NULL || !all);
            break;
        }
        answer_check(line, (size_t)(line_end - line), answer, (size_t)(answer_end - answer));
        line = line_end + 1;
        answer = answer_end + 1;
    }
    assert(!all || answer == got_end);
}

static void peer_close(struct drive *drive, struct peer *peer, bool all)
{
    answers_check(peer, all && !too_long(&peer->sent));
    close(peer->fd);
    free(peer->sent.bytes);
    free(peer->got.bytes);
    *peer = (struct peer){.fd = -1};
    turn(drive);
}

/* Runs turns until each client has all its answers. */
static void settle(struct drive *drive)
{
    unsigned n_quiet = 0;
    for (unsigned n_turns = 0; n_quiet < QUIET_TURNS; n_turns++) {
        assert(n_turns < TURNS_MAX);
        size_t before = 0, after = 0;
        for (int i = 0; i < N_CLIENTS; i++) {
            before += drive->peers[i].got.length;
        }
        int unread_bytes = 0;
        for (int i = 0; i < CONTROL_MAX_CLIENTS; i++) {
            const struct client *client = &drive->control->clients[i];
            int bytes = 0;
            if (client->fd >= 0 && ioctl(client->fd, FIONREAD, &bytes) == 0) {
                unread_bytes += bytes;
            }
        }
        turn(drive);
        for (int i = 0; i < N_CLIENTS; i++) {
            peer_read(&drive->peers[i], SIZE_MAX);
            after += drive->peers[i].got.length;
        }
        n_quiet = before == after && unread_bytes == 0 ? n_quiet + 1 : 0;
    }
}

static void send_from_input(struct drive *drive, struct peer *peer, bool newline)
{
    size_t length = take(drive);
    length = length < drive->left ? length : drive->left;
    peer_send(drive, peer, (const char *)drive->input, length);
    drive->input += length;
    drive->left -= length;
    if (newline) {
        peer_send(drive, peer, "\n", 1);
    }
}

static void repeat(struct drive *drive, struct peer *peer)
{
    char bytes[32 * 256];
    uint8_t byte = take(drive), n = take(drive), times = take(drive);
    /* Each empty line has an answer, so there are fewer of them. */
    size_t length = byte == '\n' ? n % 16 + 1u : (n + 1u) * 32;
    memset(bytes, byte, sizeof(bytes));
    for (unsigned i = 0; i <= times; i++) {
        peer_send(drive, peer, bytes, length);
    }
}

static void step(struct drive *drive)
{
    uint8_t what = take(drive);
    struct peer *peer = &drive->peers[what / OPS % N_CLIENTS];
    enum operation op = (enum operation)(what % OPS);
    if (op == OP_SEND || op == OP_LINE) {
        send_from_input(drive, peer, op == OP_LINE);
    } else if (op == OP_REPEAT) {
        repeat(drive, peer);
    } else if (op == OP_TURN) {
        turn(drive);
    } else if (op == OP_READ) {
        peer_read(peer, (take(drive) + 1u) * 512);
    } else if (op == OP_HALF) {
        shutdown(peer->fd, SHUT_WR);
        peer->half_closed = true;
    } else {
        peer_close(drive, peer, false);
        peer_connect(drive, peer);
    }
}

void drive_input(const uint8_t *data, size_t size)
{
    log_open("fuzz", NULL, LOG_ERROR);
    struct control *control = calloc(1, sizeof(*control));
    assert(control != NULL);
    struct sockaddr address = {.sa_family = AF_UNIX};
    control->commands = commands;
    control->wake_fd = -1;
    control->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* The kernel chooses a name that is in no file system (unix(7), autobind). */
    int rc = bind(control->listen_fd, &address, sizeof(address.sa_family));
    assert(rc == 0);
    rc = listen(control->listen_fd, N_CLIENTS);
    assert(rc == 0);
    for (int i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        control->clients[i].fd = -1;
    }
    struct drive drive = {.input = data, .left = size, .control = control};
    for (int i = 0; i < N_CLIENTS; i++) {
        peer_connect(&drive, &drive.peers[i]);
    }
    while (drive.left > 0) {
        step(&drive);
    }
    settle(&drive);
    for (int i = 0; i < N_CLIENTS; i++) {
        peer_close(&drive, &drive.peers[i], true);
    }
    turn(&drive);
    for (int i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        assert(control->clients[i].fd < 0);
    }
    close(control->listen_fd);
    free(control);
}
