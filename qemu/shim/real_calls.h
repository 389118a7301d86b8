/* SPDX-License-Identifier: MIT */
/* The real calls: the functions that the shim stands in front of. */
#ifndef GHOSTBOX_SHIM_REAL_CALLS_H
#define GHOSTBOX_SHIM_REAL_CALLS_H

#include <stddef.h>
#include <sys/types.h>

/* The next functions of these names in the order of libraries; system calls until the shim's constructor has run. */
struct real_calls {
    void *(*mmap)(void *, size_t, int, int, int, off_t);
    int (*munmap)(void *, size_t);
    int (*madvise)(void *, size_t, int);
    int (*fallocate)(int, int, off_t, off_t);
};
extern struct real_calls real;

#endif
