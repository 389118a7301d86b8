/* SPDX-License-Identifier: MIT */
#include "memserver/exports.h"

#include "common/log.h"

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

static void export_free(struct export *export)
{
    store_close(&export->store);
    free(export);
}

void exports_close(struct exports *exports)
{
    while (exports->first != NULL) {
        struct export *export = exports->first;
        assert(export->n_clients == 0);
        exports->first = export->next;
        export_free(export);
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

/* Random, version 4 (RFC 9562). */
static void uuid_make(char text[UUID_TEXT_BYTES])
{
    uint8_t b[16];
    /* Cannot fail for 16 bytes once the kernel's pool is ready, which it waits for. */
    ssize_t n = getrandom(b, sizeof(b), 0);
    assert(n == (ssize_t)sizeof(b));
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    snprintf(text, UUID_TEXT_BYTES, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
             b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

/* Where the pointer to the export of this name is; where the list ends if there is none. */
static struct export **export_find(struct exports *exports, const uint8_t *name, size_t name_bytes)
{
    struct export **at = &exports->first;
    while (*at != NULL && (strlen((*at)->name) != name_bytes || memcmp((*at)->name, name, name_bytes) != 0)) {
        at = &(*at)->next;
    }
    return at;
}

/* The export that a client names, with or without the suffix; NULL if there is none. */
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

static int export_new(struct export **out, const char *name, uint64_t size_bytes, const struct exports *exports)
{
    struct export *export = calloc(1, sizeof(*export));
    if (export == NULL) {
        return -ENOMEM;
    }
    int rc = store_open(&export->store, size_bytes);
    if (rc < 0) {
        free(export);
        return rc;
    }
    snprintf(export->name, sizeof(export->name), "%s", name);
    uuid_make(export->incarnation);
    export->donor_id = exports->donor_id;
    export->machine = exports->machine;
    atomic_store(&export->active_at_ms, clock_coarse_ms());
    *out = export;
    return 0;
}

int export_add(struct exports *exports, const char *name, uint64_t size_bytes, uint64_t *free_bytes)
{
    if (!name_is_valid(name) || size_bytes == 0 || size_bytes > INT64_MAX - STORE_PAGE_BYTES) {
        return -EINVAL;
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
        rc = export_new(at, name, size_bytes, exports);
    }
    if (rc == 0) {
        exports->exported_bytes += needed_bytes;
        exports->n_exports++;
    }
    pthread_mutex_unlock(&exports->lock);
    return rc;
}

/* Waits, under the lock, until the export has no clients. Returns false if some are left. */
static bool clients_wait(struct exports *exports, const struct export *export)
{
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += DETACH_LIMIT_S;
    int rc = 0;
    while (export->n_clients > 0 && rc == 0) {
        rc = pthread_cond_timedwait(&exports->detached, &exports->lock, &deadline);
    }
    return export->n_clients == 0;
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
    for (struct export_client *client = export->clients; client != NULL; client = client->next) {
        shutdown(client->fd, SHUT_RDWR);
    }
    bool alone = clients_wait(exports, export);
    if (alone) {
        exports->exported_bytes -= export->store.mapped_bytes;
    } else {
        export->removed = true;
        log_error("export '%s': %u connections did not end: its memory is kept until they do", export->name,
                  export->n_clients);
    }
    pthread_mutex_unlock(&exports->lock);
    /* Here and not in the last client's detach: unmapping takes long, and that thread serves other clients. */
    if (alone) {
        export_free(export);
    }
    return 0;
}

/* Under the lock. Ends the writers; returns whether there are any. */
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

enum attach_result export_attach(struct exports *exports, const uint8_t *name, size_t name_bytes,
                                 struct export_client *client)
{
    enum attach_result result = ATTACH_UNKNOWN;
    bool writer;
    pthread_mutex_lock(&exports->lock);
    struct export *export = export_named(exports, name, name_bytes, &writer);
    if (export != NULL) {
        result = writer && writers_end(export) ? ATTACH_WAIT : ATTACH_DONE;
    }
    if (result == ATTACH_DONE) {
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
    atomic_store(&export->active_at_ms, clock_coarse_ms());
    bool last_of_removed = export->removed && export->n_clients == 0;
    if (last_of_removed) {
        exports->exported_bytes -= export->store.mapped_bytes;
    }
    pthread_cond_broadcast(&exports->detached);
    pthread_mutex_unlock(&exports->lock);
    if (last_of_removed) {
        export_free(export);
    }
}

uint64_t exports_total_bytes(struct exports *exports)
{
    pthread_mutex_lock(&exports->lock);
    uint64_t total = exports->exported_bytes;
    pthread_mutex_unlock(&exports->lock);
    return total;
}

void exports_visit(struct exports *exports, export_visitor visit, void *ctx)
{
    pthread_mutex_lock(&exports->lock);
    for (const struct export *export = exports->first; export != NULL; export = export->next) {
        visit(ctx, export);
    }
    pthread_mutex_unlock(&exports->lock);
}

int export_visit(struct exports *exports, const uint8_t *name, size_t name_bytes, export_visitor visit, void *ctx)
{
    pthread_mutex_lock(&exports->lock);
    const struct export *export = *export_find(exports, name, name_bytes);
    if (export != NULL) {
        visit(ctx, export);
    }
    pthread_mutex_unlock(&exports->lock);
    return export != NULL ? 0 : -ENOENT;
}
