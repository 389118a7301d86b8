/* SPDX-License-Identifier: MIT */
/* What this kernel's userfaultfd can do, found by trying it, never by its version. */
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
    FEATURE_WP_ASYNC,      /* without: write-protect faults are answered by the pager */
    FEATURE_WP_UNPOPULATED,
    FEATURE_CONTINUE_WP, /* without: a page that gets its second chance counts as dirty */
    FEATURE_POISON,      /* without: access to a lost page waits for ever */
    FEATURES             /* count */
};

struct features {
    bool have[FEATURES];
    bool hidden[FEATURES];
};

/* "wp_async", …; FEATURES if there is none of that name. */
enum feature feature_find(const char *name, size_t length);
const char *feature_name(enum feature feature);
/*
 * Opens the device (*device_fd stays open) and tries each feature on memory of our own. Hidden features count as
 * missing. Returns 0, or -errno with a message for the user in text (also when a required feature is missing).
 */
int features_probe(struct features *features, int *device_fd, char *text, size_t text_bytes);
/* For UFFDIO_API. */
uint64_t features_uffd_mask(const struct features *features);
uint64_t features_register_modes(void);
/* {"wp_async": true, …} */
json_t *features_to_json(const struct features *features);
json_t *features_hidden_to_json(const struct features *features);
const char *features_dirty_tracking(const struct features *features);

#endif
