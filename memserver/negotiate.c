/* SPDX-License-Identifier: MIT */
#include "memserver/negotiate.h"

#include "common/log.h"
#include "common/nbd_protocol.h"
#include "memserver/option.h"
#include "memserver/starttls.h"
#include "memserver/transmit.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The parts of an export's description. The incarnation follows DESCRIPTION: by it a client that connects again knows
 * whether this is still the memory that it filled. The donor's id follows DESCRIPTION_DONOR: if the memory is another
 * one, a client knows by it whether its memory is gone, or whether another donor answers at this address.
 */
#define DESCRIPTION           "GhostBox memory "
#define DESCRIPTION_MACHINE   ", machine "
#define DESCRIPTION_DONOR     ", donor "
#define PREFERRED_BLOCK_BYTES 4096u

/* --- NBD_OPT_LIST --- */

struct list_reply {
    uint8_t *data; /* NULL: there is no entry, or no memory */
    size_t used, size;
    bool failed; /* there was no memory */
};

/* Makes room for one more entry. The buffer is as long as the list needs, because free() zeroes all of it. */
static bool list_grow(struct list_reply *list, size_t entry_bytes)
{
    if (entry_bytes <= list->size - list->used) {
        return true;
    }
    size_t size = 2 * (list->used + entry_bytes);
    uint8_t *grown = realloc(list->data, size);
    if (grown == NULL) {
        list->failed = true;
        return false;
    }
    list->data = grown;
    list->size = size;
    return true;
}

static void list_add(void *ctx, const struct export *export)
{
    struct list_reply *list = ctx;
    uint32_t name_bytes = (uint32_t)strlen(export->name);
    uint32_t name_bytes_wire = htobe32(name_bytes);
    if (list->failed || !list_grow(list, sizeof(struct nbd_option_reply) + sizeof(name_bytes_wire) + name_bytes)) {
        return;
    }
    uint8_t *at = list->data + list->used;
    reply_head(at, NBD_OPT_LIST, NBD_REP_SERVER, (uint32_t)sizeof(name_bytes_wire) + name_bytes);
    at += sizeof(struct nbd_option_reply);
    memcpy(at, &name_bytes_wire, sizeof(name_bytes_wire));
    memcpy(at + sizeof(name_bytes_wire), export->name, name_bytes);
    list->used += sizeof(struct nbd_option_reply) + sizeof(name_bytes_wire) + name_bytes;
}

static enum connection_parse option_list(struct connection *connection, struct option *option)
{
    if (option->left != 0) {
        reply_refuse(connection, option->type, NBD_REP_ERR_INVALID, "NBD_OPT_LIST takes no data");
        return PARSE_AGAIN;
    }
    struct list_reply list = {0};
    exports_visit(connection->exports, &connection->viewer, list_add, &list);
    if (list.failed) {
        free(list.data);
        return PARSE_CLOSE;
    }
    if (list.data != NULL) {
        replies_blob(&connection->replies, list.data, list.used);
    }
    reply_ack(connection, option->type);
    return PARSE_AGAIN;
}

/* --- NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_EXPORT_NAME --- */

struct export_facts {
    uint64_t size_bytes;
    char description[sizeof(DESCRIPTION) + UUID_TEXT_BYTES + sizeof(DESCRIPTION_MACHINE) + sizeof(DESCRIPTION_DONOR) +
                     2 * DONOR_ID_MAX];
};

static void export_facts_read(void *ctx, const struct export *export)
{
    struct export_facts *facts = ctx;
    facts->size_bytes = export->store.size_bytes;
    /* The donor's id comes last: a client takes all that follows ", donor " for the id. */
    snprintf(facts->description, sizeof(facts->description), DESCRIPTION "%s%s%s%s%s", export->incarnation,
             export->machine != NULL ? DESCRIPTION_MACHINE : "", export->machine != NULL ? export->machine : "",
             export->donor_id != NULL ? DESCRIPTION_DONOR : "", export->donor_id != NULL ? export->donor_id : "");
}

static void info_export_add(struct connection *connection, uint32_t option, uint64_t size_bytes)
{
    struct nbd_info_export info = {.type = htobe16(NBD_INFO_EXPORT),
                                   .size_bytes = htobe64(size_bytes),
                                   .transmission_flags = htobe16(transmit_flags(connection))};
    memcpy(reply_add(connection, option, NBD_REP_INFO, sizeof(info)), &info, sizeof(info));
}

