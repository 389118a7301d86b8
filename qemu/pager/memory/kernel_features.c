/* SPDX-License-Identifier: MIT */
#include "memory/kernel_features.h"

#include "memory/uffd_compat.h"
#include "page/pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PROBE_PAGES 4u

struct feature_info {
    const char *name;
    uint64_t uffd_bit; /* flag of UFFDIO_API; 0: there is none, and the probe tries the feature */
    bool required;
};

static const struct feature_info infos[] = {
    [FEATURE_MISSING_SHMEM] = {"missing_shmem", UFFD_FEATURE_MISSING_SHMEM, true},
    [FEATURE_MINOR_SHMEM] = {"minor_shmem", UFFD_FEATURE_MINOR_SHMEM, true},
    [FEATURE_WP_SHMEM] = {"wp_shmem", UFFD_FEATURE_WP_HUGETLBFS_SHMEM, true},
    [FEATURE_PAGEMAP_WP] = {"pagemap_wp", 0, true},
    [FEATURE_WP_ASYNC] = {"wp_async", UFFD_FEATURE_WP_ASYNC, false},
    [FEATURE_WP_UNPOPULATED] = {"wp_unpopulated", UFFD_FEATURE_WP_UNPOPULATED, false},
    [FEATURE_CONTINUE_WP] = {"continue_wp", 0, false},
    [FEATURE_POISON] = {"poison", UFFD_FEATURE_POISON, false},
};
static_assert(sizeof(infos) / sizeof(*infos) == FEATURES, "a row for each feature");

enum feature feature_find(const char *name, size_t length)
{
    for (int i = 0; i < FEATURES; i++)
        if (strlen(infos[i].name) == length && memcmp(infos[i].name, name, length) == 0)
            return (enum feature)i;
    return FEATURES;
}

const char *feature_name(enum feature feature)
{
    return infos[feature].name;
}

uint64_t features_uffd_mask(const struct features *features)
{
    uint64_t mask = UFFD_FEATURE_PAGEFAULT_FLAG_WP;

    for (int i = 0; i < FEATURES; i++)
        if (features->have[i])
            mask |= infos[i].uffd_bit;
    return mask;
}

uint64_t features_register_modes(void)
{
    return UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP;
}

const char *features_dirty_tracking(const struct features *features)
{
    return features->have[FEATURE_WP_ASYNC] ? "wp-async" : "wp-fault";
}

static json_t *flags_to_json(const bool *flags)
{
    json_t *object = json_object();

    for (int i = 0; i < FEATURES; i++)
        json_object_set_new(object, infos[i].name, json_boolean(flags[i]));
    return object;
}

json_t *features_to_json(const struct features *features)
{
    return flags_to_json(features->have);
}

json_t *features_hidden_to_json(const struct features *features)
{
    json_t *array = json_array();

    for (int i = 0; i < FEATURES; i++)
        if (features->hidden[i])
            json_array_append_new(array, json_string(infos[i].name));
    return array;
}

static int device_open(int *fd, char *text, size_t text_bytes)
{
    *fd = open(USERFAULTFD_DEVICE, O_RDWR | O_CLOEXEC);
    if (*fd >= 0)
        return 0;
    int error = errno;

    if (error == ENOENT)
        snprintf(text, text_bytes,
                 "cannot open " USERFAULTFD_DEVICE ": it is not there; Linux 6.1 or later is needed");
    else
        snprintf(text, text_bytes,
                 "cannot open " USERFAULTFD_DEVICE ": %s; allow it with: sudo chgrp kvm " USERFAULTFD_DEVICE
                 " && sudo chmod 660 " USERFAULTFD_DEVICE,
                 strerror(error));
    return -error;
}

/*
 * Asks which features the kernel has. The first UFFDIO_API on a userfaultfd fixes its features, so this userfaultfd
 * is closed again. Returns 0 or -errno.
 */
static int kernel_features(int device_fd, uint64_t *mask)
{
    struct uffdio_api api = {.api = UFFD_API, .features = 0};
    int fd = ioctl(device_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);

    if (fd < 0)
        return -errno;
    int rc = ioctl(fd, UFFDIO_API, &api) < 0 ? -errno : 0;

    close(fd);
    *mask = api.features;
    return rc;
}

/* Memory of this process, registered in the way in which QEMU's memory will be. */
struct probe {
    int uffd, memfd, pagemap;
    uint8_t *base;
};

