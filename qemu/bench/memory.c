/* SPDX-License-Identifier: MIT */
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void join_cgroup(const char *directory)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/cgroup.procs", directory);
    FILE *procs = fopen(path, "w");

    if (!procs || fprintf(procs, "%d\n", (int)getpid()) < 0 || fclose(procs) != 0)
        fail_errno("cannot join the cgroup %s", directory);
}

/*
 * Ends the program if the shim is not loaded, because the memfd would be plain local memory, and all figures wrong.
 */
static void need_shim(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[4096];
    bool found = false;

    while (maps && !found && fgets(line, sizeof(line), maps))
        found = strstr(line, "ghostbox-shim") != NULL;
    if (maps)
        fclose(maps);
    if (!found)
        fail("memory=remote needs libghostbox-shim.so in LD_PRELOAD");
}

static int open_memfd(uint64_t bytes)
{
    need_shim();
    int fd = memfd_create("memory-backend-memfd", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
        fail_errno("cannot make a memfd of %llu bytes", (unsigned long long)bytes);
    return fd;
}

static int open_file(const char *path, uint64_t bytes)
{
    struct stat status;
    int fd = open(path, O_RDWR | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &status) < 0)
        fail_errno("cannot open %s", path);
    if ((uint64_t)status.st_size < bytes)
        fail("%s has %llu bytes, %llu are needed", path, (unsigned long long)status.st_size,
             (unsigned long long)bytes);
    return fd;
}

void memory_map(struct memory *memory, struct arguments *args)
{
    const char *kind = argument_text(args, "memory", "local");
    const char *path = argument_text(args, "path", "");
    const char *cgroup = argument_text(args, "cgroup", NULL);
    bool is_random = argument_number(args, "advise_random", 0, 1) == 1;
    uint64_t bytes = argument_size(args, "bytes", 64 << 20);
    int fd = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;

    arguments_check(args);
    if (bytes < PAGE_BYTES || bytes / PAGE_BYTES > UINT32_MAX)
        fail("bytes must be from 4096 to 16T");
    if (cgroup)
        join_cgroup(cgroup);
    if (strcmp(kind, "remote") == 0)
        fd = open_memfd(bytes);
    else if (strcmp(kind, "file") == 0)
        fd = open_file(path, bytes);
    else if (strcmp(kind, "local") != 0)
        fail("memory=%s is none of remote, local, file", kind);
    if (fd >= 0)
        flags = MAP_SHARED;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);

    if (base == MAP_FAILED)
        fail_errno("cannot map %llu bytes", (unsigned long long)bytes);
    if (flags & MAP_ANONYMOUS)
        madvise(base, bytes, MADV_NOHUGEPAGE); /* remote memory has no huge pages either */
    if (is_random)
        madvise(base, bytes, MADV_RANDOM);
    *memory = (struct memory){base, bytes, bytes / PAGE_BYTES};
}

uint32_t *pages_shuffled(uint64_t n, uint64_t count, uint64_t seed)
{
    uint32_t *pages = malloc(count * sizeof(*pages));
    uint64_t state = random_start(seed), stride = n / count;

    if (!pages)
        fail("out of memory");
    for (uint64_t i = 0; i < count; i++)
        pages[i] = (uint32_t)(i * stride + random_next(&state) % stride);
    for (uint64_t i = 0; i + 1 < count; i++) {
        uint64_t j = i + random_next(&state) % (count - i);
        uint32_t page = pages[i];

        pages[i] = pages[j];
        pages[j] = page;
    }
    return pages;
}
