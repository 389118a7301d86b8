/* SPDX-License-Identifier: MIT */
#include "pool/state.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * The last character is the format's version. It covers all that is in the file, also struct page and enum feature.
 */
static const char MAGIC[8] = {'G', 'B', 'P', 'A', 'G', 'E', 'S', '3'};

static_assert(sizeof(struct state_region) % 8 == 0 && sizeof(struct state_donor) % 8 == 0, "no holes at the ends");

uint64_t process_start_ticks(int32_t pid)
{
    char path[32], text[1024];
    unsigned long long ticks = 0;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof(text) - 1);

    close(fd);
    text[length > 0 ? length : 0] = '\0';
    /*
     * The second field, the command, may contain any character, so the fields are counted from its closing bracket.
     */
    const char *at = strrchr(text, ')');

    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at && sscanf(at, " %llu", &ticks) == 1 ? ticks : 0;
}

static uint64_t round_up(uint64_t bytes)
{
    return (bytes + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1);
}

bool state_file_there(const struct state *state)
{
    struct stat named, ours;

    return stat(state->path, &named) == 0 && fstat(state->fd, &ours) == 0 && named.st_dev == ours.st_dev &&
           named.st_ino == ours.st_ino;
}

/* Opens and locks the file. Returns 0, or -errno with an error in text; -EBUSY if another pager holds the lock. */
static int open_locked(struct state *state, const char *path, int flags, char *text, size_t text_bytes)
{
    *state = (struct state){.path = path, .fd = open(path, O_RDWR | O_CLOEXEC | flags, 0600)};
    if (state->fd < 0) {
        int error = errno;

        snprintf(text, text_bytes, "cannot open the state file %s: %s", path, strerror(error));
        return -error;
    }
    /*
     * The file may have been replaced between open() and flock() (state_forget_removed()): then another pager has it.
     */
    if (flock(state->fd, LOCK_EX | LOCK_NB) == 0 && state_file_there(state))
        return 0;
    snprintf(text, text_bytes, "the state file %s is in use by another pager", path);
    return -EBUSY;
}

static int map_file(struct state *state, uint64_t bytes, int protection, char *text, size_t text_bytes)
{
    void *header = mmap(NULL, bytes, protection, MAP_SHARED, state->fd, 0);

    if (header == MAP_FAILED) {
        int error = errno;

        snprintf(text, text_bytes, "cannot map the state file %s: %s", state->path, strerror(error));
        return -error;
    }
    state->header = header;
    return 0;
}

static bool header_valid(const struct state_header *header, uint64_t file_bytes)
{
    return memcmp(header->magic, MAGIC, sizeof(MAGIC)) == 0 && header->header_bytes == sizeof(*header) &&
           header->page_bytes == sizeof(struct page) && header->file_bytes == file_bytes && header->n_donors > 0 &&
           header->n_donors <= DONORS_MAX && header->extents_offset == round_up(sizeof(*header)) &&
           header->pages_offset ==
               round_up(header->extents_offset + (uint64_t)header->n_extents * sizeof(struct extent)) &&
           header->file_bytes == header->pages_offset + (uint64_t)header->n_pages * sizeof(struct page) &&
           header->n_extents > 0 && header->n_pages == header->n_extents * (header->extent_bytes / PAGE_BYTES) &&
           header->replicas > 0 && header->replicas <= REPLICAS_MAX;
}

/*
 * Maps an existing file if it is a whole state of this version, which *valid says. Returns 0, or -errno with a text.
 */
static int map_existing(struct state *state, int protection, bool *valid, char *text, size_t text_bytes)
{
    struct stat status;

    *valid = false;
    if (fstat(state->fd, &status) < 0 || (uint64_t)status.st_size < sizeof(struct state_header))
        return 0;
    int rc = map_file(state, (uint64_t)status.st_size, protection, text, text_bytes);

    if (rc < 0)
        return rc;
    *valid = header_valid(state->header, (uint64_t)status.st_size);
    if (!*valid) {
        munmap(state->header, (size_t)status.st_size);
        state->header = NULL;
    }
    return 0;
}

