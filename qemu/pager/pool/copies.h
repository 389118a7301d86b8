/* SPDX-License-Identifier: MIT */
/*
 * Copies of extents, and all changes of them.
 *
 * A copy is
 *   CURRENT  it may be read: of each page that some donor holds and that is not dirty here, it has the bytes of which
 *            page.checksum is the checksum
 *   FILLING  it is being brought up to date (fill.c): it takes all writes
 *   STALE    it missed a write, or its filling was broken off: it takes no writes
 *
 * A FILLING or STALE copy is asked for a page only if no CURRENT copy can be, and its bytes count only if they have
 * the page's checksum (failover.c).
 *
 * A copy is one word of 8 bytes, which is replaced by one store; it lies in the state file if there is one (state.h).
 * Only the evict thread changes it, by the functions below; other threads load it. Code that changes a copy keeps
 * these rules:
 *
 *   1. A copy that missed a write is STALE before the page loses PAGE_F_DIRTY.
 *   2. A copy is FILLING before the first of its pages is read from another copy, and CURRENT after the last one was
 *      written. A page whose write is under way (PAGE_F_IO), or that is being discarded, is left out and visited
 * again.
 *   3. The last CURRENT copy of an extent stays, whatever becomes of its donor.
 *   4. Copies on a backup are written behind: a page may leave before its copy there has the write. The page keeps
 *      PAGE_F_IO until that copy has the write or is STALE. A pager that takes over cannot tell, so it makes these
 *      copies STALE.
 *   5. A slot that was given up is trimmed before it is used again, but only after all writes to it have ended.
 */
#ifndef GHOSTBOX_PAGER_COPIES_H
#define GHOSTBOX_PAGER_COPIES_H

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define COPIES_MAX 4

enum copy_state { COPY_NONE = 0, COPY_CURRENT, COPY_FILLING, COPY_STALE, COPY_STATES };

struct copy {
    uint32_t slot;  /* its number on the donor: offset in the export / extent_bytes */
    uint16_t donor; /* its number in the pool */
    uint8_t state;  /* enum copy_state */
    uint8_t turn;   /* counts changes, so that the words of a place differ from one change to the next */
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

/* The functions below are called on the evict thread only, or before the threads start. */

/*
 * Puts a copy in this place of the extent, whatever is there; also gives the donor of the same copy another number.
 */
void copy_put(struct extent *extent, uint32_t index, struct copy copy);
/* Empties this place of the extent. */
void copy_remove(struct extent *extent, uint32_t index);
/* Makes a FILLING copy CURRENT, after the last of its pages was written. */
void copy_complete(struct extent *extent, uint32_t index);
/* Makes a STALE copy CURRENT, as it is the best that is left; the checksums of its pages tell which are good. */
void copy_trust(struct extent *extent, uint32_t index);
/* Makes a copy STALE. */
void copy_outdate(struct extent *extent, uint32_t index);
/*
 * Makes a copy STALE that missed a write, or is bad: if the place still holds the copy that `word` names, and the
 * copy is CURRENT or FILLING. Returns whether it did.
 */
bool copy_missed(struct extent *extent, uint32_t index, uint64_t word);

#endif
