/* SPDX-License-Identifier: MIT */
/*
 * What userfaultfd has in Linux 6.7 and the headers of Linux 6.1 (Debian 12) lack. Sources: the kernel's
 * include/uapi/linux/userfaultfd.h and Documentation/admin-guide/mm/userfaultfd.rst.
 */
#ifndef GHOSTBOX_UFFD_COMPAT_H
#define GHOSTBOX_UFFD_COMPAT_H

#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_POISON
#define UFFD_FEATURE_POISON (1 << 14)
#define _UFFDIO_POISON      (0x08)
#define UFFDIO_POISON       _IOWR(UFFDIO, _UFFDIO_POISON, struct uffdio_poison)
struct uffdio_poison {
    struct uffdio_range range;
    __u64 mode;
    __s64 updated;
};
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP ((__u64)1 << 1)
#endif

/* Bit 57 of a pagemap entry: the page is write-protected by userfaultfd, or has its marker (pagemap.rst). */
#define PAGEMAP_UFFD_WP ((__u64)1 << 57)

#endif
