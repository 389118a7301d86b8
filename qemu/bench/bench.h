/* SPDX-License-Identifier: MIT */
/* What the commands of ghostbox-bench-client share. main.c describes the program. */
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

/*
 * Both end the program with status 1 and print "ghostbox-bench-client: MESSAGE" on stderr, fail_errno() with errno's
 * text.
 */
__attribute__((format(printf, 1, 2), noreturn)) void fail(const char *format, ...);
__attribute__((format(printf, 1, 2), noreturn)) void fail_errno(const char *format, ...);

/*
 * The words KEY=VALUE after the command. A word for which no argument_*() has asked is an error (arguments_check()).
 */
struct arguments {
    char **words;
    int n_words;
    uint64_t used; /* a bit for each word that was asked for */
};

/* Each returns the value of a key, or `otherwise` if the key is not given. Values of a wrong form end the program. */
const char *argument_text(struct arguments *args, const char *key, const char *otherwise);
uint64_t argument_number(struct arguments *args, const char *key, uint64_t otherwise, uint64_t max);
uint64_t argument_size(struct arguments *args, const char *key, uint64_t otherwise);
/* Ends the program if a word was not asked for. Called after all others; memory_map() calls it. */
void arguments_check(const struct arguments *args);

static inline uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

/* Returns a random number (xorshift64), without a library call or a lock; the state is never 0. */
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

/* Durations of single operations, kept one by one, so that quantiles are exact. */
struct samples {
    uint64_t *ns;
    uint64_t n, capacity;
};

void samples_create(struct samples *samples, uint64_t capacity);
void samples_free(struct samples *samples);
void samples_append(struct samples *into, const struct samples *from);
/* Returns {"count", "mean_us", "p50_us", "p99_us", "p999_us", "max_us", "buckets"}. Sorts the samples. */
json_t *samples_to_json(struct samples *samples);

struct memory {
    volatile uint64_t *words;
    uint64_t bytes, n_pages;
};

/*
 * Maps the memory that the arguments name:
 *
 *   memory=remote  a memfd called memory-backend-memfd, shared, which the shim hands to the pager; without the shim
 * this is an error memory=local   anonymous memory memory=file    the file path=FILE, shared
 *
 * Before that, cgroup=DIRECTORY moves the process to that cgroup.
 */
void memory_map(struct memory *memory, struct arguments *args);
/*
 * Returns `count` different pages of [0, n) in random order, one of each n / count neighbours. The caller frees the
 * array.
 */
uint32_t *pages_shuffled(uint64_t n, uint64_t count, uint64_t seed);

/* A command, which returns its result and prints nothing. */
typedef json_t *command_run(struct arguments *args);

command_run checksum_cost, touch_random, touch_sequential, mix_zipf, mix_write, floor_ping_pong, floor_userfault,
    wire_throughput, nbd_load, nbd_crowd, redundancy;

/* Connects to an NBD server. Returns NULL, or what failed. */
const char *nbd_connect(const char *host, const char *port, int *fd);
/* Chooses an export, with simple replies. Returns NULL, or what failed. */
const char *nbd_negotiate(int fd, const char *export, uint64_t *export_bytes);
/* Sends all bytes of iov, which it changes. Returns 0, or -1 with errno. */
int nbd_send(int fd, struct iovec *iov, int n);

/* One end of a TCP connection; the other belongs to a child, which runs serve(fd, ctx) and ends. */
struct tcp_peer {
    int fd;
    int pid;
};

/*
 * address=: this end's address, by default 127.0.0.1. peer_namespace=FILE: the network namespace of the child's
 * socket.
 */
struct tcp_route {
    const char *address, *peer_namespace;
};

struct tcp_route tcp_route_of(struct arguments *args);
void tcp_peer_start(struct tcp_peer *peer, const struct tcp_route *route, void (*serve)(int fd, uint64_t ctx),
                    uint64_t ctx);
/* Kills a child and waits for its end. */
void child_end(int pid);
/* Has the kernel end this process (SIGTERM) when its parent ends. Called right after fork(). */
void child_follow_parent(int parent);

#endif
