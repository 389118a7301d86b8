/* SPDX-License-Identifier: MIT */
/*
 * Stress: many threads work on the same pages, with a model of each word.
 *
 * Word w of a page belongs to thread w % threads: only this owner writes it and checks it, so threads meet on the
 * same page without a lock, as CPUs of a guest do. A discard wipes words of all owners while they work. An owner may
 * then read the value of its model or, if a discard of the page began after its last look that no discard overlapped,
 * zero. `begun` and `ended` count the discards of a page. An owner notes `ended` before each look at a word; if
 * `begun` still has that value after the next look, only the model's value is right.
 */
#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define THREADS_MAX       64
#define DISCARD_PAGES_MAX 16

/* stress-stop sets it: the threads end, and all words are checked. */
static _Atomic bool stopped;
/* Operations of each thread of the last run, for stress-progress. */
static _Atomic uint64_t steps[THREADS_MAX];

struct stress {
    struct memory *memory;
    uint64_t first, n; /* pages */
    uint32_t threads, write_percent;
    uint64_t discards_in_10000; /* how many of 10000 operations are discards */
    uint64_t seed, ends_ns;
    uint64_t *model; /* the value of each word */
    uint32_t *seen;  /* for each word `ended` before the last look */
    _Atomic uint32_t *begun, *ended;
    _Atomic bool failed;
    pthread_mutex_t failure_lock;
    uint64_t wrong_word, expected, got; /* the first failure */
    int discard_errno;
};

struct worker {
    struct stress *stress;
    pthread_t thread;
    uint32_t index;
    uint64_t random;
    uint64_t reads, writes, discards, words, wiped;
};

static uint64_t next_random(struct worker *worker)
{
    return worker->random = mix(worker->random);
}

static void note_failure(struct stress *stress, uint64_t word, uint64_t expected, uint64_t got, int discard_errno)
{
    pthread_mutex_lock(&stress->failure_lock);
    if (!atomic_load(&stress->failed)) {
        stress->wrong_word = word;
        stress->expected = expected;
        stress->got = got;
        stress->discard_errno = discard_errno;
        atomic_store(&stress->failed, true);
    }
    pthread_mutex_unlock(&stress->failure_lock);
}

/* Word numbers in the model count from the first page. */
static uint64_t *word_at(const struct stress *stress, uint64_t word)
{
    return &stress->memory->words[stress->first * WORDS_A_PAGE + word];
}

static void check_word(struct worker *worker, uint64_t word)
{
    struct stress *stress = worker->stress;
    uint64_t page = word / WORDS_A_PAGE;
    uint32_t ended = atomic_load(&stress->ended[page]);
    uint64_t got = word_load(word_at(stress, word));

    atomic_signal_fence(memory_order_seq_cst);
    uint32_t begun = atomic_load(&stress->begun[page]);
    bool wiped = got == 0 && begun != stress->seen[word];

    worker->words++;
    if (got != stress->model[word] && !wiped) {
        note_failure(stress, stress->first * WORDS_A_PAGE + word, stress->model[word], got, 0);
        return;
    }
    worker->wiped += got != stress->model[word];
    stress->model[word] = got;
    stress->seen[word] = ended;
}

static void write_word(struct worker *worker, uint64_t word)
{
    struct stress *stress = worker->stress;
    uint64_t value = next_random(worker) | 1;

    check_word(worker, word);
    stress->seen[word] = atomic_load(&stress->ended[word / WORDS_A_PAGE]);
    stress->model[word] = value;
    word_store(word_at(stress, word), value);
}

static void on_own_words(struct worker *worker, uint64_t page, void (*act)(struct worker *, uint64_t))
{
    for (uint64_t i = worker->index; i < WORDS_A_PAGE; i += worker->stress->threads)
        act(worker, page * WORDS_A_PAGE + i);
}

static void write_page(struct worker *worker, uint64_t page)
{
    uint64_t own = WORDS_A_PAGE / worker->stress->threads;

    worker->writes++;
    if (next_random(worker) % 2)
        on_own_words(worker, page, write_word);
    else
        write_word(worker, page * WORDS_A_PAGE + worker->index + next_random(worker) % own * worker->stress->threads);
}

/* Discards pages. This thread's words in them must be zero afterwards, because no other thread writes them. */
static void discard_pages(struct worker *worker, uint64_t page)
{
    struct stress *stress = worker->stress;
    uint64_t n = 1 + next_random(worker) % DISCARD_PAGES_MAX;

    n = n < stress->n - page ? n : stress->n - page;
    for (uint64_t i = page; i < page + n; i++)
        atomic_fetch_add(&stress->begun[i], 1);
    int rc = fallocate(stress->memory->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       (off_t)((stress->first + page) * PAGE_BYTES), (off_t)(n * PAGE_BYTES));

    if (rc < 0)
        note_failure(stress, (stress->first + page) * WORDS_A_PAGE, 0, 0, errno);
    for (uint64_t i = page; i < page + n; i++)
        atomic_fetch_add(&stress->ended[i], 1);
    for (uint64_t i = page; i < page + n && rc == 0; i++)
        for (uint64_t own = worker->index; own < WORDS_A_PAGE; own += stress->threads)
            stress->model[i * WORDS_A_PAGE + own] = 0;
    for (uint64_t i = page; i < page + n && rc == 0; i++)
        on_own_words(worker, i, check_word);
    worker->discards++;
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    struct stress *stress = worker->stress;

    while (!atomic_load(&stress->failed) && !atomic_load(&stopped) && now_ns() < stress->ends_ns) {
        uint64_t page = next_random(worker) % stress->n;
        uint64_t draw = next_random(worker);

        if (draw % 10000 < stress->discards_in_10000) {
            discard_pages(worker, page);
        } else if ((draw >> 32) % 100 < stress->write_percent) {
            write_page(worker, page);
        } else {
            worker->reads++;
            on_own_words(worker, page, check_word);
        }
        atomic_fetch_add_explicit(&steps[worker->index], 1, memory_order_relaxed);
    }
    return NULL;
}

