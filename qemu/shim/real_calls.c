/* SPDX-License-Identifier: MIT */
#include "real_calls.h"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *system_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    return (void *)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
}

static int system_munmap(void *addr, size_t length)
{
    return (int)syscall(SYS_munmap, addr, length);
}

static int system_madvise(void *addr, size_t length, int advice)
{
    return (int)syscall(SYS_madvise, addr, length, advice);
}

static int system_fallocate(int fd, int mode, off_t offset, off_t length)
{
    return (int)syscall(SYS_fallocate, fd, mode, offset, length);
}

/* dlsym() may allocate and so call mmap(): it is never called inside one of the shim's functions. */
struct real_calls real = {system_mmap, system_munmap, system_madvise, system_fallocate};

static void *next_symbol(const char *name, void *otherwise)
{
    void *symbol = dlsym(RTLD_NEXT, name);

    return symbol ? symbol : otherwise;
}

__attribute__((constructor)) static void find_real_calls(void)
{
    struct real_calls found = {
        .mmap = next_symbol("mmap64", system_mmap),
        .munmap = next_symbol("munmap", system_munmap),
        .madvise = next_symbol("madvise", system_madvise),
        .fallocate = next_symbol("fallocate64", system_fallocate),
    };

    real = found;
}
