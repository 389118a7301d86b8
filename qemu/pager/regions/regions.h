/* SPDX-License-Identifier: MIT */
/* How regions come, with a process that hands its memory over, and how they end. Evict thread only. */
#ifndef GHOSTBOX_PAGER_REGIONS_H
#define GHOSTBOX_PAGER_REGIONS_H

#include "pager.h"
#include "proto.h"

/* The process that hands memory over. */
struct client {
    pid_t pid;
    int pidfd;
    const char *comm; /* its name: 16 bytes */
};

/*
 * Makes a region of memory that a process hands over. Returns it, or NULL with errno and an error for people in text.
 * On success the region owns the descriptors (userfaultfd, memfd, pagemap) and the client's pidfd.
 */
struct region *region_admit(struct pager *pager, const struct client *client, const struct gb_region *message,
                            const int fds[3], char *text, size_t text_bytes);
/*
 * Returns the region for which a shim connects again, or NULL if there is none. If an earlier pager served the
 * region, it takes the descriptors, as *fds_taken says; otherwise it keeps those that it has, which lead to the same
 * files.
 */
struct region *region_resumed(struct pager *pager, const struct client *client, const struct gb_region *message,
                              const int fds[3], bool *fds_taken);
/*
 * Called when the region's memory was unmapped, or its process has ended: this pager, or the next one, gives its
 * pages up step by step. The caller closes the region's connection if there is one.
 */
void region_end(struct pager *pager, struct region *region);

#endif
