/* SPDX-License-Identifier: MIT */
#include "memserver/commands.h"

#include "common/size.h"
#include "memserver/client_commands.h"
#include "memserver/server.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static json_t *export_to_json(const struct export *export)
{
    int64_t idle_ms = clock_coarse_ms() - atomic_load(&export->active_at_ms);
    return json_pack("{s:s, s:I, s:I, s:s, s:i, s:f, s:b, s:s?}", "name", export->name, "size_bytes",
                     (json_int_t) export->store.size_bytes, "resident_bytes",
                     (json_int_t)store_resident_bytes(&export->store), "incarnation", export->incarnation,
                     "connections", (int)export->n_clients, "idle_s", (double)idle_ms / 1000.0, "tls",
                     export->psk.n_bytes > 0, "client", export->client != NULL ? export->client->id : NULL);
}

struct listing {
    json_t *array;
    uint64_t resident_bytes;
};

static void listing_add(void *ctx, const struct export *export)
{
    struct listing *listing = ctx;
    listing->resident_bytes += store_resident_bytes(&export->store);
    json_array_append_new(listing->array, export_to_json(export));
}

static void export_read(void *ctx, const struct export *export)
{
    json_t **result = ctx;
    *result = export_to_json(export);
}

/* Sums up the counters of the workers. */
static json_t *counters_to_json(const struct server *server)
{
    struct {
        const char *name;
        size_t offset;
    } fields[] = {
        {"reads", offsetof(struct counters, reads)},
        {"writes", offsetof(struct counters, writes)},
        {"trims", offsetof(struct counters, trims)},
        {"zeroes", offsetof(struct counters, zeroes)},
        {"flushes", offsetof(struct counters, flushes)},
        {"block_status", offsetof(struct counters, block_status)},
        {"read_bytes", offsetof(struct counters, read_bytes)},
        {"written_bytes", offsetof(struct counters, written_bytes)},
        {"errors", offsetof(struct counters, errors)},
    };
    json_t *counters = json_object();
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        uint64_t sum = 0;
        for (unsigned w = 0; w < server->options->n_threads; w++) {
            const char *base = (const char *)&server->workers[w].counters;
            sum += atomic_load((const _Atomic uint64_t *)(const void *)(base + fields[i].offset));
        }
        json_object_set_new(counters, fields[i].name, json_integer((json_int_t)sum));
    }
    return counters;
}

/*
 * How the workers wait (waiting.h): how many are eager now, for how many seconds all of them together have been
 * eager, and how many connections have set NBD_DEMAND_CONTEXT.
 */
static json_t *waiting_to_json(const struct server *server)
{
    int n_eager = 0, n_demand = 0;
    uint64_t eager_ns = 0;
    for (unsigned w = 0; w < server->options->n_threads; w++) {
        const struct waiting *waiting = &server->workers[w].waiting;
        n_eager += atomic_load(&waiting->eager) ? 1 : 0;
        eager_ns += atomic_load(&waiting->eager_ns);
        n_demand += (int)atomic_load(&server->workers[w].n_demand);
    }
    return json_pack("{s:i, s:f, s:i}", "eager_workers", n_eager, "eager_s", (double)eager_ns / 1e9,
                     "demand_connections", n_demand);
}

/*
 * What gathering does (gathering.h): on how many connections the workers wait for several requests now, and how many
 * such waits ended in time, or late.
 */
static json_t *gathering_to_json(const struct server *server)
{
    uint64_t n_gathered = 0;
    uint64_t n_late = 0;
    unsigned n_connections = 0;
    for (unsigned w = 0; w < server->options->n_threads; w++) {
        const struct worker *worker = &server->workers[w];
        n_gathered += atomic_load(&worker->n_gathered);
        n_late += atomic_load(&worker->n_late);
        n_connections += atomic_load(&worker->n_gathers);
    }
    return json_pack("{s:i, s:I, s:I}", "connections", (int)n_connections, "in_time", (json_int_t)n_gathered, "late",
                     (json_int_t)n_late);
}

