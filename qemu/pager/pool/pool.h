/* SPDX-License-Identifier: MIT */
/*
 * The pool: pages of remote memory, and where each of them lies.
 *
 * The pool is cut into extents. An extent has up to COPIES_MAX copies, each in a slot (a piece of extent_bytes of an
 * export) of another donor, and on another host unless --allow-same-host is given. Extents are dealt out in turn, in
 * proportion to the donors' sizes, so that bulk work uses all links. The rest of the exports is spare room, for
 * rebuilds. copies.h has the states of a copy.
 */
#ifndef GHOSTBOX_POOL_H
#define GHOSTBOX_POOL_H

#include "donor/donor.h"
#include "pool/copies.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define REPLICAS_MAX 2

struct pool {
    struct donor donors[DONORS_MAX];
    _Atomic uint32_t n_donors; /* it grows while the threads run; an entry is whole before n_donors counts it */
    uint64_t extent_bytes;
    uint32_t extent_pages;
    struct extent *extents;
    bool extents_shared; /* the extents lie in the state file */
    uint32_t n_extents;
    uint32_t replicas;
    bool allow_same_host;
};

/* What the options ask of a new pool. */
struct pool_wishes {
    const char *const *uris;
    uint32_t n_uris;
    const char *backup;    /* URI, or NULL */
    uint64_t extent_bytes; /* 0: 16 MiB, or less if a donor's size is no multiple of that */
    uint64_t pool_bytes;   /* 0: all that fits */
    uint32_t replicas;
    bool allow_same_host;
    bool libnbd_only;
};

/*
 * Connects all channels of all donors and deals out the extents. Returns 0, or -errno with an error for people in
 * text; then the caller calls pool_close() all the same. Before the threads start.
 */
int pool_open(struct pool *pool, const struct pool_wishes *wishes, char *text, size_t text_bytes);
/*
 * Takes over a pool that an earlier pager opened. The caller has set all fields of the pool, and each donor's uri,
 * identity, host, sizes and flags. The channels are down; each loop connects its own, so that a donor that is away
 * holds up no other. Copies that were being filled, or are written behind, become STALE. Returns 0, -ENOMEM, or
 * -EINVAL if the extents are not valid. Before the threads start.
 */
int pool_inherit(struct pool *pool);
/* Closes all donors and frees the extents. After the threads have ended. */
void pool_close(struct pool *pool);
/* Returns how many bytes of memory the pool offers to regions. */
uint64_t pool_bytes(const struct pool *pool);

/* Returns how many pages there are from this one, itself included, to the end of its extent. */
static inline uint32_t pool_left(const struct pool *pool, uint32_t page)
{
    return pool->extent_pages - page % pool->extent_pages;
}

/* Where a copy of a pool page lies. */
struct place {
    struct donor *donor;
    uint64_t offset; /* in the donor's export */
    uint32_t copy;   /* the index of the copy in its extent */
    uint64_t word;   /* the copy's word then: if it has changed since, bytes that were read here do not count */
};

/*
 * Finds the best copy to read a page from by channels of this class. The copy must be CURRENT, its donor neither lost
 * nor removed, and its index not in the mask of those tried. Connected donors come first, then those that are not
 * slow, then those that are no backup, then those with less latency. Returns false if there is none. In any thread.
 */
bool pool_pick(const struct pool *pool, uint32_t page, enum channel_class class, uint32_t tried_mask,
               struct place *place);
/* Whether a donor with a CURRENT copy of the page is connected by a channel of this class. In any thread. */
bool pool_reaches(const struct pool *pool, uint32_t page, enum channel_class class);
/* Returns the best copy for demand reads or, if there is none, some copy, so that a message can name its donor. */
struct place pool_place(const struct pool *pool, uint32_t page);
/* Returns where the page lies in the copy with this index and word. */
struct place pool_place_of(const struct pool *pool, uint32_t page, uint32_t index, uint64_t word);

/*
 * Looks at the connections of these classes, on the thread that owns them: liveness.h. The requests of connections
 * that it breaks are on the done lists afterwards. Returns when to look again.
 */
uint64_t pool_look(struct pool *pool, enum channel_class first, enum channel_class last, int epoll_fd,
                   uint64_t slow_ns);

/* Whether two copies of an extent may lie on these donors. */
bool pool_apart(const struct pool *pool, const struct donor *a, const struct donor *b);
/* Returns how many extents, with pool->replicas copies each, fit on the donors that are not in the mask. */
uint32_t pool_fits(const struct pool *pool, uint64_t without_mask);

#endif
