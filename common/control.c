/* SPDX-License-Identifier: MIT */
/*
 * The control thread polls the listening socket, an eventfd by which other threads wake it, and its clients. A client
 * has either input that is being collected or output that is being sent: while an answer to a client is unsent, none
 * of its commands is read, so a client's memory is bounded by one line and one answer.
 */
#include "control.h"

#include "log.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* A client that reads no byte of its answer for so long is dropped. */
#define STALL_LIMIT_MS  10000
#define ACCEPT_PAUSE_MS 100
#define READ_CHUNK      4096

struct client {
    int fd; /* -1: the entry is free */
    char *in;
    size_t in_bytes, in_capacity;
    char *out; /* the answer, made by jansson; NULL: there is nothing to send */
    size_t out_bytes, out_sent;
    int64_t stalled_since_ms;
    nfds_t poll_index;
};

struct control {
    int listen_fd;
    int wake_fd; /* eventfd that is written to when `stopping` or `restoring` was set */
    ino_t inode; /* of the socket file that this process made */
    atomic_bool stopping, restoring;
    bool accept_paused;
    pthread_t thread;
    struct sockaddr_un address;
    const struct control_command *commands;
    void *ctx;
    struct client clients[CONTROL_MAX_CLIENTS];
};

/* Drops the last character of a message if the message was cut inside it, which JSON does not allow. */
static void utf8_tail_trim(char *text)
{
    size_t length = strlen(text);
    size_t start = length;
    while (start > 0 && ((unsigned char)text[start - 1] & 0xc0) == 0x80) {
        start--;
    }
    if (start == 0 || (text[start - 1] & 0x80) == 0) {
        return;
    }
    unsigned char lead = (unsigned char)text[start - 1];
    size_t expected = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (length - (start - 1) < expected) {
        text[start - 1] = '\0';
    }
}

