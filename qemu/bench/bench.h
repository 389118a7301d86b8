/* SPDX-License-Identifier: MIT */
/* What the commands of ghostbox-bench-client share. main.c says what the program is. */
#ifndef GHOSTBOX_BENCH_H
#define GHOSTBOX_BENCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>
#include <time.h>

#define PAGE_BYTES   4096u
#define PAGE_WORDS   (PAGE_BYTES / sizeof(uint64_t))
#define THREADS_MAX  64u
#define SPIN_MAX_US  10000u
#define SECONDS_MAX  3600u
#define MS_MAX       (SECONDS_MAX * 1000u)
#define NS_PER_MS    1000000ull
#define NS_PER_US    1000ull
#define NS_PER_S     1000000000ull
#define RANDOM_START 88172645463325252ull

/* Ends the program with status 1 and "ghostbox-bench-client: MESSAGE[: why errno says]" on stderr. */
__attribute__((format(printf, 1, 2), noreturn)) void fail(const char *format, ...);
__attribute__((format(printf, 1, 2), noreturn)) void fail_errno(const char *format, ...);

/* The words KEY=VALUE behind the command. A word that no command asks for is an error (arguments_check). */
struct arguments {
    char **words;
    int n_words;
    uint64_t used; /* a bit for each word */
};

const char *argument_text(struct arguments *args, const char *key, const char *otherwise);
uint64_t argument_number(struct arguments *args, const char *key, uint64_t otherwise, uint64_t max);
uint64_t argument_size(struct arguments *args, const char *key, uint64_t otherwise);
/* memory=remote|local|file, bytes=SIZE … are asked for by memory_map. */
void arguments_check(const struct arguments *args);

static inline uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* xorshift64: no library call, no lock; the state is never 0. */
static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline uint64_t random_start(uint64_t seed)
{
    uint64_t state = RANDOM_START ^ (seed * 0x9e3779b97f4a7c15ull);

    return state ? state : RANDOM_START;
}

/* Durations of single operations, kept one by one: quantiles are exact. */
struct samples {
    uint64_t *ns;
    uint64_t n, capacity;
};

void samples_create(struct samples *samples, uint64_t capacity);
void samples_free(struct samples *samples);
void samples_append(struct samples *into, const struct samples *from);
/* {"count", "mean_us", "p50_us", "p99_us", "p999_us", "max_us", "buckets"}; sorts them. */
json_t *samples_to_json(struct samples *samples);

struct memory {
    volatile uint64_t *words;
    uint64_t bytes, n_pages;
};

/*
 * Maps what the arguments name:
 *   memory=remote  a memfd called memory-backend-memfd, shared: the shim hands it to the pager. Without the shim: an
 * error. memory=local   anonymous memory memory=file    path=FILE, shared and before that, cgroup=DIRECTORY moves the
 * process there.
 */
void memory_map(struct memory *memory, struct arguments *args);
/* count different pages of [0, n) in random order, one from each n / count neighbours; the caller frees it. */
uint32_t *pages_shuffled(uint64_t n, uint64_t count, uint64_t seed);

/* Each command prints nothing: its result is returned. */
typedef json_t *command_run(struct arguments *args);

command_run checksum_cost, touch_random, touch_sequential, mix_zipf, mix_write, floor_ping_pong, floor_userfault,
    wire_throughput, nbd_load, nbd_crowd, redundancy;

/* A connection to an NBD server, and an export of it with simple replies. Return what failed, NULL if nothing did. */
const char *nbd_connect(const char *host, const char *port, int *fd);
const char *nbd_negotiate(int fd, const char *export, uint64_t *export_bytes);
/* All of it, which changes iov. Returns 0, or -1 with errno. */
int nbd_send(int fd, struct iovec *iov, int n);

/* A connected pair of TCP sockets; the second belongs to a child that runs serve(fd, ctx) and ends. */
struct tcp_peer {
    int fd;
    int pid;
};

/* address=: ours, on loopback if it is not given. peer_namespace=FILE: the child is in that network namespace. */
struct tcp_route {
    const char *address, *peer_namespace;
};

struct tcp_route tcp_route_of(struct arguments *args);
void tcp_peer_start(struct tcp_peer *peer, const struct tcp_route *route, void (*serve)(int fd, uint64_t ctx),
                    uint64_t ctx);
void child_end(int pid);
/* In a child, right after fork: die when the parent does. */
void child_follow_parent(int parent);

#endif
