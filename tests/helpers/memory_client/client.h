/* SPDX-License-Identifier: MIT */
/*
 * A small process in place of QEMU: it maps memfds called memory-backend-memfd MAP_SHARED, as QEMU does, and runs
 * commands on them. It knows nothing of GhostBox; the shim is preloaded into it.
 *
 *   memory-client --bytes 64M stress threads=8 seconds=60     runs one command and ends
 *   memory-client --bytes 64M hold                            runs commands from stdin, one a line
 *
 * Each command prints one JSON line: {"command": …, "ok": true, …} or {…, "ok": false, "error": …}. A command whose
 * line begins with "& " runs in a thread of its own. Words after the command are key=value.
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

/* Returns the mapping with this index, or NULL. */
struct memory *memory_at(uint64_t index);
/* Makes and maps another memfd. Returns the mapping, or NULL with errno. */
struct memory *memory_map(uint64_t bytes, int share_flag, uint64_t *index);
/* Makes a memfd. Returns its descriptor, or -1 with errno. */
int memory_fd(uint64_t bytes);

/* A command that runs: its words and its answer. */
struct call {
    char *words[32];
    int n_words;
    struct memory *memory;
    FILE *fields; /* the answer's fields, each as ", \"key\": value" */
    char error[ERROR_BYTES];
};

/* Returns the number of a word key=VALUE, which may end in K, M or G; `otherwise` if there is no such word. */
uint64_t call_number(const struct call *call, const char *key, uint64_t otherwise);
void call_field(struct call *call, const char *key, uint64_t value);
void call_field_double(struct call *call, const char *key, double value);
__attribute__((format(printf, 2, 3))) int call_fail(struct call *call, const char *format, ...);
int call_fail_word(struct call *call, uint64_t word, uint64_t expected, uint64_t got);
/* Sets *first and *n to the pages that first= and n= name; without them, to all pages. */
void call_pages(const struct call *call, uint64_t *first, uint64_t *n);

struct command {
    const char *name;
    int (*run)(struct call *call); /* returns 0, or -1 after call_fail() */
};
extern const struct command pattern_commands[], scan_commands[], layout_commands[], stress_commands[];

/* Returns what word number `word` holds after `fill seed=SEED`; never 0. */
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
