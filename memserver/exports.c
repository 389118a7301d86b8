/* SPDX-License-Identifier: MIT */
#include "memserver/exports.h"

#include "common/log.h"
#include "common/page_memory.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>

#define DETACH_LIMIT_S 10

int64_t clock_coarse_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void exports_open(struct exports *exports, uint64_t limit_bytes)
{
    *exports = (struct exports){.limit_bytes = limit_bytes};
    pthread_mutex_init(&exports->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&exports->detached, &attr);
    pthread_condattr_destroy(&attr);
}

/* Frees an export that is in no list. The caller does not hold the lock, because unmapping takes long. */
static void export_free(struct exports *exports, struct export *export)
{
    store_close(&export->store);
    psk_wipe(&export->psk);
    if (export->client != NULL) {
        pthread_mutex_lock(&exports->lock);
        export->client->n_exports--;
        client_drop(&exports->clients, export->client);
        pthread_mutex_unlock(&exports->lock);
    }
    free(export);
}

void exports_close(struct exports *exports)
{
    while (exports->first != NULL) {
        struct export *export = exports->first;
        assert(export->n_clients == 0);
        exports->first = export->next;
        export_free(exports, export);
    }
    while (exports->clients.first != NULL) {
        struct client *client = exports->clients.first;
        exports->clients.first = client->next;
        free(client);
    }
    pthread_cond_destroy(&exports->detached);
    pthread_mutex_destroy(&exports->lock);
}

static bool name_is_valid(const char *name)
{
    size_t length = strlen(name);
    if (length == 0 || length > EXPORT_NAME_MAX) {
        return false;
    }
    for (size_t i = 0; i < length; i++) {
        if (iscntrl((unsigned char)name[i])) {
            return false;
        }
    }
    return true;
}

