/* SPDX-License-Identifier: MIT */
#include "memserver/transmit.h"

#include "common/log.h"
#include "common/nbd_protocol.h"
#include "memserver/clock.h"

#include <assert.h>
#include <endian.h>
#include <string.h>

/* The most memory traffic of one turn, replies not counted: the worker's other connections wait meanwhile. */
#define TURN_BUDGET_BYTES (4 << 20)
/* Giving a page back costs about a sixteenth of zeroing it; reading its bit costs about a thousandth. */
#define DISCARD_COST_SHIFT 4
#define STATUS_COST_SHIFT  10
#define STATUS_EXTENTS_MAX 256u
/* From this size on, receiving a payload where it belongs is cheaper than copying it there. */
#define LARGE_WRITE_BYTES        32768u
#define LARGE_WRITE_WINDOW_BYTES 4096u
#define CACHE_LINE_BYTES         64u
#define PREFETCH_BYTES           256u
/* A delayed connection looks at least so often, because its client's limit may be changed. */
#define DELAY_MAX_NS 100000000u

/* A request in the machine's byte order. */
struct request {
    uint16_t flags;
    uint16_t command;
    uint64_t cookie;
    uint64_t offset;
    uint32_t length;
};

/* What a command allows. */
static const struct rule {
    bool known;
    bool has_range;
    uint16_t flags;
    uint32_t max_bytes;
    enum nbd_error beyond_end; /* the error for a range that goes beyond the end of the export */
} rules[] = {
    [NBD_CMD_READ] = {true, true, NBD_CMD_FLAG_DF, TRANSMIT_PAYLOAD_MAX_BYTES, NBD_EINVAL},
    [NBD_CMD_WRITE] = {true, true, 0, TRANSMIT_PAYLOAD_MAX_BYTES, NBD_ENOSPC},
    [NBD_CMD_FLUSH] = {true, false, 0, 0, NBD_EINVAL},
    [NBD_CMD_TRIM] = {true, true, 0, UINT32_MAX, NBD_EINVAL},
    [NBD_CMD_CACHE] = {true, true, 0, UINT32_MAX, NBD_EINVAL},
    [NBD_CMD_WRITE_ZEROES] = {true, true, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, UINT32_MAX, NBD_ENOSPC},
    [NBD_CMD_BLOCK_STATUS] = {true, true, NBD_CMD_FLAG_REQ_ONE, UINT32_MAX, NBD_EINVAL},
};
#define N_RULES (sizeof(rules) / sizeof(rules[0]))

uint16_t transmit_flags(const struct connection *connection)
{
    unsigned flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
                     NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE |
                     NBD_FLAG_SEND_FAST_ZERO;
    return (uint16_t)(flags | (connection->structured ? NBD_FLAG_SEND_DF : 0));
}

static struct store *connection_store(struct connection *connection)
{
    return &connection->client.export->store;
}

/*
 * Prefetches the beginning of a page: the first touch of a page costs a walk of the page tables and a read from
 * memory, which happen while other requests are parsed. After these lines the processor's own prefetcher goes on.
 */
static void page_prefetch(struct connection *connection, uint64_t offset)
{
    const uint8_t *first = connection_store(connection)->memory + offset;
    for (size_t at = 0; at < PREFETCH_BYTES; at += CACHE_LINE_BYTES) {
        __builtin_prefetch(first + at, 1);
    }
}

/*
 * Prefetches for the next request if it has been received and is a write: it follows as soon as this payload is
 * copied.
 */
static void next_write_prefetch(struct connection *connection, uint32_t payload_bytes)
{
    struct nbd_request next;
    if (connection_available(connection) - payload_bytes < sizeof(next)) {
        return;
    }
    memcpy(&next, connection->in + connection->in_start + payload_bytes, sizeof(next));
    uint64_t offset = be64toh(next.offset);
    if (be16toh(next.command) == NBD_CMD_WRITE && offset < connection_store(connection)->size_bytes) {
        page_prefetch(connection, offset);
    }
}

/* --- replies --- */

static void reply_simple(struct connection *connection, uint64_t cookie, uint32_t error)
{
    struct nbd_simple_reply *reply = replies_header(&connection->replies, sizeof(*reply));
    *reply = (struct nbd_simple_reply){
        .magic = htobe32(NBD_SIMPLE_REPLY_MAGIC), .error = htobe32(error), .cookie = cookie};
}