/* How many connections have opened no export yet, and how many were closed to make room for others. */
static json_t *handshakes_to_json(const struct handshakes *handshakes)
{
    return json_pack("{s:i, s:I}", "open", (int)atomic_load(&handshakes->n), "closed_for_room",
                     (json_int_t)atomic_load(&handshakes->n_closed));
}

static json_t *address_to_json(const struct listening *at)
{
    return json_pack("{s:s, s:i}", "host", at->host, "port", (int)at->port);
}

static json_t *status_command(void *ctx, const json_t *args, struct control_error *err)
{
    (void)args;
    (void)err;
    struct server *server = ctx;
    struct listing listing = {.array = json_array()};
    exports_visit(&server->exports, NULL, listing_add, &listing);
    double uptime_s = (double)(clock_coarse_ms() - server->started_at_ms) / 1000.0;
    struct listening at[LISTENERS_MAX];
    unsigned n = listeners_list(&server->listeners, at);
    json_t *also = json_array();
    for (unsigned i = 1; i < n; i++) {
        json_array_append_new(also, address_to_json(&at[i]));
    }
    return json_pack("{s:s, s:i, s:s, s:i, s:o, s:b, s:b, s:I, s:I, s:I, s:i, s:f, s:o, s:o, s:o, s:o, s:o, s:o}",
                     "version", GHOSTBOX_VERSION, "pid", (int)getpid(), "host", at[0].host, "port", (int)at[0].port,
                     "also", also, "locked", (int)server->options->lock_memory, "seccomp",
                     (int)atomic_load(&server->sandboxed), "size_bytes", (json_int_t)server->options->size_bytes,
                     "exported_bytes", (json_int_t)exports_total_bytes(&server->exports), "resident_bytes",
                     (json_int_t)listing.resident_bytes, "connections", (int)server_connections(server), "uptime_s",
                     uptime_s, "exports", listing.array, "counters", counters_to_json(server), "waiting",
                     waiting_to_json(server), "gathering", gathering_to_json(server), "handshakes",
                     handshakes_to_json(&server->handshakes), "clients", clients_to_json(&server->exports));
}

static const char *name_argument(const json_t *args, struct control_error *err)
{
    const char *name = json_string_value(json_object_get(args, "name"));
    if (name == NULL) {
        control_fail(err, "invalid", "\"name\" must be a string");
    }
    return name;
}

static json_t *add_failed(const struct server *server, const char *name, uint64_t size_bytes, uint64_t free_bytes,
                          int rc, struct control_error *err)
{
    char asked[SIZE_TEXT_BYTES];
    char left[SIZE_TEXT_BYTES];
    char total[SIZE_TEXT_BYTES];
    switch (rc) {
    case -EEXIST:
        return control_fail(err, "exists", "there is an export named '%s' already", name);
    case -ENOSPC:
        return control_fail(err, "too-small", "export '%s': %s asked, %s of %s are free", name,
                            size_format(asked, size_bytes), size_format(left, free_bytes),
                            size_format(total, server->options->size_bytes));
    case -EINVAL:
        return control_fail(err, "invalid", "an export's name has 1 to %u bytes and no control characters",
                            EXPORT_NAME_MAX);
    case -ENOKEY:
        return control_fail(err, "needs-key",
                            "export '%s' has no key, and --tls require demands one for each: give "
                            "\"tls_psk\", or a line in --tls-psk",
                            name);
    case -ENAMETOOLONG:
        return control_fail(err, "invalid", "an export with a key has a name of at most %u bytes", PSK_IDENTITY_MAX);
    case -E2BIG:
        return control_fail(err, "too-small", "there are %u exports already, more are not possible", EXPORTS_MAX);
    default:
        return control_fail(err, "too-small", "export '%s': %s", name, strerror(-rc));
    }
}

