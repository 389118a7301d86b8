/* SPDX-License-Identifier: MIT */
/*
 * A small process in place of QEMU: maps memfds called memory-backend-memfd MAP_SHARED, as QEMU does, and works on
 * them by commands. It knows nothing of GhostBox; the shim is preloaded into it.
 *
 *   memory-client --bytes 64M stress threads=8 seconds=60     one command, then the end
 *   memory-client --bytes 64M hold                            commands from stdin, one a line
 *
 * Each command answers with one JSON line: {"command": …, "ok": true, …} or {…, "ok": false, "error": …}. A line that
 * begins with "& " runs in a thread of its own and answers when it is done. Words after the command are key=value.
 */
#ifndef MEMORY_CLIENT_H
#define MEMORY_CLIENT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define PAGE_BYTES   4096u
#define WORDS_A_PAGE (PAGE_BYTES / 8u)
#define REGIONS_MAX  17
#define ERROR_BYTES  256

struct memory {
    uint64_t *words; /* NULL: not mapped */
    uint64_t bytes;
    int fd;
};

struct memory *memory_at(uint64_t index);
/* Maps one more; returns it or NULL with errno. */
struct memory *memory_map(uint64_t bytes, int share_flag, uint64_t *index);
/* For the commands that map on their own. */
int memory_fd(uint64_t bytes);

/* One command as it runs: what it was told, and what it will answer. */
struct call {
    char *words[32];
    int n_words;
    struct memory *memory;
    FILE *fields; /* ", \"key\": value" of the answer */
    char error[ERROR_BYTES];
};

/* A number among the words: key=VALUE, with K, M, G; otherwise what is given. */
uint64_t call_number(const struct call *call, const char *key, uint64_t otherwise);
void call_field(struct call *call, const char *key, uint64_t value);
void call_field_double(struct call *call, const char *key, double value);
__attribute__((format(printf, 2, 3))) int call_fail(struct call *call, const char *format, ...);
int call_fail_word(struct call *call, uint64_t word, uint64_t expected, uint64_t got);
/* The pages that first= and n= name; all of them without. */
void call_pages(const struct call *call, uint64_t *first, uint64_t *n);

struct command {
    const char *name;
    int (*run)(struct call *call); /* 0, or -1 after call_fail */
};
extern const struct command pattern_commands[], scan_commands[], layout_commands[], stress_commands[];

/* What word number `word` holds after fill seed=SEED. Never 0. */
uint64_t pattern(uint64_t seed, uint64_t word);
uint64_t mix(uint64_t x);
uint64_t now_ns(void);

static inline uint64_t word_load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline void word_store(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

#endif