static struct nbd_chunk chunk_head(uint64_t cookie, uint16_t type, bool last, uint64_t length)
{
    return (struct nbd_chunk){.magic = htobe32(NBD_STRUCTURED_REPLY_MAGIC),
                              .flags = htobe16(last ? NBD_REPLY_FLAG_DONE : 0),
                              .type = htobe16(type),
                              .cookie = cookie,
                              .length = htobe32((uint32_t)length)};
}

static void reply_data_head(struct connection *connection, uint64_t cookie, uint64_t offset, uint64_t length,
                            bool last)
{
    struct nbd_chunk_data *chunk = replies_header(&connection->replies, sizeof(*chunk));
    *chunk = (struct nbd_chunk_data){
        .head = chunk_head(cookie, NBD_REPLY_TYPE_OFFSET_DATA, last, sizeof(chunk->offset) + length),
        .offset = htobe64(offset)};
}

static void reply_hole(struct connection *connection, uint64_t cookie, uint64_t offset, uint64_t length, bool last)
{
    struct nbd_chunk_hole *chunk = replies_header(&connection->replies, sizeof(*chunk));
    *chunk = (struct nbd_chunk_hole){
        .head = chunk_head(cookie, NBD_REPLY_TYPE_OFFSET_HOLE, last, sizeof(*chunk) - sizeof(chunk->head)),
        .offset = htobe64(offset),
        .hole_bytes = htobe32((uint32_t)length)};
}

static void reply_nothing(struct connection *connection, uint64_t cookie)
{
    struct nbd_chunk *chunk = replies_header(&connection->replies, sizeof(*chunk));
    *chunk = chunk_head(cookie, NBD_REPLY_TYPE_NONE, true, 0);
}

/*
 * Once structured replies are negotiated, READ and BLOCK_STATUS need structured errors; others may have simple ones.
 */
static void reply_error(struct connection *connection, const struct request *request, uint32_t error)
{
    counter_add(&connection->counters->errors, 1);
    bool structured =
        connection->structured && (request->command == NBD_CMD_READ || request->command == NBD_CMD_BLOCK_STATUS);
    if (!structured) {
        reply_simple(connection, request->cookie, error);
        return;
    }
    struct nbd_chunk_error *chunk = replies_header(&connection->replies, sizeof(*chunk));
    *chunk = (struct nbd_chunk_error){
        .head = chunk_head(request->cookie, NBD_REPLY_TYPE_ERROR, true, sizeof(*chunk) - sizeof(chunk->head)),
        .error = htobe32(error)};
}

/* --- requests that take several steps --- */

enum progress { PROGRESS_DONE, PROGRESS_STARVED, PROGRESS_YIELD };

static void operation_begin(struct connection *connection, enum operation_kind kind, const struct request *request)
{
    connection->operation = (struct operation){.kind = kind,
                                               .cookie = request->cookie,
                                               .start = request->offset,
                                               .offset = request->offset,
                                               .remaining = request->length};
}

static void operation_advance(struct operation *operation, uint64_t bytes)
{
    operation->offset += bytes;
    operation->remaining -= bytes;
}

static void operation_finish(struct connection *connection)
{
    store_unreserve(connection_store(connection), connection->operation.reserved_pages);
    reply_simple(connection, connection->operation.cookie, connection->operation.error);
    connection->operation.kind = OPERATION_NONE;
}

static enum progress read_chunks_step(struct connection *connection)
{
    struct operation *operation = &connection->operation;
    const struct store *store = connection_store(connection);
    while (operation->remaining > 0) {
        if (!replies_have_room(&connection->replies, REPLIES_STEP_BYTES)) {
            return PROGRESS_YIELD;
        }
        struct store_run run = store_run_at(store, operation->offset, operation->remaining);
        bool last = run.length_bytes == operation->remaining;
        if (run.is_data) {
            reply_data_head(connection, operation->cookie, operation->offset, run.length_bytes, last);
            replies_data(&connection->replies, store->memory + operation->offset, run.length_bytes);
        } else {
            reply_hole(connection, operation->cookie, operation->offset, run.length_bytes, last);
        }
        operation_advance(operation, run.length_bytes);
    }
    operation->kind = OPERATION_NONE;
    return PROGRESS_DONE;
}

