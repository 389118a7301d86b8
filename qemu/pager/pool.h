/* SPDX-License-Identifier: MIT */
/*
 * The pool: pages of remote memory, and where each of them lies.
 *
 * The pool is cut into extents. An extent has up to COPIES_MAX copies, each in a slot (a piece of extent_bytes of an
 * export) of another donor, and on another host unless --allow-same-host. Extents are dealt out in turn by the
 * donors' sizes, so that bulk work uses all links. What the exports have beyond that is spare room, for rebuilds.
 *
 * A copy is
 *   CURRENT  of every page that some donor holds and that is not dirty here, it has the bytes that page.checksum is
 *            of: it may be read
 *   FILLING  is being brought up to date (rebuild.c): takes every write, is never read
 *   STALE    missed a write, or its filling was broken off: takes no write, is never read
 *
 * It is one word of 8 bytes, replaced by one store, in the state file if there is one (state.h). Only the evict
 * thread changes it; others load it. Rules for whoever does:
 *
 *   1. A copy that missed a write is STALE before the page loses PAGE_F_DIRTY.
 *   2. A copy is FILLING before the first of its pages is read from another, CURRENT after the last one was written;
 *      a page whose write is under way (PAGE_F_IO), or that is being discarded, when its turn comes is visited again.
 *   3. The last CURRENT copy of an extent stays, whatever became of its donor.
 *   4. Pages go on without their copy on a backup donor, which is written behind; they keep PAGE_F_IO until it has
 *      the write, or is STALE. Recovery cannot tell, so there it is STALE.
 *   5. A slot that was given up is trimmed before it is used again, and that not before all writes to it have ended.
 */
#ifndef GHOSTBOX_POOL_H
#define GHOSTBOX_POOL_H

#include "donor.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define COPIES_MAX   4
#define REPLICAS_MAX 2

enum copy_state { COPY_NONE = 0, COPY_CURRENT, COPY_FILLING, COPY_STALE, COPY_STATES };

struct copy {
    uint32_t slot; /* on the donor: byte offset / extent_bytes */
    uint16_t donor;
    uint8_t state; /* enum copy_state */
    uint8_t turn;  /* counts its changes, so that no two words of a place in a row are alike */
};
static_assert(sizeof(struct copy) == 8, "replaced by one store");

struct extent {
    _Atomic uint64_t words[COPIES_MAX]; /* struct copy */
};

static inline struct copy copy_of_word(uint64_t word)
{
    struct copy copy;

    memcpy(&copy, &word, sizeof(copy));
    return copy;
}

static inline uint64_t copy_word(const struct extent *extent, uint32_t index)
{
    return atomic_load_explicit(&extent->words[index], memory_order_acquire);
}

static inline struct copy copy_load(const struct extent *extent, uint32_t index)
{
    return copy_of_word(copy_word(extent, index));
}

/* Evict thread only. */
void copy_store(struct extent *extent, uint32_t index, struct copy copy);

struct pool {
    struct donor donors[DONORS_MAX];
    _Atomic uint32_t n_donors; /* grows while the threads run: an entry is whole before it counts */
    uint64_t extent_bytes;
    uint32_t extent_pages;
    struct extent *extents;
    bool extents_shared; /* they lie in the state file */
    uint32_t n_extents;
    uint32_t replicas;
    bool allow_same_host;
};

struct pool_wishes {
    char *const *uris;
    uint32_t n_uris;
    const char *backup;    /* URI, or NULL */
    uint64_t extent_bytes; /* 0 chooses: 16 MiB, or less where a donor's size is no multiple */
    uint64_t pool_bytes;   /* 0: all that fits */
    uint32_t replicas;
    bool allow_same_host;
    bool libnbd_only;
};

/* Connects every channel of every donor and deals out the extents. Returns 0, or -errno with a message for the user
 * in text. */
int pool_open(struct pool *pool, const struct pool_wishes *wishes, char *text, size_t text_bytes);
/*
 * Takes over a pool that an earlier pager opened: all of the pool's fields and each donor's uri, identity, sizes and
 * flags are set. Nothing is connected yet: each loop connects its channels, and a donor that is away keeps nobody
 * else waiting. Copies that were being filled, or written behind, are STALE now. -EINVAL: the extents are not valid.
 */
int pool_inherit(struct pool *pool);
void pool_close(struct pool *pool);
uint64_t pool_bytes(const struct pool *pool);

/* Pages from this one on to the end of its extent. */
static inline uint32_t pool_left(const struct pool *pool, uint32_t page)
{
    return pool->extent_pages - page % pool->extent_pages;
}

/* Where a pool page lies. */
struct place {
    struct donor *donor;
    uint64_t offset;
    uint32_t copy; /* its index, and its word as it was: once that has changed, what was read here means nothing */
    uint64_t word;
};

/*
 * The best copy to read a page from by channels of this class: CURRENT, its donor not lost, its index not in the mask
 * of those tried; connected before not, not slow before slow, not backup before backup, then by latency. False if
 * there is none. Any thread.
 */
bool pool_pick(const struct pool *pool, uint32_t page, enum channel_class class, uint32_t tried_mask,
               struct place *place);
/* Whether any copy's donor can be reached by channels of this class. Any thread. */
bool pool_reaches(const struct pool *pool, uint32_t page, enum channel_class class);
/* The same by demand reads; if there is none, any copy, to name it. */
struct place pool_place(const struct pool *pool, uint32_t page);
struct place pool_place_of(const struct pool *pool, uint32_t page, uint32_t index, uint64_t word);

/*
 * Looks at the connections of these classes, on the thread whose they are: pulse.h. What they give up is on their
 * done lists then. Returns when to look again.
 */
uint64_t pool_look(struct pool *pool, enum channel_class first, enum channel_class last, int epoll_fd,
                   uint64_t slow_ns);

/* Whether copies of an extent may lie on both. */
bool pool_apart(const struct pool *pool, const struct donor *a, const struct donor *b);
/* How many extents with this many copies each fit on the donors that are not in the mask of those left out. */
uint32_t pool_fits(const struct pool *pool, uint64_t without_mask);

#endif
