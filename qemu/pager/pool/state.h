/* SPDX-License-Identifier: MIT */
/*
 * The state file (--state): all that a new pager needs to go on where a dead one stopped. It lies on a tmpfs, is
 * mapped shared and is used in place. So it is always as new as the last instruction of the process that died.
 * pages.h has the rules by which each page's entry is true at any instruction. The same holds for the records here,
 * because the last store of a record is the one that makes it valid (state_header.magic, state_region.status).
 *
 * The file leaves out what can be found out: which pages are in the memfds (SEEK_DATA), which were written since they
 * were mapped (the pagemap of the process), which pages were on which list, and which work was under way.
 *
 * The pager holds a lock on the file for as long as it lives. All blocks of the file are taken at the start: a full
 * file system is an error then, and never a SIGBUS later.
 */
#ifndef GHOSTBOX_PAGER_STATE_H
#define GHOSTBOX_PAGER_STATE_H

#include "memory/kernel_features.h"
#include "memory/region.h"
#include "page/pages.h"
#include "pool/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STATE_URI_BYTES      1024
#define STATE_IDENTITY_BYTES 504
/* The end of identity[] holds the donor's machine if the identity leaves room; earlier pagers left zeroes there. */
#define STATE_MACHINE_BYTES 80
#define STATE_MACHINE_AT    (STATE_IDENTITY_BYTES - STATE_MACHINE_BYTES)

struct state_donor {
    char uri[STATE_URI_BYTES];
    char identity[STATE_IDENTITY_BYTES];
    uint64_t export_bytes;
    uint32_t can_trim;
    _Atomic uint32_t flags;           /* enum state_donor_flags */
    _Atomic uint64_t checksum_errors; /* of all pagers so far, so that they are known after a takeover, too */
};

enum state_donor_flags {
    STATE_DONOR_BACKUP = 1 << 0,
    STATE_DONOR_LOST = 1 << 1,
    STATE_DONOR_DRAINING = 1 << 2,
    STATE_DONOR_REMOVED = 1 << 3,
};

enum state_region_status { STATE_REGION_FREE = 0, STATE_REGION_SERVED, STATE_REGION_LEAVING };

struct state_region {
    uint64_t base, length, memfd_offset;
    uint64_t memfd_device, memfd_inode;
    uint64_t process_started; /* ticks after boot, by which the process differs from a later one with the same id */
    uint32_t first_page, n_pages;
    int32_t pid;
    char comm[16];
    _Atomic uint32_t status; /* enum state_region_status */
};

struct state_header {
    char magic[8]; /* written last */
    uint32_t header_bytes, page_bytes;
    uint64_t extents_offset, pages_offset, file_bytes;
    uint64_t extent_bytes;
    uint64_t features; /* a bit for each enum feature that is in use */
    _Atomic uint64_t cache_bytes;
    uint32_t n_pages, n_extents, keep;
    _Atomic uint32_t n_donors; /* an entry of donors[] is whole before n_donors counts it */
    uint32_t replicas, allow_same_host;
    struct state_region regions[REGIONS_MAX];
    struct state_donor donors[DONORS_MAX];
};

struct state {
    const char *path; /* NULL: no state is kept */
    int fd;
    pthread_mutex_t donors_lock; /* guards writes to donors[] (the pager's lock is not held for them) */
    struct state_header *header;
};

/*
 * Makes the file for an open pool, whose extents lie in the file from then on. Returns 0, or -errno with an error for
 * people in text; -EBUSY if another pager uses the file, or it holds the pages of a process that still runs.
 */
int state_create(struct state *state, const char *path, struct pool *pool, const struct features *features, bool keep,
                 char *text, size_t text_bytes);
/* Opens the file that another pager left. Returns 0, or -errno with an error for people in text. */
int state_open(struct state *state, const char *path, char *text, size_t text_bytes);
/*
 * Checks whether this program could go on with a file that a pager may still use: returns what state_open() and
 * state_restrict_features() would return, but locks, changes and keeps nothing.
 */
int state_check(const char *path, const struct features *features, char *text, size_t text_bytes);
/*
 * Reduces the features that the probe found to those that the earlier pager used. Returns 0, or -ENOTSUP with an
 * error for people in text if one of these is missing.
 */
int state_restrict_features(const struct state *state, struct features *features, char *text, size_t text_bytes);
/* Closes the file, and removes it unless keep_file. Does nothing if no state is kept. */
void state_close(struct state *state, bool keep_file);

/* Whether the path still leads to the file that is open. */
bool state_file_there(const struct state *state);
/* Returns the extents in the file. */
struct extent *state_extents(const struct state *state);
/* Returns the page entries in the file, or NULL if no state is kept. */
struct page *state_pages(const struct state *state);
/* Fills in the pool as the earlier pager knew it; the extents stay in the file. Returns 0 or -errno. */
int state_pool(const struct state *state, struct pool *pool, bool libnbd_only);

/* The functions below do nothing if no state is kept. */

/* Writes the size of the cache. */
void state_set_cache(struct state *state, uint64_t cache_bytes);
/* Adds a donor. Returns 0, or -ENAMETOOLONG with an error for people in text. */
int state_add_donor(struct state *state, struct donor *donor, char *text, size_t text_bytes);
/* Writes the donor's flags. */
void state_set_donor(struct state *state, uint32_t index, const struct donor *donor);
/* Writes a region's record, as STATE_REGION_SERVED. */
void state_put_region(struct state *state, const struct region *region);
/* Writes a region's status. */
void state_set_region(struct state *state, uint32_t id, enum state_region_status status);

/* Returns when a process started, in ticks after boot (field 22 of /proc/PID/stat); 0 if there is no such process. */
uint64_t process_start_ticks(int32_t pid);

#endif