json_t *control_fail(struct control_error *err, const char *code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int length = vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    if (length >= (int)sizeof(err->message)) {
        utf8_tail_trim(err->message);
    }
    err->code = code;
    return NULL;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void client_drop(struct client *client)
{
    close(client->fd);
    free(client->in);
    free(client->out);
    *client = (struct client){.fd = -1};
}

/* Sends as much of the answer as the socket takes. Returns false if the client was dropped. */
static bool client_send(struct client *client)
{
    while (client->out_sent < client->out_bytes) {
        ssize_t n = send(client->fd, client->out + client->out_sent, client->out_bytes - client->out_sent,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            return true;
        }
        if (n <= 0) {
            client_drop(client);
            return false;
        }
        client->out_sent += (size_t)n;
        client->stalled_since_ms = now_ms();
    }
    free(client->out);
    client->out = NULL;
    return true;
}

static const struct control_command *command_find(const struct control *control, const char *name)
{
    for (const struct control_command *command = control->commands; command->name != NULL; command++) {
        if (strcmp(command->name, name) == 0) {
            return command;
        }
    }
    return NULL;
}

static json_t *request_run(const struct control *control, const json_t *request, struct control_error *err)
{
    if (!json_is_object(request)) {
        return control_fail(err, "invalid", "a request is one JSON object on one line");
    }
    const char *name = json_string_value(json_object_get(request, "cmd"));
    if (name == NULL) {
        return control_fail(err, "invalid", "the request has no \"cmd\" (a string)");
    }
    const struct control_command *command = command_find(control, name);
    if (command == NULL) {
        return control_fail(err, "unknown-command", "no command named '%s'", name);
    }
    return command->handler(control->ctx, request, err);
}

/* Returns the answer to one line, with its newline, or NULL if there is no memory. */
static char *line_answer(const struct control *control, const char *line, size_t line_bytes, size_t *answer_bytes)
{
    struct control_error err = {.code = "failed", .message = "failed"};
    json_t *request = json_loadb(line, line_bytes, JSON_REJECT_DUPLICATES, NULL);
    json_t *result = request_run(control, request, &err);
    json_t *id = request != NULL ? json_object_get(request, "id") : NULL;
    json_t *answer =
        result != NULL ? json_pack("{s:b, s:o}", "ok", 1, "result", result)
                       : json_pack("{s:b, s:{s:s, s:s}}", "ok", 0, "error", "code", err.code, "message", err.message);
    json_object_set(answer, "id", id != NULL ? id : json_null());
    char *text = json_dumps(answer, JSON_COMPACT | JSON_REAL_PRECISION(12));
    json_decref(answer);
    json_decref(request);
    if (text == NULL) {
        return NULL;
    }
    /* The newline replaces the terminating zero: from here on the length says where the answer ends. */
    *answer_bytes = strlen(text) + 1;
    text[*answer_bytes - 1] = '\n';
    return text;
}

/* Answers whole lines until none is left, or the socket does not take an answer as a whole. */
static void client_serve(const struct control *control, struct client *client)
{
    while (client->out == NULL) {
        char *newline = client->in_bytes > 0 ? memchr(client->in, '\n', client->in_bytes) : NULL;
        if (newline == NULL) {
            if (client->in_bytes >= CONTROL_MAX_LINE) {
                log_warning("control client sent a line over %u bytes: dropped", CONTROL_MAX_LINE);
                client_drop(client);
            }
            return;
        }
        size_t line_bytes = (size_t)(newline - client->in);
        client->out = line_answer(control, client->in, line_bytes, &client->out_bytes);
        client->out_sent = 0;
        client->stalled_since_ms = now_ms();
        client->in_bytes -= line_bytes + 1;
        memmove(client->in, newline + 1, client->in_bytes);
        explicit_bzero(client->in + client->in_bytes, line_bytes + 1); /* the line may have held a key */
        if (client->out == NULL) {
            client_drop(client);
            return;
        }
        if (!client_send(client)) {
            return;
        }
    }
}

static bool client_reserve(struct client *client)
{
    if (client->in_capacity - client->in_bytes >= READ_CHUNK) {
        return true;
    }
    size_t capacity = client->in_capacity * 2 + READ_CHUNK;
    char *grown = realloc(client->in, capacity);
    if (grown == NULL) {
        return false;
    }
    client->in = grown;
    client->in_capacity = capacity;
    return true;
}

static void client_receive(const struct control *control, struct client *client)
{
    if (!client_reserve(client)) {
        client_drop(client);
        return;
    }
    ssize_t n = recv(client->fd, client->in + client->in_bytes, READ_CHUNK, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (n <= 0) {
        client_drop(client);
        return;
    }
    client->in_bytes += (size_t)n;
    client_serve(control, client);
}

/*
 * Whether the client may use the socket: its user must be the program's own or root. The file's mode keeps other
 * users out, too, but somebody may have changed it.
 */
static bool peer_allowed(int fd)
{
    struct ucred peer;
    socklen_t length = sizeof(peer);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0) {
        log_warning("control client refused: its user is unknown: %s", strerror(errno));
        return false;
    }
    if (peer.uid == 0 || peer.uid == geteuid()) {
        return true;
    }
    char text[256];
    int n = snprintf(text, sizeof(text),
                     "{\"ok\":false,\"error\":{\"code\":\"denied\",\"message\":\"user id %u may not use this control "
                     "socket: it is for user id %u and root\"},\"id\":null}\n",
                     peer.uid, geteuid());
    /* The program does not wait for a client that does not read. */
    ssize_t sent = send(fd, text, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
    log_warning("control client refused: user id %u, process %d%s", peer.uid, peer.pid,
                sent == n ? "" : " (it did not take the answer)");
    return false;
}

static void client_accept(struct control *control)
{
    int fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        /* Mostly no descriptor is left. The socket stays readable, so without a pause this would be a busy loop. */
        control->accept_paused = true;
        return;
    }
    if (!peer_allowed(fd)) {
        close(fd);
        return;
    }
    for (int i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        if (control->clients[i].fd < 0) {
            control->clients[i] = (struct client){.fd = fd};
            return;
        }
    }
    log_warning("control client refused: %d are connected", CONTROL_MAX_CLIENTS);
    close(fd);
}

static void client_handle(struct control *control, struct client *client, short revents)
{
    if (client->out == NULL) {
        if (revents != 0) {
            client_receive(control, client);
        }
        return;
    }
    if (revents != 0 && !client_send(client)) {
        return;
    }
    if (client->out == NULL) {
        client_serve(control, client);
    } else if (now_ms() - client->stalled_since_ms > STALL_LIMIT_MS) {
        log_warning("control client does not read its answers: dropped");
        client_drop(client);
    }
}

/*
 * Fills in the descriptors to wait for: wake_fd, the listening socket, and the clients that are connected. (poll()
 * refuses more entries than the limit of open files, which may be lowered while the process runs.) Returns how many.
 */
static nfds_t waits_collect(struct control *control, struct pollfd *fds, int *timeout_ms)
{
    nfds_t n = 0;
    *timeout_ms = control->accept_paused ? ACCEPT_PAUSE_MS : -1;
    fds[n++] = (struct pollfd){.fd = control->wake_fd, .events = POLLIN};
    /* poll() ignores a negative descriptor. */
    fds[n++] = (struct pollfd){.fd = control->accept_paused ? -1 : control->listen_fd, .events = POLLIN};
    control->accept_paused = false;
    for (int i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        struct client *client = &control->clients[i];
        if (client->fd < 0) {
            continue;
        }
        bool sending = client->out != NULL;
        client->poll_index = n;
        fds[n++] = (struct pollfd){.fd = client->fd, .events = sending ? POLLOUT : POLLIN};
        if (sending && *timeout_ms < 0) {
            *timeout_ms = STALL_LIMIT_MS / 10;
        }
    }
    return n;
}

/*
 * Handles what poll() has found. The clients come before the listening socket, because a client that is accepted now
 * has no entry in fds.
 */
static void events_handle(struct control *control, const struct pollfd *fds)
{
    for (int i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        if (control->clients[i].fd >= 0) {
            client_handle(control, &control->clients[i], fds[control->clients[i].poll_index].revents);
        }
    }
    if (fds[1].revents != 0) {
        client_accept(control);
    }
}

static int control_listen(struct control *control, const char *socket_path);

/*
 * Makes the socket anew if that was asked for and its file is not the one that this process made. The old socket is
 * kept until there is a new one.
 */
static void listen_anew(struct control *control)
{
    eventfd_t n;
    struct stat st;
    const char *path = control->address.sun_path;
    int before = control->listen_fd;

    eventfd_read(control->wake_fd, &n);
    if (!atomic_exchange(&control->restoring, false) || (lstat(path, &st) == 0 && st.st_ino == control->inode)) {
        return;
    }
    char copy[sizeof(control->address.sun_path)];
    memcpy(copy, path, sizeof(copy));
    int rc = control_listen(control, copy);
    if (rc < 0) {
        control->listen_fd = before;
        log_error("cannot make the control socket %s anew: %s", copy, strerror(-rc));
        return;
    }
    close(before);
    log_warning("the control socket %s had been removed: it was made anew", copy);
}

static void *control_thread(void *arg)
{
    struct control *control = arg;
    struct pollfd fds[CONTROL_MAX_CLIENTS + 2];
    for (;;) {
        int timeout_ms;
        nfds_t n = waits_collect(control, fds, &timeout_ms);
        if (poll(fds, n, timeout_ms) < 0) {
            continue;
        }
        if (atomic_load(&control->stopping)) {
            return NULL;
        }
        events_handle(control, fds);
        if (fds[0].revents != 0) {
            listen_anew(control);
        }
    }
}

/*
 * Removes a socket file on which no process listens. Returns 0 (also if there is no file), -EADDRINUSE if a process
 * listens on it, -EEXIST if the path is not a socket, or another -errno.
 */
static int stale_remove(const struct sockaddr_un *address)
{
    struct stat st;
    if (lstat(address->sun_path, &st) < 0) {
        return errno == ENOENT ? 0 : -errno;
    }
    if (!S_ISSOCK(st.st_mode)) {
        return -EEXIST;
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -errno;
    }
    int rc = connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ? 0 : -errno;
    close(fd);
    if (rc != -ECONNREFUSED) {
        return rc == 0 ? -EADDRINUSE : rc;
    }
    return unlink(address->sun_path) == 0 || errno == ENOENT ? 0 : -errno;
}

/* Makes the socket and its file. Returns 0 or -errno. */
static int control_listen(struct control *control, const char *socket_path)
{
    control->address.sun_family = AF_UNIX;
    if (strlen(socket_path) >= sizeof(control->address.sun_path)) {
        return -ENAMETOOLONG;
    }
    strcpy(control->address.sun_path, socket_path);
    int rc = stale_remove(&control->address);
    if (rc < 0) {
        return rc;
    }
    control->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (control->listen_fd < 0) {
        return -errno;
    }
    /* bind() makes the file with the mode of the socket (unix_bind()), so the file never has another mode. */
    if (fchmod(control->listen_fd, 0600) < 0 ||
        bind(control->listen_fd, (const struct sockaddr *)&control->address, sizeof(control->address)) < 0) {
        rc = -errno;
        close(control->listen_fd);
        return rc;
    }
    if (listen(control->listen_fd, CONTROL_MAX_CLIENTS) < 0) {
        rc = -errno;
        unlink(socket_path);
        close(control->listen_fd);
        return rc;
    }
    struct stat st;
    control->inode = lstat(socket_path, &st) == 0 ? st.st_ino : 0;
    return 0;
}

/* Starts the thread with all signals blocked, because the main thread takes them. */
static int thread_start(struct control *control)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&control->thread, NULL, control_thread, control);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return -rc;
}