/* Writes the error for a file that is not valid: which format it has, as far as that can be told. */
static int refuse_foreign(const struct state *state, char *text, size_t text_bytes)
{
    char magic[sizeof(MAGIC) + 1] = "", why[64] = "";
    bool ours = pread(state->fd, magic, sizeof(MAGIC), 0) == (ssize_t)sizeof(MAGIC) &&
                memcmp(magic, MAGIC, sizeof(MAGIC) - 1) == 0;
    char theirs = magic[sizeof(MAGIC) - 1], own = MAGIC[sizeof(MAGIC) - 1];

    if (ours && theirs != own && theirs > ' ' && theirs <= '~')
        snprintf(why, sizeof(why), ": it has format %c, this pager reads format %c", theirs, own);
    else if (ours && theirs == own)
        snprintf(why, sizeof(why), ": its format is ours, but not its sizes");
    snprintf(text, text_bytes, "the state file %s is not one that this version of the pager wrote%s", state->path,
             why);
    return -EINVAL;
}

static void unmap(struct state *state)
{
    if (state->header)
        munmap(state->header, state->header->file_bytes);
    state->header = NULL;
}

/* Returns a region that was served and whose process still runs, or NULL. */
static const struct state_region *region_alive(const struct state_header *header)
{
    for (uint32_t i = 0; i < REGIONS_MAX; i++) {
        const struct state_region *r = &header->regions[i];

        if (atomic_load(&r->status) == STATE_REGION_SERVED && process_start_ticks(r->pid) == r->process_started)
            return r;
    }
    return NULL;
}

/* Returns 0 if an existing file may be overwritten, or -errno with an error in text. */
static int check_unused(struct state *state, char *text, size_t text_bytes)
{
    bool valid;
    int rc = map_existing(state, PROT_READ | PROT_WRITE, &valid, text, text_bytes);

    if (rc < 0 || !valid)
        return rc;
    const struct state_region *region = region_alive(state->header);

    if (region) {
        snprintf(
            text, text_bytes,
            "the state file %s knows the memory of process %d (%s), which still runs: go on with it (--resume) or "
            "end that process",
            state->path, region->pid, region->comm);
        rc = -EBUSY;
    }
    unmap(state);
    return rc;
}

/* Takes all blocks of the file, so that no store into the mapping can fail. */
static int take_blocks(struct state *state, uint64_t bytes, char *text, size_t text_bytes)
{
    int error = ftruncate(state->fd, 0) < 0 ? errno : posix_fallocate(state->fd, 0, (off_t)bytes);

    if (!error)
        return 0;
    snprintf(text, text_bytes, "no room for the state file %s (%llu KiB): %s", state->path,
             (unsigned long long)(bytes >> 10), strerror(error));
    if (ftruncate(state->fd, 0) == 0)
        unlink(state->path);
    return -error;
}

static uint32_t donor_flags(const struct donor *donor)
{
    return (donor->backup ? STATE_DONOR_BACKUP : 0u) | (atomic_load(&donor->lost) ? STATE_DONOR_LOST : 0u) |
           (atomic_load(&donor->draining) ? STATE_DONOR_DRAINING : 0u) |
           (atomic_load(&donor->removed) ? STATE_DONOR_REMOVED : 0u);
}

static int put_donor(struct state_donor *to, struct donor *donor, char *text, size_t text_bytes)
{
    if (strlen(donor->uri) >= sizeof(to->uri) || strlen(donor->identity) >= sizeof(to->identity)) {
        snprintf(text, text_bytes, "donor %.80s…: its URI or description is too long to be kept", donor->uri);
        return -ENAMETOOLONG;
    }
    strcpy(to->uri, donor->uri);
    memset(to->identity, 0, sizeof(to->identity));
    strcpy(to->identity, donor->identity);
    if (strlen(donor->identity) < STATE_MACHINE_AT && strlen(donor->host) < STATE_MACHINE_BYTES)
        strcpy(to->identity + STATE_MACHINE_AT, donor->host);
    to->export_bytes = donor->export_bytes;
    to->can_trim = donor->can_trim;
    atomic_store(&to->flags, donor_flags(donor));
    atomic_store(&to->checksum_errors, atomic_load(&donor->counters.checksum_errors));
    donor->kept_checksum_errors = &to->checksum_errors;
    return 0;
}