static void probe_close(struct probe *probe)
{
    if (probe->base != MAP_FAILED)
        munmap(probe->base, PROBE_PAGES * PAGE_BYTES);
    if (probe->uffd >= 0)
        close(probe->uffd);
    if (probe->memfd >= 0)
        close(probe->memfd);
    if (probe->pagemap >= 0)
        close(probe->pagemap);
}

static int probe_open(struct probe *probe, int device_fd, uint64_t mask)
{
    struct uffdio_api api = {.api = UFFD_API, .features = mask};

    *probe = (struct probe){-1, -1, -1, MAP_FAILED};
    probe->uffd = ioctl(device_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    if (probe->uffd < 0 || ioctl(probe->uffd, UFFDIO_API, &api) < 0)
        return -errno;
    probe->memfd = memfd_create("ghostbox-probe", MFD_CLOEXEC);
    probe->pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (probe->memfd < 0 || probe->pagemap < 0 || ftruncate(probe->memfd, PROBE_PAGES * PAGE_BYTES) < 0)
        return -errno;
    probe->base = mmap(NULL, PROBE_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, probe->memfd, 0);
    if (probe->base == MAP_FAILED)
        return -errno;
    struct uffdio_register reg = {
        .range = {(uintptr_t)probe->base, PROBE_PAGES * PAGE_BYTES},
        .mode = features_register_modes(),
    };

    return ioctl(probe->uffd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

/* Maps page 0 write-protected, zaps it, and looks whether the mark is still there (pagemap.rst, bit 57). */
static bool try_pagemap_wp(struct probe *probe)
{
    static const uint8_t bytes[PAGE_BYTES] __attribute__((aligned(4096)));
    struct uffdio_copy copy = {
        .dst = (uintptr_t)probe->base, .src = (uintptr_t)bytes, .len = PAGE_BYTES, .mode = UFFDIO_COPY_MODE_WP};
    uint64_t entry = 0;

    if (ioctl(probe->uffd, UFFDIO_COPY, &copy) < 0 || madvise(probe->base, PAGE_BYTES, MADV_DONTNEED) < 0)
        return false;
    off_t offset = (off_t)((uintptr_t)probe->base / PAGE_BYTES * sizeof(entry));

    return pread(probe->pagemap, &entry, sizeof(entry), offset) == sizeof(entry) && (entry & PAGEMAP_UFFD_WP);
}

/* Writes page 1 into the memfd, so that only UFFDIO_CONTINUE can map it, and maps it write-protected. */
static bool try_continue_wp(struct probe *probe)
{
    struct uffdio_continue cont = {.range = {(uintptr_t)probe->base + PAGE_BYTES, PAGE_BYTES},
                                   .mode = UFFDIO_CONTINUE_MODE_WP};

    return pwrite(probe->memfd, "x", 1, PAGE_BYTES) == 1 && ioctl(probe->uffd, UFFDIO_CONTINUE, &cont) == 0;
}

static int check_required(const struct features *features, char *text, size_t text_bytes)
{
    for (int i = 0; i < FEATURES; i++) {
        if (!infos[i].required || features->have[i])
            continue;
        snprintf(text, text_bytes,
                 "this kernel's userfaultfd lacks '%s', which GhostBox needs: Linux 6.1 or later with "
                 "CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP",
                 infos[i].name);
        return -EOPNOTSUPP;
    }
    return 0;
}

int features_probe(struct features *features, int *device_fd, char *text, size_t text_bytes)
{
    struct probe probe;
    uint64_t mask = 0;
    int rc = device_open(device_fd, text, text_bytes);

    if (rc < 0)
        return rc;
    rc = kernel_features(*device_fd, &mask);
    if (rc < 0) {
        snprintf(text, text_bytes, "userfaultfd does not work: %s", strerror(-rc));
        return rc;
    }
    for (int i = 0; i < FEATURES; i++)
        features->have[i] = infos[i].uffd_bit && (mask & infos[i].uffd_bit) && !features->hidden[i];
    rc = probe_open(&probe, *device_fd, features_uffd_mask(features));
    if (rc == 0) {
        features->have[FEATURE_PAGEMAP_WP] = !features->hidden[FEATURE_PAGEMAP_WP] && try_pagemap_wp(&probe);
        features->have[FEATURE_CONTINUE_WP] = !features->hidden[FEATURE_CONTINUE_WP] && try_continue_wp(&probe);
    }
    probe_close(&probe);
    int missing = check_required(features, text, text_bytes);

    if (missing == 0 && rc < 0)
        snprintf(text, text_bytes, "userfaultfd on a memfd does not work: %s", strerror(-rc));
    return missing < 0 ? missing : rc;
}
