/* SPDX-License-Identifier: MIT */
/*
 * The state file is made anew because it was removed, or because it is to have fewer donors. A whole copy is made
 * beside the file and locked, and takes the file's name by one rename().
 */
#include "pool/state_anew.h"

#include "base/fault_points.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

static int write_all(int fd, const void *from, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pwrite(fd, (const char *)from + done, bytes - done, (off_t)done);

        if (n < 0 && errno != EINTR)
            return -errno;
        done += n > 0 ? (uint64_t)n : 0;
    }
    return 0;
}

/* Makes a locked copy of what is mapped in a file beside the state file. Returns its descriptor, or -errno. */
static int copy_beside(const struct state *state, char draft[PATH_MAX])
{
    uint64_t bytes = state->header->file_bytes;

    if (snprintf(draft, PATH_MAX, "%s.new", state->path) >= PATH_MAX)
        return -ENAMETOOLONG;
    unlink(draft);
    int fd = open(draft, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int rc = fd < 0 ? -errno : 0;

    if (rc == 0 && flock(fd, LOCK_EX | LOCK_NB) < 0)
        rc = -errno;
    rc = rc < 0 ? rc : -posix_fallocate(fd, 0, (off_t)bytes);
    rc = rc < 0 ? rc : write_all(fd, state->header, bytes);
    if (rc == 0)
        return fd;
    if (fd >= 0) {
        close(fd);
        unlink(draft);
    }
    return rc;
}

/* Makes a locked copy of what is mapped and gives it the state file's name. Returns its descriptor, or -errno. */
static int copy_named(const struct state *state)
{
    char draft[PATH_MAX];
    int fd = copy_beside(state, draft);

    if (fd < 0 || rename(draft, state->path) == 0)
        return fd;
    int error = errno;

    close(fd);
    unlink(draft);
    return -error;
}

/*
 * Maps the copy in place of the old file, at the same address. Checksum errors that were counted since the copy was
 * made are written to it.
 */
static int move_to(struct state *state, struct pool *pool, int fd)
{
    void *at = mmap(state->header, state->header->file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);

    if (at == MAP_FAILED)
        return -errno;
    close(state->fd);
    state->fd = fd;
    for (uint32_t i = 0; i < pool->n_donors; i++)
        atomic_store(pool->donors[i].kept_checksum_errors, atomic_load(&pool->donors[i].counters.checksum_errors));
    return 0;
}

int state_restore(struct state *state, struct pool *pool, bool *made, char *text, size_t text_bytes)
{
    *made = false;
    if (!state->header || state_file_there(state))
        return 0;
    pthread_mutex_lock(&state->donors_lock);
    int fd = copy_named(state);
    int rc = fd < 0 ? fd : move_to(state, pool, fd);

    pthread_mutex_unlock(&state->donors_lock);
    if (rc < 0)
        snprintf(text, text_bytes, "cannot make the state file %s anew: %s", state->path, strerror(-rc));
    *made = rc == 0;
    return rc;
}

/*
 * Sets places[] to the new number of each donor when removed donors without copies are left out (DONORS_MAX for
 * these). Returns how many donors stay.
 */
static uint32_t places_without_removed(const struct state *state, uint32_t places[DONORS_MAX])
{
    const struct state_header *header = state->header;
    const struct extent *extents = state_extents(state);
    uint32_t n = 0;
    bool holds[DONORS_MAX] = {false};

    for (uint32_t e = 0; e < header->n_extents; e++)
        for (uint32_t i = 0; i < COPIES_MAX; i++) {
            struct copy copy = copy_load(&extents[e], i);

            if (copy.state != COPY_NONE && copy.donor < header->n_donors)
                holds[copy.donor] = true;
            else if (copy.state != COPY_NONE)
                return header->n_donors; /* the copy is not valid: pool_inherit() refuses the file */
        }
    for (uint32_t i = 0; i < header->n_donors; i++) {
        bool removed = atomic_load(&header->donors[i].flags) & STATE_DONOR_REMOVED;

        places[i] = removed && !holds[i] ? DONORS_MAX : n++;
    }
    return n;
}

static void renumber_donors(const struct state *copy, const uint32_t places[DONORS_MAX], uint32_t n_donors)
{
    struct state_header *header = copy->header;
    struct extent *extents = state_extents(copy);

    for (uint32_t i = 0; i < header->n_donors; i++)
        if (places[i] < i)
            memcpy(&header->donors[places[i]], &header->donors[i], sizeof(header->donors[i]));
    memset(&header->donors[n_donors], 0, (DONORS_MAX - n_donors) * sizeof(header->donors[0]));
    atomic_store(&header->n_donors, n_donors);
    for (uint32_t e = 0; e < header->n_extents; e++)
        for (uint32_t i = 0; i < COPIES_MAX; i++) {
            struct copy word = copy_load(&extents[e], i);

            if (word.state == COPY_NONE)
                continue;
            word.donor = (uint16_t)places[word.donor];
            copy_put(&extents[e], i, word);
        }
}

static int forget_donors(struct state *state, const uint32_t places[DONORS_MAX], uint32_t n_donors)
{
    char draft[PATH_MAX];
    struct state copy = {.path = state->path, .fd = copy_beside(state, draft)};
    uint64_t bytes = state->header->file_bytes;

    if (copy.fd < 0)
        return copy.fd;
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, copy.fd, 0);
    int rc = at == MAP_FAILED ? -errno : 0;

    if (rc == 0) {
        copy.header = at;
        renumber_donors(&copy, places, n_donors);
        FAULT_POINT(forget_copied);
        rc = rename(draft, state->path) < 0 ? -errno : 0;
    }
    if (rc < 0)
        unlink(draft);
    else
        FAULT_POINT(forget_named);
    /* The file that has the name is in use from now on; the other one is closed. */
    struct state *other = rc < 0 ? &copy : state;

    if (other->header)
        munmap(other->header, bytes);
    close(other->fd);
    if (rc == 0) {
        state->header = copy.header;
        state->fd = copy.fd;
    }
    return rc;
}

void state_forget_removed(struct state *state)
{
    uint32_t places[DONORS_MAX], n_donors = state->header->n_donors;

    if (n_donors < DONORS_MAX)
        return;
    uint32_t n_kept = places_without_removed(state, places);
    int rc = n_kept < n_donors ? forget_donors(state, places, n_kept) : 0;

    if (rc < 0)
        log_warning("%u donors that were removed cannot be forgotten: %s", n_donors - n_kept, strerror(-rc));
    else if (n_kept < n_donors)
        log_info("%u donors that were removed are forgotten", n_donors - n_kept);
}
