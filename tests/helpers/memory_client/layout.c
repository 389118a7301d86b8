/* SPDX-License-Identifier: MIT */
/* Commands on the mapping itself: calls that QEMU makes at run time, and calls that it must not make. */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int fail_errno(struct call *call, const char *what)
{
    return call_fail(call, "%s: %s", what, strerrorname_np(errno));
}

/*
 * Discards the pages first=, n=, or the bytes offset=, bytes=, by calls of piece= bytes, as a guest gives memory
 * back.
 */
static int discard(struct call *call)
{
    uint64_t first, n;

    call_pages(call, &first, &n);
    off_t offset = (off_t)call_number(call, "offset", first * PAGE_BYTES);
    off_t bytes = (off_t)call_number(call, "bytes", n * PAGE_BYTES);

    off_t piece = (off_t)call_number(call, "piece", (uint64_t)bytes);
    uint64_t began_ns = now_ns();

    for (off_t done = 0; done < bytes; done += piece) {
        off_t length = bytes - done < piece ? bytes - done : piece;

        if (fallocate(call->memory->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset + done, length) < 0)
            return fail_errno(call, "fallocate");
    }
    call_field_double(call, "seconds", (double)(now_ns() - began_ns) / 1e9);
    return 0;
}

static int advise(struct call *call, int advice)
{
    uint64_t first, n;

    call_pages(call, &first, &n);
    if (madvise(&call->memory->words[first * WORDS_A_PAGE], n * PAGE_BYTES, advice) < 0)
        return fail_errno(call, "madvise");
    return 0;
}

static int remove_pages(struct call *call)
{
    return advise(call, MADV_REMOVE);
}

static int dontneed(struct call *call)
{
    return advise(call, MADV_DONTNEED);
}

static int hugepage(struct call *call)
{
    return advise(call, MADV_HUGEPAGE);
}

static int dofork(struct call *call)
{
    return advise(call, MADV_DOFORK);
}

/* Answers how many bytes of the memfd are allocated. */
static int allocated(struct call *call)
{
    struct stat status;

    if (fstat(call->memory->fd, &status) < 0)
        return fail_errno(call, "fstat");
    call_field(call, "bytes", (uint64_t)status.st_blocks * 512);
    return 0;
}

static int preallocate(struct call *call)
{
    if (fallocate(call->memory->fd, 0, 0, (off_t)call->memory->bytes) < 0)
        return fail_errno(call, "fallocate");
    return 0;
}

static int map_again(struct call *call)
{
    void *base = mmap(NULL, call->memory->bytes, PROT_READ, MAP_SHARED, call->memory->fd, 0);

    return base == MAP_FAILED ? fail_errno(call, "mmap") : 0;
}

/* Maps the same pages again at the same place, as QEMU does after a memory error. */
static int map_in_place(struct call *call)
{
    uint64_t first, n;

    call_pages(call, &first, &n);
    void *base = mmap(&call->memory->words[first * WORDS_A_PAGE], n * PAGE_BYTES, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_FIXED, call->memory->fd, (off_t)(first * PAGE_BYTES));

    return base == MAP_FAILED ? fail_errno(call, "mmap") : 0;
}

static int map_over(struct call *call)
{
    void *base = mmap(call->memory->words, PAGE_BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

    return base == MAP_FAILED ? fail_errno(call, "mmap") : 0;
}

static int move(struct call *call)
{
    void *base = mremap(call->memory->words, call->memory->bytes, call->memory->bytes * 2, MREMAP_MAYMOVE);

    return base == MAP_FAILED ? fail_errno(call, "mremap") : 0;
}

static int map_more(struct call *call)
{
    uint64_t index;

    if (!memory_map(call_number(call, "bytes", 1 << 20), MAP_SHARED, &index))
        return fail_errno(call, "mmap");
    call_field(call, "index", index);
    return 0;
}

/* Unmaps the region or, with n= pages, a part of it. */
static int unmap(struct call *call)
{
    struct memory *memory = call->memory;
    uint64_t bytes = call_number(call, "n", memory->bytes / PAGE_BYTES) * PAGE_BYTES;

    if (munmap(memory->words, bytes) < 0)
        return fail_errno(call, "munmap");
    close(memory->fd);
    memory->words = NULL;
    return 0;
}

static int child_touch(const struct memory *memory)
{
    return word_load(memory->words) == 0 ? 10 : 11;
}

static int child_punch(const struct memory *memory)
{
    int rc = fallocate(memory->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE_BYTES);

    return rc == 0 ? 10 : errno;
}

static int child_map(const struct memory *memory)
{
    void *base = mmap(NULL, memory->bytes, PROT_READ, MAP_SHARED, memory->fd, 0);

    return base == MAP_FAILED ? errno : 10;
}

static int in_child(struct call *call, int (*run)(const struct memory *))
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL);
        _exit(run(call->memory));
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return fail_errno(call, "fork");
    call_field(call, "signal", WIFSIGNALED(status) ? (uint64_t)WTERMSIG(status) : 0);
    call_field(call, "status", WIFEXITED(status) ? (uint64_t)WEXITSTATUS(status) : 0);
    return 0;
}

static int fork_touch(struct call *call)
{
    return in_child(call, child_touch);
}

static int fork_punch(struct call *call)
{
    return in_child(call, child_punch);
}

static int fork_map(struct call *call)
{
    return in_child(call, child_map);
}

/* Starts a program, which has the shim in its environment. */
static int spawn(struct call *call)
{
    call_field(call, "status", (uint64_t)system("true"));
    return 0;
}

const struct command layout_commands[] = {
    {"discard", discard},
    {"remove", remove_pages},
    {"dontneed", dontneed},
    {"hugepage", hugepage},
    {"dofork", dofork},
    {"allocated", allocated},
    {"preallocate", preallocate},
    {"map-again", map_again},
    {"map-in-place", map_in_place},
    {"map-over", map_over},
    {"move", move},
    {"map", map_more},
    {"unmap", unmap},
    {"fork-touch", fork_touch},
    {"fork-punch", fork_punch},
    {"fork-map", fork_map},
    {"spawn", spawn},
    {NULL, NULL},
};
