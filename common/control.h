/* SPDX-License-Identifier: MIT */
/*
 * The control socket of a C program: a Unix stream socket with one JSON object a line in each direction.
 *
 *   → {"id": 1, "cmd": "status"}
 *   ← {"id": 1, "ok": true, "result": {…}}
 *   ← {"id": 1, "ok": false, "error": {"code": "not-found", "message": "no export named 'x'"}}
 *
 * One thread serves all clients. There are at most CONTROL_MAX_CLIENTS, a line has at most CONTROL_MAX_LINE bytes,
 * and a client that does not read its answers is dropped. Commands run on that thread, one after the other, and never
 * on the page path. Clients must be processes of the program's own user or of root (SO_PEERCRED); others get an
 * answer that refuses them. The socket file is made with mode 0600. A socket file on which no process listens is
 * replaced; if a process listens on it, that is an error. control_restore() makes a socket file anew that was
 * removed.
 */
#ifndef GHOSTBOX_CONTROL_H
#define GHOSTBOX_CONTROL_H

#include <jansson.h>

#define CONTROL_MAX_CLIENTS 32
#define CONTROL_MAX_LINE    (1u << 20)

/* What went wrong with one command. A handler that returns NULL fills it. */
struct control_error {
    const char *code; /* a short word that programs may rely on; not freed */
    char message[256];
};

/* Sets code and message and returns NULL, so that a handler can `return control_fail(err, "exists", "…", …)`. */
json_t *control_fail(struct control_error *err, const char *code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * Runs a command. args is the whole request object, borrowed. Returns the result, a new reference, which may be
 * json_null(); or NULL after control_fail(). On the control thread.
 */
typedef json_t *(*control_handler)(void *ctx, const json_t *args, struct control_error *err);

struct control_command {
    const char *name;
    control_handler handler;
};

struct control;

/*
 * Makes the socket and starts the thread. `commands` ends with {NULL, NULL} and must stay valid until control_stop();
 * `ctx` is passed to the handlers. Returns 0 or -errno.
 */
int control_start(struct control **out, const char *socket_path, const struct control_command *commands, void *ctx);
/*
 * Asks the thread to make the socket file anew if it was removed. Returns at once; clients stay connected. NULL is
 * allowed.
 */
void control_restore(struct control *control);
/* Stops the thread, closes all connections and removes the socket file. NULL is allowed. */
void control_stop(struct control *control);

#endif
