/* SPDX-License-Identifier: MIT */
#include "memserver/client_commands.h"

#include "common/log.h"
#include "memserver/server.h"

#include <errno.h>

static json_t *limit_to_json(uint64_t limit)
{
    return limit == STORE_NO_LIMIT ? json_null() : json_integer((json_int_t)limit);
}

static json_t *client_to_json(const struct client *client)
{
    const struct client_counters *counters = &client->counters;
    int64_t pages = atomic_load(&client->quota.pages);
    uint64_t limit_pages = atomic_load(&client->quota.limit_pages);
    return json_pack("{s:s, s:i, s:i, s:I, s:o, s:o, s:o, s:{s:I, s:I, s:I, s:I, s:I, s:I}}", "client", client->id,
                     "exports", (int)client->n_exports, "connections", (int)client->n_connections, "resident_bytes",
                     (json_int_t)(pages > 0 ? pages : 0) * STORE_PAGE_BYTES, "max_bytes_per_s",
                     limit_to_json(atomic_load(&client->bytes_per_s)), "max_connections",
                     limit_to_json(client->max_connections), "max_resident_bytes",
                     limit_to_json(limit_pages == STORE_NO_LIMIT ? STORE_NO_LIMIT : limit_pages * STORE_PAGE_BYTES),
                     "counters", "requests", (json_int_t)atomic_load(&counters->requests), "read_bytes",
                     (json_int_t)atomic_load(&counters->read_bytes), "written_bytes",
                     (json_int_t)atomic_load(&counters->written_bytes), "writes_refused",
                     (json_int_t)atomic_load(&counters->writes_refused), "connections_refused",
                     (json_int_t)atomic_load(&counters->connections_refused), "delays",
                     (json_int_t)atomic_load(&counters->delays));
}

static void client_list(void *ctx, const struct client *client)
{
    json_array_append_new(ctx, client_to_json(client));
}

static void client_read(void *ctx, const struct client *client)
{
    json_t **result = ctx;
    *result = client_to_json(client);
}

json_t *clients_to_json(struct exports *exports)
{
    json_t *array = json_array();
    clients_visit(exports, NULL, client_list, array);
    return array;
}

bool client_argument(const json_t *args, bool optional, const char **id, struct control_error *err)
{
    const json_t *given = json_object_get(args, "client");
    *id = json_string_value(given);
    if (optional && (given == NULL || json_is_null(given))) {
        return true;
    }
    if (*id == NULL || !client_id_is_valid(*id)) {
        control_fail(err, "invalid", "\"client\" must be a text of 1 to %u bytes without control characters",
                     CLIENT_ID_MAX);
        return false;
    }
    return true;
}

/*
 * Reads a limit: *set says whether the command has it. null is no limit. Returns false after control_fail().
 */
static bool limit_argument(const json_t *args, const char *name, uint64_t least, bool *set, uint64_t *limit,
                           struct control_error *err)
{
    const json_t *given = json_object_get(args, name);
    *set = given != NULL;
    *limit = STORE_NO_LIMIT;
    if (given == NULL || json_is_null(given)) {
        return true;
    }
    json_int_t value = json_integer_value(given);
    if (!json_is_integer(given) || value < 0 || (uint64_t)value < least) {
        control_fail(err, "invalid", "\"%s\" must be a whole number of at least %llu, or null for no limit", name,
                     (unsigned long long)least);
        return false;
    }
    *limit = (uint64_t)value;
    return true;
}

json_t *client_set_command(void *ctx, const json_t *args, struct control_error *err)
{
    struct server *server = ctx;
    struct client_limits limits;
    const char *id;
    if (!client_argument(args, false, &id, err) ||
        !limit_argument(args, "max_bytes_per_s", CLIENT_RATE_MIN, &limits.set_rate, &limits.bytes_per_s, err) ||
        !limit_argument(args, "max_connections", 0, &limits.set_connections, &limits.connections, err) ||
        !limit_argument(args, "max_resident_bytes", 0, &limits.set_resident, &limits.resident_bytes, err)) {
        return NULL;
    }
    if (exports_set_client(&server->exports, id, &limits) < 0) {
        return control_fail(err, "too-many", "there is no memory for another client, or there are %u", CLIENTS_MAX);
    }
    log_info("client '%s': limits were set", id);
    json_t *result = json_null();
    clients_visit(&server->exports, id, client_read, &result);
    return result;
}

json_t *client_close_command(void *ctx, const json_t *args, struct control_error *err)
{
    struct server *server = ctx;
    const char *id;
    if (!client_argument(args, false, &id, err)) {
        return NULL;
    }
    int n = exports_close_client(&server->exports, id);
    if (n < 0) {
        return control_fail(err, "not-found", "no client '%s' is known", id);
    }
    log_info("client '%s': %d connections were closed", id, n);
    return json_pack("{s:i}", "closed", n);
}
