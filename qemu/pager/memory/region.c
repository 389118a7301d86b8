/* SPDX-License-Identifier: MIT */
#include "memory/region.h"

#include "memory/uffd_compat.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define WRITTEN_MAX 512u
/* The kernel now and then ends a run early with EAGAIN (trap 1). So many times without progress make it an error. */
#define STALLS_MAX 3

static struct uffdio_range run_range(const struct region *region, uint32_t page, uint32_t n)
{
    return (struct uffdio_range){.start = region_address(region, page), .len = (uint64_t)n * PAGE_BYTES};
}

/*
 * Evaluates one ioctl of a run: rc is its result, `moved` its result field (bytes, or -errno). Returns whether the
 * run goes on: after success, and after EAGAIN unless that came STALLS_MAX times without progress. Otherwise *error
 * is the errno.
 */
static bool run_step(int rc, int64_t moved, uint32_t *done, int *stalls, int *error)
{
    *error = rc == 0 ? 0 : errno;
    if (moved > 0)
        *done += (uint32_t)(moved / PAGE_BYTES);
    if (rc == 0)
        return true;
    if (*error != EAGAIN)
        return false;
    if (moved > 0)
        *stalls = 0;
    else
        ++*stalls;
    return *stalls < STALLS_MAX;
}

int region_copy(const struct region *region, uint32_t page, const void *bytes, uint32_t n, uint32_t *done)
{
    int stalls = 0, error = 0;

    for (*done = 0; *done < n;) {
        struct uffdio_range range = run_range(region, page + *done, n - *done);
        struct uffdio_copy copy = {.dst = range.start,
                                   .src = (uintptr_t)bytes + (uint64_t)*done * PAGE_BYTES,
                                   .len = range.len,
                                   .mode = UFFDIO_COPY_MODE_WP};
        int rc = ioctl(region->uffd, UFFDIO_COPY, &copy);

        if (!run_step(rc, copy.copy, done, &stalls, &error))
            return -error;
    }
    return 0;
}

int region_zero(const struct region *region, uint32_t page, uint32_t n, uint32_t *done)
{
    int stalls = 0, error = 0;

    for (*done = 0; *done < n;) {
        struct uffdio_zeropage zero = {.range = run_range(region, page + *done, n - *done)};
        int rc = ioctl(region->uffd, UFFDIO_ZEROPAGE, &zero);

        if (!run_step(rc, zero.zeropage, done, &stalls, &error))
            return -error;
    }
    return 0;
}

int region_continue(const struct region *region, uint32_t page, uint32_t n, bool write_protect, uint32_t *done)
{
    int stalls = 0, error = 0;

    for (*done = 0; *done < n;) {
        struct uffdio_continue cont = {.range = run_range(region, page + *done, n - *done),
                                       .mode = write_protect ? UFFDIO_CONTINUE_MODE_WP : 0};
        int rc = ioctl(region->uffd, UFFDIO_CONTINUE, &cont);

        if (!run_step(rc, cont.mapped, done, &stalls, &error))
            return -error;
    }
    return 0;
}

int region_unprotect(const struct region *region, uint32_t page)
{
    struct uffdio_writeprotect wp = {.range = run_range(region, page, 1), .mode = 0};

    return ioctl(region->uffd, UFFDIO_WRITEPROTECT, &wp) < 0 ? -errno : 0;
}

int region_poison(const struct region *region, uint32_t page)
{
    struct uffdio_poison poison = {.range = run_range(region, page, 1)};

    return ioctl(region->uffd, UFFDIO_POISON, &poison) < 0 ? -errno : 0;
}

void region_wake(const struct region *region, uint32_t page, uint32_t n)
{
    struct uffdio_range range = run_range(region, page, n);

    ioctl(region->uffd, UFFDIO_WAKE, &range);
}

static off_t file_offset(const struct region *region, uint32_t page)
{
    return (off_t)(region->memfd_offset + (uint64_t)(page - region->first_page) * PAGE_BYTES);
}

int region_read(const struct region *region, uint32_t page, void *bytes, uint32_t n)
{
    size_t length = (size_t)n * PAGE_BYTES;
    ssize_t got = pread(region->memfd, bytes, length, file_offset(region, page));

    if (got < 0)
        return -errno;
    return (size_t)got == length ? 0 : -EIO;
}

int region_write(const struct region *region, uint32_t page, const void *bytes, uint32_t n)
{
    size_t length = (size_t)n * PAGE_BYTES;
    ssize_t put = pwrite(region->memfd, bytes, length, file_offset(region, page));

    if (put < 0)
        return -errno;
    return (size_t)put == length ? 0 : -ENOSPC;
}

int region_punch(const struct region *region, uint32_t page, uint32_t n)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

    return fallocate(region->memfd, mode, file_offset(region, page), (off_t)n * PAGE_BYTES) < 0 ? -errno : 0;
}

bool region_has_page(const struct region *region, uint32_t page)
{
    off_t offset = file_offset(region, page);

    return lseek(region->memfd, offset, SEEK_DATA) == offset;
}

int64_t region_run(const struct region *region, uint32_t page, uint32_t n, bool *here)
{
    off_t start = file_offset(region, page), limit = start + (off_t)n * PAGE_BYTES;
    off_t data = lseek(region->memfd, start, SEEK_DATA);

    if (data < 0 && errno != ENXIO)
        return -errno;
    *here = data == start;
    off_t end = *here ? lseek(region->memfd, start, SEEK_HOLE) : data;

    if (*here && end < 0)
        return -errno;
    if (end < 0 || end > limit) /* end is negative if there are no data up to the file's end (ENXIO) */
        end = limit;
    return (end - start) / PAGE_BYTES;
}

int region_written(const struct region *region, uint32_t page, uint32_t n, bool *written)
{
    uint64_t entries[WRITTEN_MAX];
    off_t offset = (off_t)(region_address(region, page) / PAGE_BYTES * sizeof(*entries));
    ssize_t length = (ssize_t)(n * sizeof(*entries));

    assert(n <= WRITTEN_MAX);
    if (pread(region->pagemap, entries, (size_t)length, offset) != length)
        return -EIO;
    for (uint32_t i = 0; i < n; i++)
        written[i] = !(entries[i] & PAGEMAP_UFFD_WP);
    return 0;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void region_close_fds(struct region *region)
{
    close_fd(&region->uffd);
    close_fd(&region->memfd);
    close_fd(&region->pagemap);
    close_fd(&region->pidfd);
}