static void info_block_size_add(struct connection *connection, uint32_t option)
{
    struct nbd_info_block_size info = {.type = htobe16(NBD_INFO_BLOCK_SIZE),
                                       .minimum_bytes = htobe32(1),
                                       .preferred_bytes = htobe32(PREFERRED_BLOCK_BYTES),
                                       .maximum_bytes = htobe32(TRANSMIT_PAYLOAD_MAX_BYTES)};
    memcpy(reply_add(connection, option, NBD_REP_INFO, sizeof(info)), &info, sizeof(info));
}

static void info_text_add(struct connection *connection, uint32_t option, uint16_t type, const void *text,
                          uint32_t length)
{
    uint16_t type_wire = htobe16(type);
    uint8_t *at = reply_add(connection, option, NBD_REP_INFO, (uint32_t)sizeof(type_wire) + length);
    memcpy(at, &type_wire, sizeof(type_wire));
    memcpy(at + sizeof(type_wire), text, length);
}

/* What INFO and GO ask for. */
struct info_query {
    const uint8_t *name;
    uint32_t name_bytes;
    bool wants_name, wants_description, wants_block_size;
};

/*
 * Returns false if the data are malformed. Requests for unknown information are ignored, as the specification says.
 */
static bool info_query_parse(struct option *option, struct info_query *query)
{
    query->name_bytes = option_u32(option);
    query->name = option_bytes(option, query->name_bytes);
    uint16_t n_infos = option_u16(option);
    for (unsigned i = 0; i < n_infos && !option->bad; i++) {
        uint16_t type = option_u16(option);
        query->wants_name |= type == NBD_INFO_NAME;
        query->wants_description |= type == NBD_INFO_DESCRIPTION;
        query->wants_block_size |= type == NBD_INFO_BLOCK_SIZE;
    }
    return !option->bad && option->left == 0;
}

/* Begins the transmission phase. The export is attached, and the client's next byte begins a request. */
static void transmission_enter(struct connection *connection)
{
    const char *name = connection->client.export->name;
    connection->allocation_context = connection->allocation_context && strcmp(connection->context_export, name) == 0;
    connection->phase = PHASE_TRANSMISSION;
    handshake_done(&connection->handshake);
    log_debug("%s: export '%s'", connection->peer, name);
}

static void info_reply(struct connection *connection, uint32_t option, const struct info_query *query,
                       const struct export_facts *facts)
{
    info_export_add(connection, option, facts->size_bytes);
    if (query->wants_name) {
        info_text_add(connection, option, NBD_INFO_NAME, query->name, query->name_bytes);
    }
    if (query->wants_description) {
        info_text_add(connection, option, NBD_INFO_DESCRIPTION, facts->description,
                      (uint32_t)strlen(facts->description));
    }
    if (query->wants_block_size) {
        info_block_size_add(connection, option);
    }
    reply_ack(connection, option);
}

/* Returns 0, -EAGAIN (in the next turn), -EUSERS (too many connections), or, as export_visit(), -ENOENT or -ENOKEY.
 */
static int client_attach(struct connection *connection, const uint8_t *name, uint32_t name_bytes)
{
    enum attach_result result =
        export_attach(connection->exports, &connection->viewer, name, name_bytes, &connection->client);
    connection->option_again = result == ATTACH_WAIT;
    switch (result) {
    case ATTACH_DONE:
        return 0;
    case ATTACH_WAIT:
        return -EAGAIN;
    case ATTACH_NEEDS_TLS:
        return -ENOKEY;
    case ATTACH_TOO_MANY:
        return -EUSERS;
    case ATTACH_UNKNOWN:
        break;
    }
    return -ENOENT;
}

static void export_refuse(struct connection *connection, uint32_t option, int rc)
{
    if (rc == -ENOKEY) {
        reply_refuse(connection, option, NBD_REP_ERR_TLS_REQD, "this export needs TLS");
    } else if (rc == -EUSERS) {
        reply_refuse(connection, option, NBD_REP_ERR_POLICY,
                     "this client has as many connections open as it may have (max_connections)");
    } else {
        reply_refuse(connection, option, NBD_REP_ERR_UNKNOWN, "no export of this name");
    }
}

