/* SPDX-License-Identifier: MIT */
/*
 * The kernel's features: what its userfaultfd can do. They are found by trying them, never by the kernel's version.
 */
#ifndef GHOSTBOX_KERNEL_FEATURES_H
#define GHOSTBOX_KERNEL_FEATURES_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define USERFAULTFD_DEVICE "/dev/userfaultfd"

enum feature {
    FEATURE_MISSING_SHMEM, /* required */
    FEATURE_MINOR_SHMEM,   /* required */
    FEATURE_WP_SHMEM,      /* required */
    FEATURE_PAGEMAP_WP,    /* required: the write-protect mark survives a zap and shows in the pagemap */
    FEATURE_WP_ASYNC,      /* without it the pager answers write-protect faults */
    FEATURE_WP_UNPOPULATED,
    FEATURE_CONTINUE_WP, /* without it a page that gets its second chance counts as dirty */
    FEATURE_POISON,      /* without it an access to a lost page waits for ever */
    FEATURES             /* count */
};

struct features {
    bool have[FEATURES];
    bool hidden[FEATURES];
};

/* Returns the feature with this name ("wp_async", …), or FEATURES if there is none. */
enum feature feature_find(const char *name, size_t length);
const char *feature_name(enum feature feature);
/*
 * Opens the device, which stays open as *device_fd, and tries each feature on memory of this process. Hidden features
 * count as missing. Returns 0, or -errno with an error for people in text (also if a required feature is missing).
 */
int features_probe(struct features *features, int *device_fd, char *text, size_t text_bytes);
/* Returns the features to ask for by UFFDIO_API. */
uint64_t features_uffd_mask(const struct features *features);
/* Returns the modes in which the shim has to register memory by UFFDIO_REGISTER. */
uint64_t features_register_modes(void);
/* Returns {"wp_async": true, …}. */
json_t *features_to_json(const struct features *features);
/* Returns the names of the hidden features. */
json_t *features_hidden_to_json(const struct features *features);
/* Returns "wp-async" or "wp-fault": how writes to clean pages are found. */
const char *features_dirty_tracking(const struct features *features);

#endif