static uint64_t features_bits(const struct features *features)
{
    uint64_t bits = 0;

    for (int i = 0; i < FEATURES; i++)
        bits |= (uint64_t)features->have[i] << i;
    return bits;
}

struct extent *state_extents(const struct state *state)
{
    return (struct extent *)((char *)state->header + state->header->extents_offset);
}

static void move_extents(struct state *state, struct pool *pool)
{
    memcpy(state_extents(state), pool->extents, pool->n_extents * sizeof(*pool->extents));
    free(pool->extents);
    pool->extents = state_extents(state);
    pool->extents_shared = true;
}

static int fill(struct state *state, struct pool *pool, const struct features *features, bool keep, char *text,
                size_t text_bytes)
{
    struct state_header *header = state->header;

    move_extents(state, pool);
    header->replicas = pool->replicas;
    header->allow_same_host = pool->allow_same_host;
    header->features = features_bits(features);
    header->keep = keep;
    header->n_donors = pool->n_donors;
    for (uint32_t i = 0; i < pool->n_donors; i++) {
        int rc = put_donor(&header->donors[i], &pool->donors[i], text, text_bytes);

        if (rc < 0)
            return rc;
    }
    atomic_signal_fence(memory_order_seq_cst);
    memcpy(header->magic, MAGIC, sizeof(MAGIC));
    return 0;
}

int state_create(struct state *state, const char *path, struct pool *pool, const struct features *features, bool keep,
                 char *text, size_t text_bytes)
{
    uint64_t extents_offset = round_up(sizeof(struct state_header));
    uint64_t pages_offset = round_up(extents_offset + pool->n_extents * sizeof(*pool->extents));
    uint64_t n_pages = pool_bytes(pool) / PAGE_BYTES;
    uint64_t bytes = pages_offset + n_pages * sizeof(struct page);
    int rc = open_locked(state, path, O_CREAT, text, text_bytes);

    rc = rc < 0 ? rc : check_unused(state, text, text_bytes);
    rc = rc < 0 ? rc : take_blocks(state, bytes, text, text_bytes);
    rc = rc < 0 ? rc : map_file(state, bytes, PROT_READ | PROT_WRITE, text, text_bytes);
    if (rc < 0)
        return rc;
    state->header->header_bytes = sizeof(*state->header);
    state->header->page_bytes = sizeof(struct page);
    state->header->extents_offset = extents_offset;
    state->header->pages_offset = pages_offset;
    state->header->file_bytes = bytes;
    state->header->extent_bytes = pool->extent_bytes;
    state->header->n_extents = pool->n_extents;
    state->header->n_pages = (uint32_t)n_pages;
    return fill(state, pool, features, keep, text, text_bytes);
}

int state_open(struct state *state, const char *path, char *text, size_t text_bytes)
{
    bool valid;
    int rc = open_locked(state, path, 0, text, text_bytes);

    rc = rc < 0 ? rc : map_existing(state, PROT_READ | PROT_WRITE, &valid, text, text_bytes);
    return rc < 0 || valid ? rc : refuse_foreign(state, text, text_bytes);
}

int state_check(const char *path, const struct features *features, char *text, size_t text_bytes)
{
    struct state state = {.path = path, .fd = open(path, O_RDONLY | O_CLOEXEC)};
    struct features unused = *features;
    bool valid;

    if (state.fd < 0) {
        int error = errno;

        snprintf(text, text_bytes, "cannot open the state file %s: %s", path, strerror(error));
        return -error;
    }
    int rc = map_existing(&state, PROT_READ, &valid, text, text_bytes);

    if (rc == 0)
        rc = valid ? state_restrict_features(&state, &unused, text, text_bytes)
                   : refuse_foreign(&state, text, text_bytes);
    state_close(&state, true);
    return rc;
}

int state_restrict_features(const struct state *state, struct features *features, char *text, size_t text_bytes)
{
    for (int i = 0; i < FEATURES; i++) {
        bool used = state->header->features >> i & 1;

        if (used && !features->have[i]) {
            snprintf(text, text_bytes, "the earlier pager used userfaultfd's %s, which is not there now",
                     feature_name((enum feature)i));
            return -ENOTSUP;
        }
        features->have[i] = used;
    }
    return 0;
}