static enum connection_parse option_info(struct connection *connection, struct option *option)
{
    struct info_query query = {0};
    if (!info_query_parse(option, &query)) {
        reply_refuse(connection, option->type, NBD_REP_ERR_INVALID, "malformed option data");
        return PARSE_AGAIN;
    }
    if (query.name_bytes > NBD_MAX_STRING) {
        reply_refuse(connection, option->type, NBD_REP_ERR_TOO_BIG, "an export name has at most 4096 bytes");
        return PARSE_AGAIN;
    }
    struct export_facts facts = {0};
    int rc;
    if (option->type == NBD_OPT_GO) {
        rc = client_attach(connection, query.name, query.name_bytes);
        if (rc == -EAGAIN) {
            return PARSE_AGAIN;
        }
        if (rc == 0) {
            export_facts_read(&facts, connection->client.export);
        }
    } else {
        rc = export_visit(connection->exports, &connection->viewer, query.name, query.name_bytes, export_facts_read,
                          &facts);
    }
    if (rc < 0) {
        export_refuse(connection, option->type, rc);
        return PARSE_AGAIN;
    }
    info_reply(connection, option->type, &query, &facts);
    if (option->type == NBD_OPT_GO) {
        transmission_enter(connection);
    }
    return PARSE_AGAIN;
}

/* NBD_OPT_EXPORT_NAME has no reply for errors: the connection is closed instead, and the log says why. */
static enum connection_parse option_export_name(struct connection *connection, struct option *option)
{
    int rc = client_attach(connection, option->data, option->left);
    if (rc == -EAGAIN) {
        return PARSE_AGAIN;
    }
    if (rc < 0) {
        log_info("%s: the client asked for an export that %s: connection closed", connection->peer,
                 rc == -ENOKEY   ? "needs TLS"
                 : rc == -EUSERS ? "has as many connections as its client may have (max_connections)"
                                 : "does not exist");
        return PARSE_CLOSE;
    }
    struct nbd_export_name_reply reply = {.size_bytes = htobe64(connection->client.export->store.size_bytes),
                                          .transmission_flags = htobe16(transmit_flags(connection))};
    uint32_t reply_bytes = (uint32_t)(sizeof(reply) - (connection->no_zeroes ? sizeof(reply.zeroes) : 0));
    memcpy(replies_header(&connection->replies, reply_bytes), &reply, reply_bytes);
    transmission_enter(connection);
    return PARSE_AGAIN;
}

/* --- NBD_OPT_STRUCTURED_REPLY and metadata contexts --- */

static enum connection_parse option_structured_reply(struct connection *connection, struct option *option)
{
    if (option->left != 0) {
        reply_refuse(connection, option->type, NBD_REP_ERR_INVALID, "NBD_OPT_STRUCTURED_REPLY takes no data");
        return PARSE_AGAIN;
    }
    connection->structured = true;
    reply_ack(connection, option->type);
    return PARSE_AGAIN;
}

/* The metadata contexts of this server. Their ids are for SET; in the answer to LIST all ids are 0. */
static const struct context {
    const char *namespace, *name;
    uint32_t id;
} contexts[] = {
    {"base:", "base:allocation", NBD_ALLOCATION_CONTEXT_ID},
    {"x-ghostbox:", NBD_DEMAND_CONTEXT, NBD_DEMAND_CONTEXT_ID},
};
enum { ALLOCATION, DEMAND, CONTEXTS };
_Static_assert(sizeof(contexts) / sizeof(contexts[0]) == CONTEXTS, "a row for each");

struct context_query {
    const uint8_t *name;
    uint32_t name_bytes;
    bool wants[CONTEXTS];
    bool too_big;
};

static bool bytes_equal(const uint8_t *bytes, uint32_t length, const char *text)
{
    return length == strlen(text) && memcmp(bytes, text, length) == 0;
}

/* Without queries, LIST asks for all contexts and SET for none. "base:" lists a namespace and cannot be set. */
static bool context_query_parse(struct option *option, struct context_query *query)
{
    bool lists = option->type == NBD_OPT_LIST_META_CONTEXT;
    query->name_bytes = option_u32(option);
    query->name = option_bytes(option, query->name_bytes);
    query->too_big = query->name_bytes > NBD_MAX_STRING;
    uint32_t n_queries = option_u32(option);
    for (unsigned c = 0; c < CONTEXTS; c++) {
        query->wants[c] = lists && n_queries == 0;
    }
    for (uint32_t i = 0; i < n_queries && !option->bad; i++) {
        uint32_t length = option_u32(option);
        const uint8_t *text = option_bytes(option, length);
        if (text == NULL) {
            break;
        }
        query->too_big |= length > NBD_MAX_STRING;
        for (unsigned c = 0; c < CONTEXTS; c++) {
            query->wants[c] |= bytes_equal(text, length, contexts[c].name) ||
                               (lists && bytes_equal(text, length, contexts[c].namespace));
        }
    }
    return !option->bad && option->left == 0;
}