int control_start(struct control **out, const char *socket_path, const struct control_command *commands, void *ctx)
{
    struct control *control = calloc(1, sizeof(*control));
    if (control == NULL) {
        return -ENOMEM;
    }
    control->commands = commands;
    control->ctx = ctx;
    for (int i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        control->clients[i].fd = -1;
    }
    int rc = control_listen(control, socket_path);
    if (rc < 0) {
        goto free_control;
    }
    control->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (control->wake_fd < 0) {
        rc = -errno;
        goto close_socket;
    }
    rc = thread_start(control);
    if (rc < 0) {
        goto close_eventfd;
    }
    *out = control;
    return 0;

close_eventfd:
    close(control->wake_fd);
close_socket:
    unlink(control->address.sun_path);
    close(control->listen_fd);
free_control:
    free(control);
    return rc;
}

void control_restore(struct control *control)
{
    if (control == NULL) {
        return;
    }
    atomic_store(&control->restoring, true);
    if (eventfd_write(control->wake_fd, 1) < 0) {
        log_error("control: cannot wake the thread: %s", strerror(errno));
    }
}

void control_stop(struct control *control)
{
    if (control == NULL) {
        return;
    }
    atomic_store(&control->stopping, true);
    if (eventfd_write(control->wake_fd, 1) < 0) {
        log_error("control: cannot stop: %s", strerror(errno));
        return;
    }
    pthread_join(control->thread, NULL);
    for (int i = 0; i < CONTROL_MAX_CLIENTS; i++) {
        if (control->clients[i].fd >= 0) {
            client_drop(&control->clients[i]);
        }
    }
    unlink(control->address.sun_path);
    close(control->listen_fd);
    close(control->wake_fd);
    free(control);
}