/* Makes a random UUID, version 4 (RFC 9562). */
static void uuid_make(char text[UUID_TEXT_BYTES])
{
    uint8_t b[16];
    /* getrandom() waits until the kernel's pool is ready; from then on it cannot fail for 16 bytes (getrandom(2)). */
    ssize_t n = getrandom(b, sizeof(b), 0);
    assert(n == (ssize_t)sizeof(b));
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    snprintf(text, UUID_TEXT_BYTES, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
             b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

/* Returns the link to the export of this name or, if there is none, the link at the end of the list. */
static struct export **export_find(struct exports *exports, const uint8_t *name, size_t name_bytes)
{
    struct export **at = &exports->first;
    while (*at != NULL && (strlen((*at)->name) != name_bytes || memcmp((*at)->name, name, name_bytes) != 0)) {
        at = &(*at)->next;
    }
    return at;
}

/* Returns the export that a client names, with or without EXPORT_WRITER_SUFFIX; NULL if there is none. */
static struct export *export_named(struct exports *exports, const uint8_t *name, size_t name_bytes, bool *writer)
{
    size_t suffix_bytes = strlen(EXPORT_WRITER_SUFFIX);
    struct export *export = *export_find(exports, name, name_bytes);
    *writer = export == NULL && name_bytes > suffix_bytes &&
              memcmp(name + name_bytes - suffix_bytes, EXPORT_WRITER_SUFFIX, suffix_bytes) == 0;
    return *writer ? *export_find(exports, name, name_bytes - suffix_bytes) : export;
}

static struct export **export_find_text(struct exports *exports, const char *name)
{
    return export_find(exports, (const uint8_t *)name, strlen(name));
}

/* The caller holds the lock. */
static int export_new(struct export **out, const char *name, uint64_t size_bytes, const struct psk *psk,
                      const char *client_id, struct exports *exports)
{
    struct export *export = calloc(1, sizeof(*export));
    if (export == NULL) {
        return -ENOMEM;
    }
    page_memory_hide(export, sizeof(*export)); /* its key */
    int rc = store_open(&export->store, size_bytes);
    struct client *client = rc == 0 && client_id != NULL ? client_take(&exports->clients, client_id) : NULL;
    if (rc == 0 && client_id != NULL && client == NULL) {
        store_close(&export->store);
        rc = -ENOMEM;
    }
    if (rc < 0) {
        free(export);
        return rc;
    }
    export->client = client;
    if (client != NULL) {
        client->n_exports++;
        export->store.quota = &client->quota;
    }
    snprintf(export->name, sizeof(export->name), "%s", name);
    uuid_make(export->incarnation);
    export->donor_id = exports->donor_id;
    export->machine = exports->machine;
    export->psk = psk != NULL ? *psk : (struct psk){0};
    atomic_store(&export->active_at_ms, clock_coarse_ms());
    *out = export;
    return 0;
}

int export_add(struct exports *exports, const char *name, uint64_t size_bytes, const struct psk *psk,
               const char *client_id, uint64_t *free_bytes)
{
    if (!name_is_valid(name) || size_bytes == 0 || size_bytes > INT64_MAX - STORE_PAGE_BYTES) {
        return -EINVAL;
    }
    if (psk != NULL && strlen(name) > PSK_IDENTITY_MAX) {
        return -ENAMETOOLONG;
    }
    if (psk == NULL && exports->tls_required) {
        return -ENOKEY;
    }
    uint64_t needed_bytes = store_round_up(size_bytes);
    int rc;
    pthread_mutex_lock(&exports->lock);
    *free_bytes = exports->limit_bytes - exports->exported_bytes;
    struct export **at = export_find_text(exports, name);
    if (*at != NULL) {
        rc = -EEXIST;
    } else if (exports->n_exports >= EXPORTS_MAX) {
        rc = -E2BIG;
    } else if (needed_bytes > *free_bytes) {
        rc = -ENOSPC;
    } else {
        rc = export_new(at, name, size_bytes, psk, client_id, exports);
    }
    if (rc == 0) {
        exports->exported_bytes += needed_bytes;
        exports->n_exports++;
        exports->n_keys += psk != NULL ? 1 : 0;
    }
    pthread_mutex_unlock(&exports->lock);
    return rc;
}

/* Waits until *n is 0. The caller holds the lock. Returns false if it is not at the deadline. */
static bool detached_wait(struct exports *exports, const unsigned *n)
{
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += DETACH_LIMIT_S;
    int rc = 0;
    while (*n > 0 && rc == 0) {
        rc = pthread_cond_timedwait(&exports->detached, &exports->lock, &deadline);
    }
    return *n == 0;
}

int export_remove(struct exports *exports, const char *name, bool force)
{
    pthread_mutex_lock(&exports->lock);
    struct export **at = export_find_text(exports, name);
    struct export *export = *at;
    if (export == NULL || (export->n_clients > 0 && !force)) {
        pthread_mutex_unlock(&exports->lock);
        return export == NULL ? -ENOENT : -EBUSY;
    }
    *at = export->next;
    exports->n_exports--;
    exports->n_keys -= export->psk.n_bytes > 0 ? 1 : 0;
    for (struct export_client *client = export->clients; client != NULL; client = client->next) {
        shutdown(client->fd, SHUT_RDWR);
    }
    bool alone = detached_wait(exports, &export->n_clients);
    if (alone) {
        exports->exported_bytes -= export->store.mapped_bytes;
    } else {
        export->removed = true;
        log_error("export '%s': %u connections did not end: its memory is kept until they do", export->name,
                  export->n_clients);
    }
    pthread_mutex_unlock(&exports->lock);
    /*
     * The memory is unmapped here and not in the last client's detach, because unmapping takes long, and the thread
     * of that client serves other clients.
     */
    if (alone) {
        export_free(exports, export);
    }
    return 0;
}

/* Shuts down the connections of the export's writers. The caller holds the lock. Returns whether there are any. */
static bool writers_end(struct export *export)
{
    bool found = false;
    for (struct export_client *client = export->clients; client != NULL; client = client->next) {
        if (client->writer) {
            found = true;
            shutdown(client->fd, SHUT_RDWR);
        }
    }
    return found;
}

/* Whether this viewer may see and use the export. */
static bool is_visible(const struct export *export, const struct export_viewer *viewer)
{
    if (!viewer->tls) {
        return export->psk.n_bytes == 0;
    }
    return strcmp(export->incarnation, viewer->incarnation) == 0 &&
           (export->client == NULL || export->client->epoch == viewer->epoch);
}

enum attach_result export_attach(struct exports *exports, const struct export_viewer *viewer, const uint8_t *name,
                                 size_t name_bytes, struct export_client *client)
{
    enum attach_result result = ATTACH_UNKNOWN;
    bool writer;
    pthread_mutex_lock(&exports->lock);
    struct export *export = export_named(exports, name, name_bytes, &writer);
    if (export != NULL && !is_visible(export, viewer)) {
        result = viewer->tls ? ATTACH_UNKNOWN : ATTACH_NEEDS_TLS;
    } else if (export != NULL) {
        result = writer && writers_end(export) ? ATTACH_WAIT : ATTACH_DONE;
    }
    struct client *owner = export != NULL ? export->client : NULL;
    if (result == ATTACH_DONE && owner != NULL && owner->n_connections >= owner->max_connections) {
        /* 0 is no limit that is reached, but a client that is shut out. */
        atomic_fetch_add(&owner->counters.connections_refused, owner->max_connections > 0 ? 1 : 0);
        result = ATTACH_TOO_MANY;
    }
    if (result == ATTACH_DONE) {
        if (owner != NULL) {
            owner->n_connections++;
        }
        client->export = export;
        client->writer = writer;
        client->next = export->clients;
        client->link = &export->clients;
        if (client->next != NULL) {
            client->next->link = &client->next;
        }
        export->clients = client;
        export->n_clients++;
        atomic_store(&export->active_at_ms, clock_coarse_ms());
    }
    pthread_mutex_unlock(&exports->lock);
    return result;
}

void export_detach(struct exports *exports, struct export_client *client)
{
    struct export *export = client->export;
    if (export == NULL) {
        return;
    }
    pthread_mutex_lock(&exports->lock);
    *client->link = client->next;
    if (client->next != NULL) {
        client->next->link = client->link;
    }
    client->export = NULL;
    export->n_clients--;
    if (export->client != NULL) {
        export->client->n_connections--;
        export->client->n_ending -= client->ending ? 1 : 0;
    }
    atomic_store(&export->active_at_ms, clock_coarse_ms());
    bool last_of_removed = export->removed && export->n_clients == 0;
    if (last_of_removed) {
        exports->exported_bytes -= export->store.mapped_bytes;
    }
    pthread_cond_broadcast(&exports->detached);
    pthread_mutex_unlock(&exports->lock);
    if (last_of_removed) {
        export_free(exports, export);
    }
}

int exports_set_client(struct exports *exports, const char *client_id, const struct client_limits *limits)
{
    pthread_mutex_lock(&exports->lock);
    struct client *client = client_take(&exports->clients, client_id);
    if (client != NULL) {
        client_limits_set(client, limits);
        client_drop(&exports->clients, client);
    }
    pthread_mutex_unlock(&exports->lock);
    return client != NULL ? 0 : -ENOMEM;
}

/* Shuts down the connections of an export. The caller holds the lock. Returns how many. */
static int connections_end(const struct export *export)
{
    int n = 0;
    for (struct export_client *client = export->clients; client != NULL; client = client->next) {
        shutdown(client->fd, SHUT_RDWR);
        export->client->n_ending += client->ending ? 0 : 1;
        client->ending = true;
        n++;
    }
    return n;
}

int exports_close_client(struct exports *exports, const char *client_id)
{
    int n = 0;
    pthread_mutex_lock(&exports->lock);
    struct client *client = client_find(&exports->clients, client_id);
    if (client == NULL) {
        pthread_mutex_unlock(&exports->lock);
        return -ENOENT;
    }
    client->epoch++;
    for (const struct export *export = exports->first; export != NULL; export = export->next) {
        n += export->client == client ? connections_end(export) : 0;
    }
    client->n_exports++; /* the client stays meanwhile, though the last of its exports may be freed */
    if (!detached_wait(exports, &client->n_ending)) {
        log_error("client '%s': %u connections did not end", client_id, client->n_ending);
    }
    client->n_exports--;
    client_drop(&exports->clients, client);
    pthread_mutex_unlock(&exports->lock);
    return n;
}

void clients_visit(struct exports *exports, const char *client_id, client_visitor visit, void *ctx)
{
    pthread_mutex_lock(&exports->lock);
    for (const struct client *client = exports->clients.first; client != NULL; client = client->next) {
        if (client_id == NULL || strcmp(client->id, client_id) == 0) {
            visit(ctx, client);
        }
    }
    pthread_mutex_unlock(&exports->lock);
}

uint64_t exports_total_bytes(struct exports *exports)
{
    pthread_mutex_lock(&exports->lock);
    uint64_t total = exports->exported_bytes;
    pthread_mutex_unlock(&exports->lock);
    return total;
}

bool exports_have_keys(struct exports *exports)
{
    pthread_mutex_lock(&exports->lock);
    bool have = exports->n_keys > 0 || exports->tls_required;
    pthread_mutex_unlock(&exports->lock);
    return have;
}

void exports_visit(struct exports *exports, const struct export_viewer *viewer, export_visitor visit, void *ctx)
{
    pthread_mutex_lock(&exports->lock);
    for (const struct export *export = exports->first; export != NULL; export = export->next) {
        if (viewer == NULL || is_visible(export, viewer)) {
            visit(ctx, export);
        }
    }
    pthread_mutex_unlock(&exports->lock);
}

int export_visit(struct exports *exports, const struct export_viewer *viewer, const uint8_t *name, size_t name_bytes,
                 export_visitor visit, void *ctx)
{
    int rc = -ENOENT;
    pthread_mutex_lock(&exports->lock);
    const struct export *export = *export_find(exports, name, name_bytes);
    if (export != NULL && (viewer == NULL || is_visible(export, viewer))) {
        visit(ctx, export);
        rc = 0;
    } else if (export != NULL && !viewer->tls) {
        rc = -ENOKEY;
    }
    pthread_mutex_unlock(&exports->lock);
    return rc;
}