static const char *context_query_fault(const struct connection *connection, bool well_formed)
{
    if (!connection->structured) {
        return "structured replies must be negotiated first";
    }
    return well_formed ? NULL : "malformed option data";
}

static void context_reply(struct connection *connection, uint32_t option, const struct context *context)
{
    uint32_t length = (uint32_t)strlen(context->name);
    uint32_t id_wire = htobe32(option == NBD_OPT_SET_META_CONTEXT ? context->id : 0);
    uint8_t *at = reply_add(connection, option, NBD_REP_META_CONTEXT, (uint32_t)sizeof(id_wire) + length);
    memcpy(at, &id_wire, sizeof(id_wire));
    memcpy(at + sizeof(id_wire), context->name, length);
}

static enum connection_parse option_meta_context(struct connection *connection, struct option *option)
{
    bool sets = option->type == NBD_OPT_SET_META_CONTEXT;
    if (sets) {
        /* A SET undoes the SET before it, even if it fails (NBD specification). */
        connection->allocation_context = connection->demand_context = false;
    }
    struct context_query query = {0};
    const char *fault = context_query_fault(connection, context_query_parse(option, &query));
    if (fault != NULL) {
        reply_refuse(connection, option->type, NBD_REP_ERR_INVALID, fault);
        return PARSE_AGAIN;
    }
    if (query.too_big) {
        reply_refuse(connection, option->type, NBD_REP_ERR_TOO_BIG, "a string has at most 4096 bytes");
        return PARSE_AGAIN;
    }
    struct export_facts facts;
    int rc = export_visit(connection->exports, &connection->viewer, query.name, query.name_bytes, export_facts_read,
                          &facts);
    if (rc < 0) {
        export_refuse(connection, option->type, rc);
        return PARSE_AGAIN;
    }
    for (unsigned c = 0; c < CONTEXTS; c++) {
        if (query.wants[c]) {
            context_reply(connection, option->type, &contexts[c]);
        }
    }
    if (sets && query.wants[DEMAND]) {
        connection->demand_context = true;
    }
    if (sets && query.wants[ALLOCATION]) {
        connection->allocation_context = true;
        /* An export has this name, so it is not longer than EXPORT_NAME_MAX. */
        memcpy(connection->context_export, query.name, query.name_bytes);
        connection->context_export[query.name_bytes] = '\0';
    }
    reply_ack(connection, option->type);
    return PARSE_AGAIN;
}

/* --- the handshake --- */

void negotiate_greet(struct connection *connection)
{
    struct nbd_greeting greeting = {.magic = htobe64(NBD_MAGIC),
                                    .option_magic = htobe64(NBD_OPTION_MAGIC),
                                    .handshake_flags = htobe16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)};
    memcpy(replies_header(&connection->replies, sizeof(greeting)), &greeting, sizeof(greeting));
}

/* With --tls require, the server answers nothing before TLS: not even which exports there are. */
static bool needs_tls(const struct connection *connection, uint32_t option)
{
    return connection->exports->tls_required && !connection->encrypts && option != NBD_OPT_STARTTLS &&
           option != NBD_OPT_ABORT;
}

static enum connection_parse option_needs_tls(struct connection *connection, const struct option *option)
{
    if (option->type == NBD_OPT_EXPORT_NAME) {
        log_info("%s: the client asked for an export without TLS (--tls require): connection closed",
                 connection->peer);
        return PARSE_CLOSE;
    }
    reply_refuse(connection, option->type, NBD_REP_ERR_TLS_REQD, "this server needs TLS: begin with STARTTLS");
    return PARSE_AGAIN;
}

static enum connection_parse option_starttls(struct connection *connection, const struct option *option)
{
    const char *fault = NULL;
    enum starttls_result result = starttls_begin(connection, option->left, &fault);
    if (result == STARTTLS_CLOSE) {
        return PARSE_CLOSE;
    }
    if (result == STARTTLS_BEGUN) {
        reply_ack(connection, option->type);
    } else {
        reply_refuse(connection, option->type, result == STARTTLS_WRONG ? NBD_REP_ERR_INVALID : NBD_REP_ERR_UNSUP,
                     fault);
    }
    return PARSE_AGAIN;
}

static enum connection_parse option_dispatch(struct connection *connection, struct option *option)
{
    if (needs_tls(connection, option->type)) {
        return option_needs_tls(connection, option);
    }
    switch ((enum nbd_option)option->type) {
    case NBD_OPT_EXPORT_NAME:
        return option_export_name(connection, option);
    case NBD_OPT_ABORT:
        reply_ack(connection, option->type);
        return PARSE_CLOSE;
    case NBD_OPT_LIST:
        return option_list(connection, option);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        return option_info(connection, option);
    case NBD_OPT_STRUCTURED_REPLY:
        return option_structured_reply(connection, option);
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        return option_meta_context(connection, option);
    case NBD_OPT_STARTTLS:
        return option_starttls(connection, option);
    }
    reply_refuse(connection, option->type, NBD_REP_ERR_UNSUP, "unknown option");
    return PARSE_AGAIN;
}