/* Holes are sent from a block of zeroes, because reading them from the export's mapping would fill page tables. */
static enum progress read_raw_step(struct connection *connection)
{
    struct operation *operation = &connection->operation;
    const struct store *store = connection_store(connection);
    while (operation->remaining > 0) {
        if (!replies_have_room(&connection->replies, REPLIES_STEP_BYTES)) {
            return PROGRESS_YIELD;
        }
        struct store_run run = store_run_at(store, operation->offset, operation->remaining);
        if (run.is_data) {
            replies_data(&connection->replies, store->memory + operation->offset, run.length_bytes);
        } else {
            run.length_bytes = run.length_bytes < REPLIES_ZERO_BYTES ? run.length_bytes : REPLIES_ZERO_BYTES;
            replies_zeroes(&connection->replies, run.length_bytes);
        }
        operation_advance(operation, run.length_bytes);
    }
    operation->kind = OPERATION_NONE;
    return PROGRESS_DONE;
}

static enum progress write_step(struct connection *connection)
{
    struct operation *operation = &connection->operation;
    uint32_t available = connection_available(connection);
    uint32_t bytes = available < operation->remaining ? available : (uint32_t)operation->remaining;
    if (operation->kind == OPERATION_WRITE) {
        next_write_prefetch(connection, bytes);
        memcpy(connection_store(connection)->memory + operation->offset, connection->in + connection->in_start,
               bytes);
    }
    connection->in_start += bytes;
    operation_advance(operation, bytes);
    if (operation->remaining > 0) {
        return PROGRESS_STARVED;
    }
    if (!replies_have_room(&connection->replies, REPLIES_STEP_BYTES)) {
        return PROGRESS_YIELD;
    }
    if (operation->kind == OPERATION_WRITE) {
        store_mark_written(connection_store(connection), operation->start, operation->offset - operation->start,
                           &operation->reserved_pages);
    }
    operation_finish(connection);
    return PROGRESS_DONE;
}

static enum progress zero_step(struct connection *connection)
{
    struct operation *operation = &connection->operation;
    unsigned cost_shift = operation->kind == OPERATION_DISCARD ? DISCARD_COST_SHIFT : 0;
    while (operation->remaining > 0) {
        if (connection->budget <= 0) {
            return PROGRESS_YIELD;
        }
        uint64_t bytes = store_round_up((uint64_t)connection->budget << cost_shift);
        /* A step ends at the end of a page, because a part of a page cannot be given back. */
        bytes -= (operation->offset + bytes) % STORE_PAGE_BYTES;
        bytes = operation->remaining < bytes ? operation->remaining : bytes;
        if (operation->kind == OPERATION_DISCARD) {
            store_discard(connection_store(connection), operation->offset, bytes);
        } else {
            store_zero(connection_store(connection), operation->offset, bytes, &operation->reserved_pages);
        }
        connection->budget -= (int64_t)(bytes >> cost_shift);
        operation_advance(operation, bytes);
    }
    if (!replies_have_room(&connection->replies, REPLIES_STEP_BYTES)) {
        return PROGRESS_YIELD;
    }
    operation_finish(connection);
    return PROGRESS_DONE;
}

static enum progress operation_step(struct connection *connection)
{
    switch (connection->operation.kind) {
    case OPERATION_NONE:
        return PROGRESS_DONE;
    case OPERATION_READ_CHUNKS:
        return read_chunks_step(connection);
    case OPERATION_READ_RAW:
        return read_raw_step(connection);
    case OPERATION_WRITE:
    case OPERATION_SKIP:
        return write_step(connection);
    case OPERATION_DISCARD:
    case OPERATION_ZERO:
        return zero_step(connection);
    }
    return PROGRESS_DONE;
}

size_t transmit_direct(struct connection *connection, struct iovec *iov)
{
    const struct operation *operation = &connection->operation;
    if (operation->kind != OPERATION_WRITE) {
        return 0;
    }
    *iov = (struct iovec){.iov_base = connection_store(connection)->memory + operation->offset,
                          .iov_len = operation->remaining};
    return operation->remaining;
}