/* Checks all words once more, after the threads have ended. */
static void check_all(struct stress *stress, struct worker *worker)
{
    for (uint64_t word = 0; word < stress->n * WORDS_A_PAGE && !atomic_load(&stress->failed); word++)
        check_word(worker, word);
}

static void *allocate(uint64_t n, size_t bytes)
{
    void *memory = calloc(n, bytes);

    if (!memory)
        abort();
    return memory;
}

static int put_result(struct call *call, const struct stress *stress, const struct worker *workers)
{
    struct worker sum = {.reads = 0};

    for (uint32_t i = 0; i < stress->threads; i++) {
        sum.reads += workers[i].reads;
        sum.writes += workers[i].writes;
        sum.discards += workers[i].discards;
        sum.words += workers[i].words;
        sum.wiped += workers[i].wiped;
    }
    call_field(call, "operations", sum.reads + sum.writes + sum.discards);
    call_field(call, "reads", sum.reads);
    call_field(call, "writes", sum.writes);
    call_field(call, "discards", sum.discards);
    call_field(call, "words_verified", sum.words);
    call_field(call, "words_wiped", sum.wiped);
    if (!atomic_load(&stress->failed))
        return 0;
    if (stress->discard_errno)
        return call_fail(call, "fallocate: %s", strerrorname_np(stress->discard_errno));
    return call_fail_word(call, stress->wrong_word, stress->expected, stress->got);
}

/* Makes the model: all words are zero or, with fresh=0, as they are read now. */
static void model_init(struct stress *stress, bool fresh)
{
    uint64_t n_words = stress->n * WORDS_A_PAGE;

    stress->model = allocate(n_words, sizeof(*stress->model));
    stress->seen = allocate(n_words, sizeof(*stress->seen));
    stress->begun = allocate(stress->n, sizeof(*stress->begun));
    stress->ended = allocate(stress->n, sizeof(*stress->ended));
    for (uint64_t word = 0; !fresh && word < n_words; word++)
        stress->model[word] = word_load(word_at(stress, word));
}

static int stress(struct call *call)
{
    struct stress stress = {.memory = call->memory, .failure_lock = PTHREAD_MUTEX_INITIALIZER};
    static struct worker workers[THREADS_MAX];

    call_pages(call, &stress.first, &stress.n);
    stress.threads = (uint32_t)call_number(call, "threads", 8);
    stress.seed = call_number(call, "seed", 1);
    stress.write_percent = (uint32_t)call_number(call, "write", 50);
    stress.discards_in_10000 = call_number(call, "discards", 0);
    if (stress.threads < 1 || stress.threads > THREADS_MAX)
        return call_fail(call, "threads must be from 1 to %d", THREADS_MAX);
    atomic_store(&stopped, false);
    model_init(&stress, call_number(call, "fresh", 1));
    stress.ends_ns = now_ns() + call_number(call, "seconds", 5) * 1000000000ull;
    for (uint32_t i = 0; i < stress.threads; i++) {
        workers[i] = (struct worker){.stress = &stress, .index = i, .random = mix(stress.seed * 1000 + i)};
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
            abort();
    }
    for (uint32_t i = 0; i < stress.threads; i++)
        pthread_join(workers[i].thread, NULL);
    check_all(&stress, &workers[0]);
    int rc = put_result(call, &stress, workers);

    free(stress.model);
    free(stress.seen);
    free((void *)stress.begun);
    free((void *)stress.ended);
    return rc;
}

static int stress_stop(struct call *call)
{
    (void)call;
    atomic_store(&stopped, true);
    return 0;
}

/* Answers how many operations each thread has done. */
static int stress_progress(struct call *call)
{
    uint64_t n_threads = call_number(call, "threads", 8);
    char key[16];

    for (uint64_t i = 0; i < n_threads && i < THREADS_MAX; i++) {
        snprintf(key, sizeof(key), "thread_%u", (unsigned)i);
        call_field(call, key, atomic_load_explicit(&steps[i], memory_order_relaxed));
    }
    return 0;
}

const struct command stress_commands[] = {
    {"stress", stress}, {"stress-stop", stress_stop}, {"stress-progress", stress_progress}, {NULL, NULL}};