static enum connection_parse client_flags_take(struct connection *connection)
{
    uint32_t wire;
    if (connection_available(connection) < sizeof(wire)) {
        return PARSE_STARVED;
    }
    memcpy(&wire, connection->in + connection->in_start, sizeof(wire));
    connection->in_start += (uint32_t)sizeof(wire);
    uint32_t flags = be32toh(wire);
    if ((flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) != 0) {
        log_info("%s: unknown client flags %#x: connection closed", connection->peer, flags);
        return PARSE_CLOSE;
    }
    connection->fixed_newstyle = (flags & NBD_FLAG_C_FIXED_NEWSTYLE) != 0;
    connection->no_zeroes = (flags & NBD_FLAG_C_NO_ZEROES) != 0;
    connection->phase = PHASE_OPTIONS;
    return PARSE_AGAIN;
}

/* Checks an option's header. Returns false if the connection has to end. */
static bool option_header_check(const struct connection *connection, const struct nbd_option_header *header)
{
    if (be64toh(header->magic) != NBD_OPTION_MAGIC) {
        log_info("%s: an option without the magic number: connection closed", connection->peer);
        return false;
    }
    if (connection->n_options > NEGOTIATE_OPTIONS_MAX) {
        log_info("%s: more than %u options: connection closed", connection->peer, NEGOTIATE_OPTIONS_MAX);
        return false;
    }
    /* Without fixed newstyle there are no replies to options, so only NBD_OPT_EXPORT_NAME can be answered. */
    return connection->fixed_newstyle || be32toh(header->option) == NBD_OPT_EXPORT_NAME;
}

static enum connection_parse option_take(struct connection *connection)
{
    struct nbd_option_header header;
    if (connection_available(connection) < sizeof(header)) {
        return PARSE_STARVED;
    }
    memcpy(&header, connection->in + connection->in_start, sizeof(header));
    uint32_t length = be32toh(header.length);
    struct option option = {.type = be32toh(header.option), .left = length};
    if (length > NEGOTIATE_OPTION_MAX_BYTES) {
        connection->n_options++;
        if (!option_header_check(connection, &header) || option.type == NBD_OPT_EXPORT_NAME) {
            return PARSE_CLOSE;
        }
        connection->in_start += (uint32_t)sizeof(header);
        connection->phase = PHASE_OPTION_SKIP;
        connection->skip_bytes = length;
        connection->skipped_option = option.type;
        return PARSE_AGAIN;
    }
    if (!option_header_check(connection, &header)) {
        return PARSE_CLOSE;
    }
    if (connection_available(connection) - sizeof(header) < length) {
        return PARSE_STARVED;
    }
    uint32_t before = connection->in_start;
    connection->n_options++;
    connection->option_again = false;
    option.data = connection->in + connection->in_start + sizeof(header);
    connection->in_start += (uint32_t)sizeof(header) + length;
    enum connection_parse parsed = option_dispatch(connection, &option);
    if (connection->option_again) {
        connection->in_start = before;
        connection->n_options--;
    }
    return parsed;
}

static enum connection_parse option_skip(struct connection *connection)
{
    uint32_t available = connection_available(connection);
    uint32_t bytes = available < connection->skip_bytes ? available : connection->skip_bytes;
    connection->in_start += bytes;
    connection->skip_bytes -= bytes;
    if (connection->skip_bytes > 0) {
        return PARSE_STARVED;
    }
    connection->phase = PHASE_OPTIONS;
    reply_refuse(connection, connection->skipped_option, NBD_REP_ERR_TOO_BIG, "option data too long");
    return PARSE_AGAIN;
}

/* Takes one option a turn: its replies are sent before the next option is parsed, so that they always fit. */
enum connection_parse negotiate_parse(struct connection *connection)
{
    switch (connection->phase) {
    case PHASE_CLIENT_FLAGS:
        return client_flags_take(connection);
    case PHASE_OPTIONS:
        return option_take(connection);
    case PHASE_OPTION_SKIP:
        return option_skip(connection);
    case PHASE_TLS:
    case PHASE_TRANSMISSION:
        break;
    }
    return PARSE_CLOSE;
}