void transmit_direct_done(struct connection *connection, size_t bytes)
{
    operation_advance(&connection->operation, bytes);
}

void transmit_abandon(struct connection *connection)
{
    struct operation *operation = &connection->operation;
    if (operation->kind == OPERATION_WRITE) {
        store_mark_written(connection_store(connection), operation->start, operation->offset - operation->start,
                           &operation->reserved_pages);
    }
    if (operation->kind != OPERATION_NONE) {
        store_unreserve(connection_store(connection), operation->reserved_pages);
    }
}

/* --- one request --- */

static enum nbd_error request_validate(const struct connection *connection, const struct request *request)
{
    const struct rule *rule = request->command < N_RULES ? &rules[request->command] : NULL;
    if (rule == NULL || !rule->known) {
        return NBD_EINVAL;
    }
    /* FUA is valid for every command and needs no action: once a request is done, its data are in memory. */
    if ((request->flags & ~(rule->flags | NBD_CMD_FLAG_FUA)) != 0) {
        return NBD_EINVAL;
    }
    if ((request->flags & NBD_CMD_FLAG_DF) != 0 && !connection->structured) {
        return NBD_EINVAL;
    }
    if (!rule->has_range) {
        return request->offset == 0 && request->length == 0 ? NBD_SUCCESS : NBD_EINVAL;
    }
    uint64_t size_bytes = connection->client.export->store.size_bytes;
    if (request->offset > size_bytes || request->length > size_bytes - request->offset) {
        return rule->beyond_end;
    }
    if (request->length > rule->max_bytes) {
        return NBD_EINVAL;
    }
    if (request->command == NBD_CMD_BLOCK_STATUS && (!connection->allocation_context || request->length == 0)) {
        return NBD_EINVAL;
    }
    /* With NO_HOLE the zeroes have to be written, which is no faster than a WRITE: FAST_ZERO must then fail. */
    if ((request->flags & NBD_CMD_FLAG_FAST_ZERO) != 0 && (request->flags & NBD_CMD_FLAG_NO_HOLE) != 0) {
        return NBD_ENOTSUP;
    }
    return NBD_SUCCESS;
}

static void read_begin(struct connection *connection, const struct request *request)
{
    counter_add(&connection->counters->reads, 1);
    counter_add(&connection->counters->read_bytes, request->length);
    page_prefetch(connection, request->offset);
    if (!connection->structured) {
        reply_simple(connection, request->cookie, NBD_SUCCESS);
        operation_begin(connection, OPERATION_READ_RAW, request);
        return;
    }
    if (request->length == 0) {
        reply_nothing(connection, request->cookie);
        return;
    }
    if ((request->flags & NBD_CMD_FLAG_DF) == 0) {
        operation_begin(connection, OPERATION_READ_CHUNKS, request);
        return;
    }
    struct store_run run = store_run_at(connection_store(connection), request->offset, request->length);
    if (!run.is_data && run.length_bytes == request->length) {
        reply_hole(connection, request->cookie, request->offset, request->length, true);
        return;
    }
    reply_data_head(connection, request->cookie, request->offset, request->length, true);
    operation_begin(connection, OPERATION_READ_RAW, request);
}

static void write_begin(struct connection *connection, const struct request *request)
{
    counter_add(&connection->counters->writes, 1);
    counter_add(&connection->counters->written_bytes, request->length);
    connection->window_bytes = request->length < LARGE_WRITE_BYTES ? CONNECTION_IN_BYTES : LARGE_WRITE_WINDOW_BYTES;
    operation_begin(connection, OPERATION_WRITE, request);
}

