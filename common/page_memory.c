/* SPDX-License-Identifier: MIT */
#include "page_memory.h"

#include "log.h"
#include "size.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24 /* asm-generic/mman-common.h, Linux 5.18 */
#endif

void page_memory_hide(void *start, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = (uintptr_t)start & ~(page - 1);
    uintptr_t end = ((uintptr_t)start + bytes + page - 1) & ~(page - 1);
    if (madvise((char *)start - ((uintptr_t)start - first), end - first, MADV_DONTDUMP) < 0) {
        log_warning("a core dump of this program would hold pages: MADV_DONTDUMP: %s", strerror(errno));
    }
}

/* Raises the soft limit to the hard limit, which needs no privilege. */
static void limit_raise(struct rlimit *limit)
{
    if (getrlimit(RLIMIT_MEMLOCK, limit) < 0) {
        *limit = (struct rlimit){0};
        return;
    }
    limit->rlim_cur = limit->rlim_max;
    setrlimit(RLIMIT_MEMLOCK, limit);
}

int page_memory_lock(uint64_t bytes, char *text, size_t text_bytes)
{
    char wanted[SIZE_TEXT_BYTES], allowed[SIZE_TEXT_BYTES];
    struct rlimit limit;
    limit_raise(&limit);
    int rc = mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0 ? -errno : 0;
    if (rc == 0) {
        /* The kernel counts locked memory when it is mapped, not when it is touched (mlock2(2)): so this tries it. */
        void *trial = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        rc = trial == MAP_FAILED ? -errno : 0;
        if (rc == 0) {
            munmap(trial, bytes);
            return 0;
        }
        munlockall();
    }
    snprintf(text, text_bytes,
             "cannot lock %s of memory: %s; this process may lock %s (RLIMIT_MEMLOCK): raise that by ulimit -l "
             "unlimited, or LimitMEMLOCK=infinity in a service, or run as root",
             size_format(wanted, bytes), strerror(-rc),
             limit.rlim_max == RLIM_INFINITY ? "any amount" : size_format(allowed, limit.rlim_max));
    return rc;
}

int page_memory_release(void *start, size_t bytes)
{
    if (madvise(start, bytes, MADV_DONTNEED) == 0) {
        return 0;
    }
    /* MADV_DONTNEED returns EINVAL for memory that is locked. */
    return errno == EINVAL && madvise(start, bytes, MADV_DONTNEED_LOCKED) == 0 ? 0 : -errno;
}
