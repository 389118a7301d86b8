/* SPDX-License-Identifier: MIT */
/*
 * The exports: each has a name, a size and a store. One lock guards the list of exports, the sum of their sizes and
 * the lists of attached clients. Attaching, detaching and the control socket take it; requests do not.
 *
 * An export lives until it was removed and its last client has detached; its bytes count against the limit until
 * then.
 *
 * Keys. Only clients that have shown an export's key over TLS see the export, and they see no other export; the key's
 * identity is the export's name. The client's right is bound to the incarnation of the export: when the export was
 * removed, it does not extend to a new export of the same name.
 */
#ifndef GHOSTBOX_MEMSERVER_EXPORTS_H
#define GHOSTBOX_MEMSERVER_EXPORTS_H

#include "common/psk.h"
#include "memserver/clients.h"
#include "memserver/store.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT_NAME_MAX 255u
#define EXPORTS_MAX     4096u
#define UUID_TEXT_BYTES 37
#define DONOR_ID_MAX    64u /* bytes of a donor's id, and of a machine's name */

/*
 * A client that asks for NAME?writer is the export's only writer: the connection of the writer before it is shut
 * down, and the new writer is attached when the old one has detached, that is, when each request of the old one is
 * done or dropped. So a client that connects again (or takes over from a client that died) knows that no earlier
 * write will land on a later one.
 */
#define EXPORT_WRITER_SUFFIX "?writer"

/*
 * ATTACH_UNKNOWN: no export that the viewer may see has this name. ATTACH_NEEDS_TLS: the export has a key, and the
 * viewer is no TLS client. ATTACH_WAIT: another writer has not detached yet; the caller asks again. ATTACH_TOO_MANY:
 * the export's client has as many connections as it may have.
 */
enum attach_result { ATTACH_DONE, ATTACH_UNKNOWN, ATTACH_NEEDS_TLS, ATTACH_WAIT, ATTACH_TOO_MANY };

/* The client that looks for exports. Zeroed, it is a client without TLS. */
struct export_viewer {
    bool tls;
    char incarnation[UUID_TEXT_BYTES]; /* of the export whose key the client has shown */
    uint64_t epoch;                    /* of the export's client at that time: client-close ends the viewer's right */
};

/* A client of an export. It is a part of its connection. fd must stay open while attached: removal shuts it down. */
struct export_client {
    bool writer;
    bool ending; /* client-close has shut it down */
    struct export *export;
    struct export_client *next;
    struct export_client **link;
    int fd;
};

struct export
{
    struct store store;
    char name[EXPORT_NAME_MAX + 1];
    char incarnation[UUID_TEXT_BYTES]; /* random; an export made anew has another one */
    const char *donor_id;              /* --donor-id, or NULL */
    const char *machine;               /* --machine, or NULL */
    struct psk psk;                    /* n_bytes is 0 if only clients without TLS may use the export */
    struct client *client;             /* whose limits and counters hold for it, or NULL */
    _Atomic int64_t active_at_ms;      /* when a client attached, detached or sent a request last */

    /* Guarded by the lock of struct exports. */
    bool removed;
    unsigned n_clients;
    struct export_client *clients;
    struct export *next;
};

struct exports {
    pthread_mutex_t lock;
    pthread_cond_t detached;
    const char *donor_id, *machine; /* each export that is made gets them */
    bool tls_required;              /* each export has a key, and nothing is answered without TLS */
    unsigned n_keys;                /* exports that have a key */
    uint64_t limit_bytes;
    uint64_t exported_bytes;
    unsigned n_exports;
    struct export *first;
    struct clients clients;
};

/* Makes an empty list. All exports together may have limit_bytes. */
void exports_open(struct exports *exports, uint64_t limit_bytes);
/* Frees all exports. No client may be attached. */
void exports_close(struct exports *exports);

/*
 * Makes an export; it has no key if psk is NULL. client_id is the id of its client, which must be valid, or NULL.
 * Returns 0, -EINVAL (name or size), -EEXIST, -ENOSPC (over the limit), -E2BIG (too many exports), -ENOKEY (a key is
 * required), -ENAMETOOLONG (as a key's identity) or -ENOMEM (also: too many clients). *free_bytes is set to what was
 * left of the limit with 0, -EEXIST, -ENOSPC and -E2BIG. May be called in any thread, as all functions below.
 */
int export_add(struct exports *exports, const char *name, uint64_t size_bytes, const struct psk *psk,
               const char *client_id, uint64_t *free_bytes);
/*
 * Removes an export. Returns 0, -ENOENT, or -EBUSY if clients are attached and force is false. With force it shuts
 * their connections down and waits until they have detached, 10 s at most; the memory of an export whose clients stay
 * longer is freed when the last one detaches.
 */
int export_remove(struct exports *exports, const char *name, bool force);

/*
 * Attaches a client to the export of this name, which may end in EXPORT_WRITER_SUFFIX. The name has name_bytes bytes
 * and no '\0' at its end.
 */
enum attach_result export_attach(struct exports *exports, const struct export_viewer *viewer, const uint8_t *name,
                                 size_t name_bytes, struct export_client *client);
/* Detaches a client; does nothing if it is not attached. */
void export_detach(struct exports *exports, struct export_client *client);

/*
 * Sets limits of a client, which is made if there is none of this id, or dropped if nothing is left of it. They hold
 * for what is written, sent and connected from now on. Returns 0 or -ENOMEM (also: too many clients).
 */
int exports_set_client(struct exports *exports, const char *client_id, const struct client_limits *limits);
/*
 * Shuts down all connections of a client's exports, and waits until they have detached, 10 s at most. A client that
 * has shown a key before and has opened no export yet has to show it again. Returns how many connections there were,
 * or -ENOENT.
 */
int exports_close_client(struct exports *exports, const char *client_id);
typedef void (*client_visitor)(void *ctx, const struct client *client);
/* Calls visit for each client, or for the one of this id, under the lock. */
void clients_visit(struct exports *exports, const char *client_id, client_visitor visit, void *ctx);

/* The sum of the exports' sizes, in whole pages. */
uint64_t exports_total_bytes(struct exports *exports);
/* Whether an export has a key, or each export that is made will have one. */
bool exports_have_keys(struct exports *exports);

typedef void (*export_visitor)(void *ctx, const struct export *export);
/* Calls visit for each export that the viewer may see, under the lock. With viewer NULL it visits all exports. */
void exports_visit(struct exports *exports, const struct export_viewer *viewer, export_visitor visit, void *ctx);
/*
 * Calls visit for the export of this name, under the lock. Returns 0, -ENOENT, or -ENOKEY if the export has a key and
 * the viewer is no TLS client.
 */
int export_visit(struct exports *exports, const struct export_viewer *viewer, const uint8_t *name, size_t name_bytes,
                 export_visitor visit, void *ctx);

/* Monotonic time in milliseconds, as of the last tick of the kernel: cheap enough for each batch of requests. */
int64_t clock_coarse_ms(void);

#endif