/* Replies with as many extents as fit: the specification allows a reply that covers less than the request. */
static void status_reply(struct connection *connection, const struct request *request)
{
    counter_add(&connection->counters->block_status, 1);
    unsigned max_extents = (request->flags & NBD_CMD_FLAG_REQ_ONE) != 0 ? 1 : STATUS_EXTENTS_MAX;
    struct nbd_extent extents[STATUS_EXTENTS_MAX];
    unsigned n = 0;
    uint64_t offset = request->offset;
    uint64_t end = offset + request->length;
    while (offset < end && n < max_extents) {
        struct store_run run = store_run_at(connection_store(connection), offset, end - offset);
        uint32_t flags = run.is_data ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO;
        extents[n++] = (struct nbd_extent){.length = htobe32((uint32_t)run.length_bytes), .flags = htobe32(flags)};
        offset += run.length_bytes;
    }
    connection->budget -= (int64_t)((offset - request->offset) >> STATUS_COST_SHIFT);
    uint32_t extents_bytes = n * (uint32_t)sizeof(extents[0]);
    uint32_t chunk_bytes = (uint32_t)sizeof(struct nbd_chunk_status) + extents_bytes;
    struct nbd_chunk_status *chunk = replies_header(&connection->replies, chunk_bytes);
    *chunk = (struct nbd_chunk_status){
        .head = chunk_head(request->cookie, NBD_REPLY_TYPE_BLOCK_STATUS, true, chunk_bytes - sizeof(chunk->head)),
        .context_id = htobe32(NBD_ALLOCATION_CONTEXT_ID)};
    memcpy(chunk + 1, extents, extents_bytes);
}

/* Whether the request makes pages of the export resident. */
static bool takes_memory(const struct request *request)
{
    return request->command == NBD_CMD_WRITE ||
           (request->command == NBD_CMD_WRITE_ZEROES && (request->flags & NBD_CMD_FLAG_NO_HOLE) != 0);
}

/*
 * Counts a request for the export's client, and its payload against the client's bandwidth. The payload of a write
 * that is refused comes all the same.
 */
static void client_note(struct connection *connection, const struct request *request, enum nbd_error error)
{
    struct client *client = connection->client.export->client;
    uint64_t read_bytes = request->command == NBD_CMD_READ && error == NBD_SUCCESS ? request->length : 0;
    uint64_t written_bytes = request->command == NBD_CMD_WRITE ? request->length : 0;
    connection->tally.requests++;
    connection->tally.read_bytes += read_bytes;
    connection->tally.written_bytes += error == NBD_SUCCESS ? written_bytes : 0;
    if (read_bytes + written_bytes > 0 && client_is_limited(client)) {
        client_charge(client, (int64_t)clock_ns(), read_bytes + written_bytes);
    }
}

/* Adds what the connection has done in this turn to its client's counters. */
static void tally_flush(struct connection *connection)
{
    struct client *client = connection->client.export->client;
    if (client != NULL && connection->tally.requests > 0) {
        atomic_fetch_add_explicit(&client->counters.requests, connection->tally.requests, memory_order_relaxed);
        atomic_fetch_add_explicit(&client->counters.read_bytes, connection->tally.read_bytes, memory_order_relaxed);
        atomic_fetch_add_explicit(&client->counters.written_bytes, connection->tally.written_bytes,
                                  memory_order_relaxed);
    }
    connection->tally = (struct tally){0};
}

/* Whether the connection has to wait, because its client's bandwidth is used up. */
static bool is_delayed(struct connection *connection)
{
    struct client *client = connection->client.export->client;
    if (!client_is_limited(client)) {
        return false;
    }
    uint64_t now_ns = clock_ns();
    uint64_t wait_ns = (uint64_t)client_wait_ns(client, (int64_t)now_ns);
    if (wait_ns > 0) {
        atomic_fetch_add_explicit(&client->counters.delays, 1, memory_order_relaxed);
        connection->delayed_until_ns = now_ns + (wait_ns < DELAY_MAX_NS ? wait_ns : DELAY_MAX_NS);
    }
    return wait_ns > 0;
}

/* Begins, or executes, a request, which is valid. */
static void request_begin(struct connection *connection, const struct request *request)
{
    switch ((enum nbd_command)request->command) {
    case NBD_CMD_READ:
        read_begin(connection, request);
        break;
    case NBD_CMD_WRITE:
        write_begin(connection, request);
        break;
    case NBD_CMD_FLUSH:
        counter_add(&connection->counters->flushes, 1);
        reply_simple(connection, request->cookie, NBD_SUCCESS);
        break;
    case NBD_CMD_TRIM:
        counter_add(&connection->counters->trims, 1);
        operation_begin(connection, OPERATION_DISCARD, request);
        break;
    case NBD_CMD_WRITE_ZEROES:
        counter_add(&connection->counters->zeroes, 1);
        operation_begin(connection, (request->flags & NBD_CMD_FLAG_NO_HOLE) != 0 ? OPERATION_ZERO : OPERATION_DISCARD,
                        request);
        break;
    case NBD_CMD_CACHE:
        /* There is nothing to do: an export is in memory. */
        reply_simple(connection, request->cookie, NBD_SUCCESS);
        break;
    case NBD_CMD_BLOCK_STATUS:
        status_reply(connection, request);
        break;
    case NBD_CMD_DISC:
        assert(false);
    }
}

