/* SPDX-License-Identifier: MIT */
/*
 * The state file (--state): all that a new pager needs to go on where a dead one stopped. It lies on a tmpfs, is
 * mapped shared and used in place: nothing is ever "written out", so it is as new as the last instruction of the
 * process that died. pages.h has the rules that make each page's entry true at any instruction; here the same holds
 * because a record's last store is the one that makes it count (state_header.magic, state_region.status).
 *
 * What is not in it, because it can be found out: what lies in the memfds (SEEK_DATA), what was written since it was
 * mapped (the pagemap of the process), which pages were on which list, what was under way.
 *
 * The pager holds a lock on the file for as long as it lives. All of its blocks are taken at the start: a full file
 * system is an error then, and never a SIGBUS later.
 */
#ifndef GHOSTBOX_PAGER_STATE_H
#define GHOSTBOX_PAGER_STATE_H

#include "kernel_features.h"
#include "pages.h"
#include "pool.h"
#include "region.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STATE_URI_BYTES      1024
#define STATE_IDENTITY_BYTES 504
/* The end of identity[] holds the donor's machine, where the identity leaves room; earlier pagers left zeroes there.
 */
#define STATE_MACHINE_BYTES 80
#define STATE_MACHINE_AT    (STATE_IDENTITY_BYTES - STATE_MACHINE_BYTES)

struct state_donor {
    char uri[STATE_URI_BYTES];
    char identity[STATE_IDENTITY_BYTES];
    uint64_t export_bytes;
    uint32_t can_trim;
    _Atomic uint32_t flags;           /* enum state_donor_flags */
    _Atomic uint64_t checksum_errors; /* of all pagers so far: who changes bytes is named beyond a pager's end */
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
    uint64_t process_started; /* ticks after boot: tells a process from a later one with its id */
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
    _Atomic uint32_t n_donors; /* those before it are whole */
    uint32_t replicas, allow_same_host;
    struct state_region regions[REGIONS_MAX];
    struct state_donor donors[DONORS_MAX];
};

struct state {
    const char *path; /* NULL: no state is kept */
    int fd;
    pthread_mutex_t donors_lock; /* writing donors, for which the pager's lock is not held */
    struct state_header *header;
};

/*
 * Makes the file for a pool that is open, whose extents lie in it from then on. Returns 0, or -errno with a message
 * for the user in text; -EBUSY: another pager uses it, or it holds the pages of a process that still runs.
 */
int state_create(struct state *state, const char *path, struct pool *pool, const struct features *features, bool keep,
                 char *text, size_t text_bytes);
/* Opens the file that another pager left. Returns the same. */
int state_open(struct state *state, const char *path, char *text, size_t text_bytes);
/*
 * Whether this program could go on with the file of a pager that may still use it: what state_open() and
 * state_restrict_features() would say, but nothing is locked, changed or kept. Returns the same.
 */
int state_check(const char *path, const struct features *features, char *text, size_t text_bytes);
/* What was found by the probe, reduced to what the earlier pager used. -ENOTSUP with a text if something lacks. */
int state_restrict_features(const struct state *state, struct features *features, char *text, size_t text_bytes);
/* The file goes too, unless another pager is to go on with it. NULL path: nothing. */
void state_close(struct state *state, bool keep_file);

/*
 * Makes the file anew if its path leads elsewhere, and goes on in it; *made says whether it did. With the pager's
 * lock, in the thread that changes extents and regions: all else that lies in the file stands still. Returns 0, or
 * -errno with a text: then all goes on in the file that nobody can find any more.
 */
int state_restore(struct state *state, struct pool *pool, bool *made, char *text, size_t text_bytes);

/*
 * Where all of its places for donors are taken: those that were removed and hold nothing are left out, before anybody
 * knows the others by their numbers. The file is replaced by one step, so that a crash leaves it as it was. If that
 * fails, the log has it, and all stays as it is.
 */
void state_forget_removed(struct state *state);

/* Whether the file that is open is the one that its path leads to. */
bool state_file_there(const struct state *state);
struct extent *state_extents(const struct state *state);
struct page *state_pages(const struct state *state);
/* The pool as the earlier pager knew it, its extents in the file. Returns 0 or -errno. */
int state_pool(const struct state *state, struct pool *pool, bool libnbd_only);

/* All of these do nothing where no state is kept. */
void state_set_cache(struct state *state, uint64_t cache_bytes);
/* A donor that came later. -ENAMETOOLONG with a text. */
int state_add_donor(struct state *state, struct donor *donor, char *text, size_t text_bytes);
/* Its flags have changed. */
void state_set_donor(struct state *state, uint32_t index, const struct donor *donor);
void state_put_region(struct state *state, const struct region *region);
void state_set_region(struct state *state, uint32_t id, enum state_region_status status);

/* When this process started (field 22 of /proc/PID/stat), 0 if there is none. */
uint64_t process_start_ticks(int32_t pid);

#endif