void state_close(struct state *state, bool keep_file)
{
    if (!state->path)
        return;
    if (state->header && !keep_file)
        unlink(state->path);
    unmap(state);
    if (state->fd >= 0)
        close(state->fd);
    *state = (struct state){.fd = -1};
}

struct page *state_pages(const struct state *state)
{
    return state->header ? (struct page *)((char *)state->header + state->header->pages_offset) : NULL;
}

/* Returns the donor's machine as the file has it, or else as the URI names it. NULL: no memory. */
static char *kept_machine(const struct state_donor *from, const char *uri)
{
    bool kept = strnlen(from->identity, STATE_IDENTITY_BYTES) < STATE_MACHINE_AT && from->identity[STATE_MACHINE_AT];

    return kept ? strndup(from->identity + STATE_MACHINE_AT, STATE_MACHINE_BYTES) : donor_host(uri);
}

int state_pool(const struct state *state, struct pool *pool, bool libnbd_only)
{
    const struct state_header *header = state->header;

    pool->extent_bytes = header->extent_bytes;
    pool->n_extents = header->n_extents;
    pool->replicas = header->replicas;
    pool->allow_same_host = header->allow_same_host;
    pool->extents = state_extents(state);
    pool->extents_shared = true;
    pool->n_donors = header->n_donors;
    for (uint32_t i = 0; i < header->n_donors; i++) {
        struct state_donor *from = &state->header->donors[i];
        struct donor *donor = &pool->donors[i];
        uint32_t flags = atomic_load(&from->flags);

        donor->uri = strndup(from->uri, sizeof(from->uri));
        donor->identity = strndup(from->identity, sizeof(from->identity));
        donor->host = donor->uri ? kept_machine(from, donor->uri) : NULL;
        donor->export_bytes = from->export_bytes;
        donor->can_trim = from->can_trim;
        donor->libnbd_only = libnbd_only;
        donor->backup = flags & STATE_DONOR_BACKUP;
        atomic_store(&donor->lost, flags & STATE_DONOR_LOST);
        atomic_store(&donor->draining, flags & STATE_DONOR_DRAINING);
        atomic_store(&donor->removed, flags & STATE_DONOR_REMOVED);
        atomic_store(&donor->counters.checksum_errors, atomic_load(&from->checksum_errors));
        donor->kept_checksum_errors = &from->checksum_errors;
        if (!donor->host || !donor->identity)
            return -ENOMEM;
    }
    return pool_inherit(pool);
}

int state_add_donor(struct state *state, struct donor *donor, char *text, size_t text_bytes)
{
    if (!state->header)
        return 0;
    pthread_mutex_lock(&state->donors_lock);
    int rc = put_donor(&state->header->donors[state->header->n_donors], donor, text, text_bytes);

    if (rc == 0)
        atomic_fetch_add(&state->header->n_donors, 1);
    pthread_mutex_unlock(&state->donors_lock);
    return rc;
}

void state_set_donor(struct state *state, uint32_t index, const struct donor *donor)
{
    if (!state->header)
        return;
    pthread_mutex_lock(&state->donors_lock);
    atomic_store(&state->header->donors[index].flags, donor_flags(donor));
    pthread_mutex_unlock(&state->donors_lock);
}

void state_set_cache(struct state *state, uint64_t cache_bytes)
{
    if (state->header)
        atomic_store(&state->header->cache_bytes, cache_bytes);
}

void state_set_region(struct state *state, uint32_t id, enum state_region_status status)
{
    if (state->header)
        atomic_store(&state->header->regions[id].status, status);
}

void state_put_region(struct state *state, const struct region *region)
{
    if (!state->header)
        return;
    struct state_region *to = &state->header->regions[region->id];

    to->base = region->base;
    to->length = region->length;
    to->memfd_offset = region->memfd_offset;
    to->memfd_device = region->memfd_device;
    to->memfd_inode = region->memfd_inode;
    to->process_started = process_start_ticks(region->pid);
    to->first_page = region->first_page;
    to->n_pages = region->n_pages;
    to->pid = region->pid;
    memcpy(to->comm, region->comm, sizeof(to->comm));
    atomic_store(&to->status, STATE_REGION_SERVED);
}