static void request_refuse(struct connection *connection, const struct request *request, enum nbd_error error)
{
    log_debug("%s: command %u flags %#x offset %llu length %u: error %u", connection->peer, request->command,
              request->flags, (unsigned long long)request->offset, request->length, error);
    if (request->command != NBD_CMD_WRITE) {
        reply_error(connection, request, error);
        return;
    }
    /* The payload of a refused write follows all the same, and has to be skipped before the error is sent. */
    counter_add(&connection->counters->errors, 1);
    operation_begin(connection, OPERATION_SKIP, request);
    connection->operation.error = error;
}

/* Takes one request off the input and begins it. Returns false if the connection has to end. */
static bool request_take(struct connection *connection)
{
    struct nbd_request wire;
    memcpy(&wire, connection->in + connection->in_start, sizeof(wire));
    connection->in_start += (uint32_t)sizeof(wire);
    connection->n_requests++;
    if (be32toh(wire.magic) != NBD_REQUEST_MAGIC) {
        log_info("%s: a request without the magic number: connection closed", connection->peer);
        counter_add(&connection->counters->errors, 1);
        return false;
    }
    /* The cookie means nothing to the server: it goes back in the client's byte order. */
    struct request request = {.flags = be16toh(wire.flags),
                              .command = be16toh(wire.command),
                              .cookie = wire.cookie,
                              .offset = be64toh(wire.offset),
                              .length = be32toh(wire.length)};
    if (request.command == NBD_CMD_DISC) {
        return false;
    }
    uint64_t reserved_pages = 0;
    enum nbd_error error = request_validate(connection, &request);
    if (error == NBD_SUCCESS && takes_memory(&request) &&
        !store_reserve(connection_store(connection), request.offset, request.length, &reserved_pages)) {
        atomic_fetch_add_explicit(&connection->client.export->client->counters.writes_refused, 1,
                                  memory_order_relaxed);
        error = NBD_ENOSPC;
    }
    client_note(connection, &request, error);
    if (error != NBD_SUCCESS) {
        request_refuse(connection, &request, error);
    } else {
        request_begin(connection, &request);
        connection->operation.reserved_pages = reserved_pages;
    }
    return true;
}

static enum connection_parse requests_take(struct connection *connection)
{
    uint32_t room_bytes = (uint32_t)sizeof(struct nbd_chunk_status) + STATUS_EXTENTS_MAX * sizeof(struct nbd_extent);
    for (;;) {
        enum progress progress = operation_step(connection);
        if (progress != PROGRESS_DONE) {
            return progress == PROGRESS_STARVED ? PARSE_STARVED : PARSE_AGAIN;
        }
        if (connection_available(connection) < sizeof(struct nbd_request)) {
            return PARSE_STARVED;
        }
        if (connection->budget <= 0 || !replies_have_room(&connection->replies, room_bytes)) {
            return PARSE_AGAIN;
        }
        if (is_delayed(connection)) {
            return PARSE_DELAYED;
        }
        if (!request_take(connection)) {
            return PARSE_CLOSE;
        }
    }
}

enum connection_parse transmit_parse(struct connection *connection)
{
    atomic_store_explicit(&connection->client.export->active_at_ms, clock_coarse_ms(), memory_order_relaxed);
    connection->budget =
        connection->turn_bytes < TURN_BUDGET_BYTES ? connection->turn_bytes : (int64_t)TURN_BUDGET_BYTES;
    int64_t budget = connection->budget;
    enum connection_parse parsed = requests_take(connection);
    connection->spent_bytes = budget - connection->budget;
    tally_flush(connection);
    return parsed;
}
