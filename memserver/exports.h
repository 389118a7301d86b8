/* SPDX-License-Identifier: MIT */
/*
 * The exports: a name, a size and a store each. One lock guards the list, the sum of sizes and who is attached to
 * what; no request takes it, only attaching, detaching and the control socket do.
 *
 * An export lives until it was removed and its last client has detached; its bytes count against the limit until
 * then.
 */
#ifndef GHOSTBOX_MEMSERVER_EXPORTS_H
#define GHOSTBOX_MEMSERVER_EXPORTS_H

#include "memserver/store.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT_NAME_MAX 255u
#define EXPORTS_MAX     4096u
#define UUID_TEXT_BYTES 37
#define DONOR_ID_MAX    64u /* of a machine's name, too */

/*
 * A client that asks for NAME?writer is its export's only writer: the one before is ended, and the new one is
 * attached when the old one has detached, so when all that it had sent is done or dropped. By this a client that
 * connects again (or takes over from one that died) knows that no earlier write of its own will land on a later one.
 */
#define EXPORT_WRITER_SUFFIX "?writer"

enum attach_result { ATTACH_DONE, ATTACH_UNKNOWN, ATTACH_WAIT /* for the end of another writer: ask again */ };

/* Embedded in a connection. fd must stay open while attached: removal shuts it down. */
struct export_client {
    bool writer;
    struct export *export;
    struct export_client *next;
    struct export_client **link;
    int fd;
};

struct export
{
    struct store store;
    char name[EXPORT_NAME_MAX + 1];
    char incarnation[UUID_TEXT_BYTES]; /* another one means other memory */
    const char *donor_id;              /* whose memory it is; NULL: nobody said */
    const char *machine;               /* where it lies; NULL: nobody said */
    _Atomic int64_t active_at_ms;      /* when a client last did something */
    bool removed;                      /* the rest is under the lock of struct exports */
    unsigned n_clients;
    struct export_client *clients;
    struct export *next;
};

struct exports {
    pthread_mutex_t lock;
    pthread_cond_t detached;
    const char *donor_id, *machine; /* of all exports that are made from now on */
    uint64_t limit_bytes;
    uint64_t exported_bytes;
    unsigned n_exports;
    struct export *first;
};

void exports_open(struct exports *exports, uint64_t limit_bytes);
/* No client may be attached. */
void exports_close(struct exports *exports);

/*
 * Returns 0, -EINVAL (name or size), -EEXIST, -ENOSPC (over the limit; *free_bytes says what is left), -E2BIG (too
 * many exports) or -ENOMEM. free_bytes may not be NULL.
 */
int export_add(struct exports *exports, const char *name, uint64_t size_bytes, uint64_t *free_bytes);
/* Returns 0, -ENOENT or -EBUSY (clients are attached, and not force). Waits until the clients are gone, 10 s at most.
 */
int export_remove(struct exports *exports, const char *name, bool force);

/* The name is name_bytes long, not terminated. ATTACH_UNKNOWN: there is no such export. */
enum attach_result export_attach(struct exports *exports, const uint8_t *name, size_t name_bytes,
                                 struct export_client *client);
void export_detach(struct exports *exports, struct export_client *client);

uint64_t exports_total_bytes(struct exports *exports);

typedef void (*export_visitor)(void *ctx, const struct export *export);
/* Calls visit for each export, under the lock. */
void exports_visit(struct exports *exports, export_visitor visit, void *ctx);
/* The same for the one of this name. Returns 0 or -ENOENT. */
int export_visit(struct exports *exports, const uint8_t *name, size_t name_bytes, export_visitor visit, void *ctx);

/* Monotonic milliseconds, coarse (a tick): cheap enough for each batch of requests. */
int64_t clock_coarse_ms(void);

#endif
