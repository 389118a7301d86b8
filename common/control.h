/* SPDX-License-Identifier: MIT */
/*
 * Control socket of a C program: a Unix stream socket, one JSON object a line each way.
 *
 *   → {"id": 1, "cmd": "status"}
 *   ← {"id": 1, "ok": true, "result": {…}}
 *   ← {"id": 1, "ok": false, "error": {"code": "not-found", "message": "no export named 'x'"}}
 *
 * One thread serves all clients (at most CONTROL_MAX_CLIENTS; a line at most CONTROL_MAX_LINE bytes; a client that
 * does not read its answers is dropped). Commands run on that thread, one after the other; never on the page path.
 * The socket file is made with mode 0600, a stale one (nobody listens) is replaced, a live one is an error. One that
 * somebody has removed is made anew by control_restore().
 */
#ifndef GHOSTBOX_CONTROL_H
#define GHOSTBOX_CONTROL_H

#include <jansson.h>

#define CONTROL_MAX_CLIENTS 32
#define CONTROL_MAX_LINE    (1u << 20)

/* What went wrong with one command. Filled by a handler that returns NULL. */
struct control_error {
    const char *code; /* a short stable word, static storage */
    char message[256];
};

/* Sets code and message, returns NULL, so that a handler can `return control_fail(err, "exists", "…", …)`. */
json_t *control_fail(struct control_error *err, const char *code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* args is the whole request object (borrowed). Returns the result (a new reference, may be json_null()) or NULL. */
typedef json_t *(*control_handler)(void *ctx, const json_t *args, struct control_error *err);

struct control_command {
    const char *name;
    control_handler handler;
};

struct control;

/* commands: terminated by {NULL, NULL}, must outlive the server. Starts the thread. Returns 0 or -errno. */
int control_start(struct control **out, const char *socket_path, const struct control_command *commands, void *ctx);
/* Makes the socket file anew if it was removed; returns at once, who is connected stays so. NULL is allowed. */
void control_restore(struct control *control);
/* Stops the thread, removes the socket file. NULL is allowed. */
void control_stop(struct control *control);

#endif