/* The key that the command gives; NULL in *psk: it gives none. Returns false after a failure. */
static bool psk_argument(const json_t *args, struct psk *buffer, const struct psk **psk, struct control_error *err)
{
    const json_t *given = json_object_get(args, "tls_psk");
    *psk = NULL;
    if (given == NULL || json_is_null(given)) {
        return true;
    }
    if (!json_is_string(given) || psk_parse(buffer, json_string_value(given), json_string_length(given)) < 0) {
        control_fail(err, "invalid", "\"tls_psk\" must be a key of %u to %u hexadecimal digits", 2 * PSK_MIN_BYTES,
                     2 * PSK_MAX_BYTES);
        return false;
    }
    *psk = buffer;
    return true;
}

static json_t *export_add_command(void *ctx, const json_t *args, struct control_error *err)
{
    struct server *server = ctx;
    const char *name = name_argument(args, err);
    if (name == NULL) {
        return NULL;
    }
    json_int_t size_bytes = json_integer_value(json_object_get(args, "size_bytes"));
    if (size_bytes <= 0) {
        return control_fail(err, "invalid", "\"size_bytes\" must be a whole number above 0");
    }
    struct psk given = {0};
    const struct psk *psk;
    const char *client_id;
    if (!client_argument(args, true, &client_id, err) || !psk_argument(args, &given, &psk, err)) {
        return NULL;
    }
    uint64_t free_bytes = 0;
    int rc = export_add(&server->exports, name, (uint64_t)size_bytes,
                        psk != NULL ? psk : keys_find(&server->keys, name), client_id, &free_bytes);
    psk_wipe(&given);
    if (rc < 0) {
        return add_failed(server, name, (uint64_t)size_bytes, free_bytes, rc, err);
    }
    log_info("export '%s' added, %lld bytes", name, (long long)size_bytes);
    json_t *result = NULL;
    export_visit(&server->exports, NULL, (const uint8_t *)name, strlen(name), export_read, &result);
    return result;
}

static json_t *export_remove_command(void *ctx, const json_t *args, struct control_error *err)
{
    struct server *server = ctx;
    const char *name = name_argument(args, err);
    if (name == NULL) {
        return NULL;
    }
    const json_t *force = json_object_get(args, "force");
    if (force != NULL && !json_is_boolean(force)) {
        return control_fail(err, "invalid", "\"force\" must be true or false");
    }
    int rc = export_remove(&server->exports, name, json_is_true(force));
    if (rc == -ENOENT) {
        return control_fail(err, "not-found", "no export named '%s'", name);
    }
    if (rc == -EBUSY) {
        return control_fail(err, "busy", "export '%s' has connections open; \"force\" closes them", name);
    }
    log_info("export '%s' removed", name);
    return json_null();
}

static json_t *listen_command(void *ctx, const json_t *args, struct control_error *err)
{
    struct server *server = ctx;
    const char *host = json_string_value(json_object_get(args, "host"));
    const json_t *port = json_object_get(args, "port"), *only = json_object_get(args, "only");
    char port_text[8], text[256];
    if (host == NULL || !json_is_integer(port) || json_integer_value(port) < 0 || json_integer_value(port) > 65535 ||
        !json_is_boolean(only)) {
        return control_fail(err, "invalid", "\"host\" must be an address, \"port\" a port, \"only\" true or false");
    }
    snprintf(port_text, sizeof(port_text), "%d", (int)json_integer_value(port));
    int rc = listeners_add(&server->listeners, host, port_text, json_is_true(only), text, sizeof(text));
    if (rc < 0) {
        return control_fail(err, rc == -E2BIG ? "too-many" : "unavailable", "%s", text);
    }
    struct listening at[LISTENERS_MAX];
    listeners_list(&server->listeners, at);
    log_info("serving on %s port %u%s", at[0].host, at[0].port, json_is_true(only) ? ", and nowhere else" : ", too");
    return address_to_json(&at[0]);
}

static json_t *shutdown_command(void *ctx, const json_t *args, struct control_error *err)
{
    (void)args;
    (void)err;
    server_quit(ctx);
    return json_null();
}

const struct control_command memserver_commands[] = {
    {"status", status_command},
    {"export-add", export_add_command},
    {"export-remove", export_remove_command},
    {"client-set", client_set_command},
    {"client-close", client_close_command},
    {"listen", listen_command},
    {"shutdown", shutdown_command},
    {NULL, NULL},
};
