/* SPDX-License-Identifier: MIT */
/*
 * Local memory: node 0, which QEMU maps private and interpose.c turns into anonymous memory.
 *
 * Guests report free memory in pieces of 128 KiB and more (domain_xml.py), so that donors get more of it back. On
 * local memory a piece of less than a huge page would split the host's huge page around it, and khugepaged takes
 * minutes to make it whole again. So the madvise(MADV_DONTNEED) of ram_block_discard_range() on such a piece does
 * nothing here. (The fallocate() before it is on the memfd, which is empty.) No program can notice that, because only
 * one of QEMU's callers has pieces of this size:
 *
 *   virtio_balloon_handle_report()  reported memory may stay as it is at any time (virtio 1.2, Free Page Reporting),
 * and QEMU leaves it so itself while discards are inhibited. A guest that relies on the bytes with which it filled
 * its free pages finds these bytes balloon_inflate_page()          a page of 4 KiB: passed on, or the balloon would
 * give no memory back qemu_ram_remap()                after a memory error, QEMU 10: a page of 4 KiB; passed on, or
 * it would stay broken virtio_mem_*, hv_balloon_*      2 MiB and more, and domains have no such device
 *   ram_discard_range()             postcopy, on the host that takes a guest over; its userfaultfd would need the
 * remote node, which is registered with the pager's
 */
#include "local.h"

#include "region.h"

#include <stdatomic.h>

#define LOCALS_MAX      16
#define REPORT_BYTES    (32u * REGION_PAGE_BYTES) /* the smallest piece that a guest reports: page_reporting_order=5 */
#define HUGE_PAGE_BYTES (2u << 20)

/*
 * There is no lock, because a child made by fork() could find it held. Only QEMU's main thread, which maps and
 * unmaps, changes an entry.
 */
static struct local {
    _Atomic uint64_t base, length; /* length 0: the entry is free */
} locals[LOCALS_MAX];

void local_add(const void *base, size_t length)
{
    for (int i = 0; i < LOCALS_MAX; i++) {
        if (atomic_load(&locals[i].length))
            continue;
        atomic_store(&locals[i].base, (uintptr_t)base);
        atomic_store(&locals[i].length, length);
        return;
    }
}

/* A part of the memory is replaced, so from now on all discards of it are passed on. */
void local_forget(const void *addr, size_t length)
{
    uint64_t start = (uintptr_t)addr;

    for (int i = 0; i < LOCALS_MAX; i++) {
        uint64_t base = atomic_load(&locals[i].base), bytes = atomic_load(&locals[i].length);

        if (bytes && start < base + bytes && base < start + length)
            atomic_store(&locals[i].length, 0);
    }
}

bool local_keeps(const void *addr, size_t length)
{
    uint64_t start = (uintptr_t)addr;

    if (length < REPORT_BYTES || length >= HUGE_PAGE_BYTES)
        return false;
    for (int i = 0; i < LOCALS_MAX; i++) {
        uint64_t base = atomic_load(&locals[i].base), bytes = atomic_load(&locals[i].length);

        if (bytes && base <= start && start + length <= base + bytes)
            return true;
    }
    return false;
}
