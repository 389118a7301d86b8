/* SPDX-License-Identifier: MIT */
#include "client.h"

#include "size.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static struct memory memories[REGIONS_MAX];
static pthread_mutex_t stdout_lock = PTHREAD_MUTEX_INITIALIZER;
static __thread sigjmp_buf poisoned;
static __thread volatile sig_atomic_t poison_expected;
static __thread uintptr_t poison_address;

uint64_t now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

int memory_fd(uint64_t bytes)
{
    int fd = memfd_create("memory-backend-memfd", MFD_CLOEXEC);

    if (fd >= 0 && ftruncate(fd, (off_t)bytes) < 0)
        return -1;
    return fd;
}

struct memory *memory_at(uint64_t index)
{
    return index < REGIONS_MAX && memories[index].words ? &memories[index] : NULL;
}

struct memory *memory_map(uint64_t bytes, int share_flag, uint64_t *index)
{
    uint64_t i = 0;

    while (i < REGIONS_MAX && memories[i].words)
        i++;
    errno = ENOSPC;
    int fd = i < REGIONS_MAX ? memory_fd(bytes) : -1;

    if (fd < 0)
        return NULL;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, share_flag, fd, 0);

    if (base == MAP_FAILED) {
        int error = errno;

        close(fd);
        errno = error;
        return NULL;
    }
    memories[i] = (struct memory){base, bytes, fd};
    *index = i;
    return &memories[i];
}

/* Maps a file in place of the memfd, for comparison. */
static bool map_file(const char *path, uint64_t bytes)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *base = fd < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (base == MAP_FAILED)
        return false;
    memories[0] = (struct memory){base, bytes, fd};
    return true;
}

uint64_t call_number(const struct call *call, const char *key, uint64_t otherwise)
{
    size_t length = strlen(key);
    uint64_t value = otherwise;

    for (int i = 1; i < call->n_words; i++) {
        const char *word = call->words[i];

        if (strncmp(word, key, length) != 0 || word[length] != '=')
            continue;
        if (size_parse(word + length + 1, &value) == 0)
            return value;
        fprintf(stderr, "memory-client: not a number: %s\n", word);
        exit(2);
    }
    return otherwise;
}

void call_field(struct call *call, const char *key, uint64_t value)
{
    fprintf(call->fields, ", \"%s\": %llu", key, (unsigned long long)value);
}

void call_field_double(struct call *call, const char *key, double value)
{
    fprintf(call->fields, ", \"%s\": %.6f", key, value);
}

int call_fail(struct call *call, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(call->error, sizeof(call->error), format, args);
    va_end(args);
    return -1;
}

int call_fail_word(struct call *call, uint64_t word, uint64_t expected, uint64_t got)
{
    call_field(call, "page", word / WORDS_A_PAGE);
    call_field(call, "offset", word % WORDS_A_PAGE * 8);
    return call_fail(call, "wrong word: page %llu offset %llu: expected %#llx, got %#llx",
                     (unsigned long long)(word / WORDS_A_PAGE), (unsigned long long)(word % WORDS_A_PAGE * 8),
                     (unsigned long long)expected, (unsigned long long)got);
}

void call_pages(const struct call *call, uint64_t *first, uint64_t *n)
{
    uint64_t pages = call->memory->bytes / PAGE_BYTES;

    *first = call_number(call, "first", 0);
    *n = call_number(call, "n", pages - *first);
    if (*first < pages && *n <= pages - *first)
        return;
    fprintf(stderr, "memory-client: there are only %llu pages\n", (unsigned long long)pages);
    exit(2);
}

static const struct command *find_command(const char *name)
{
    const struct command *const tables[] = {pattern_commands, scan_commands, layout_commands, stress_commands};

    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
        for (const struct command *command = tables[i]; command->name; command++)
            if (strcmp(command->name, name) == 0)
                return command;
    return NULL;
}

/* On access to poisoned memory a command fails by siglongjmp(); any other SIGBUS ends the process. */
static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    (void)context;
    if (poison_expected) {
        poison_address = (uintptr_t)info->si_addr;
        poison_expected = 0;
        siglongjmp(poisoned, 1);
    }
    signal(sig, SIG_DFL);
}

static int run_guarded(const struct command *command, struct call *call)
{
    if (sigsetjmp(poisoned, 1)) {
        call_field(call, "page", (poison_address - (uintptr_t)call->memory->words) / PAGE_BYTES);
        return call_fail(call, "SIGBUS");
    }
    poison_expected = 1;
    int rc = command->run(call);

    poison_expected = 0;
    return rc;
}

static void split(struct call *call, char *line)
{
    char *rest = line;

    for (char *word; call->n_words < 32 && (word = strsep(&rest, " \n"));)
        if (*word)
            call->words[call->n_words++] = word;
}

static void answer(const struct call *call, int rc, const char *fields)
{
    pthread_mutex_lock(&stdout_lock);
    printf("{\"command\": \"%s\", \"ok\": %s", call->words[0], rc == 0 ? "true" : "false");
    if (rc != 0)
        printf(", \"error\": \"%s\"", call->error);
    printf("%s}\n", fields);
    fflush(stdout);
    pthread_mutex_unlock(&stdout_lock);
}

/* Runs the command of a line and prints its answer. The line is changed. */
static int run_line(char *line)
{
    struct call call = {.n_words = 0};
    char *fields = NULL;
    size_t fields_bytes;

    split(&call, line);
    if (!call.n_words)
        return 0;
    const struct command *command = find_command(call.words[0]);

    if (!command) {
        fprintf(stderr, "memory-client: no command %s\n", call.words[0]);
        exit(2);
    }
    call.fields = open_memstream(&fields, &fields_bytes);
    call.memory = memory_at(call_number(&call, "region", 0));
    bool can_run = call.memory || strcmp(command->name, "map") == 0;
    int rc = can_run ? run_guarded(command, &call) : call_fail(&call, "not mapped");

    fclose(call.fields);
    answer(&call, rc, fields);
    free(fields);
    return rc;
}

static void *run_in_background(void *line)
{
    run_line(line);
    free(line);
    return NULL;
}

static void start_in_background(const char *line)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, run_in_background, strdup(line)) != 0)
        abort();
    pthread_detach(thread);
}

static int hold(void)
{
    char line[1024];

    puts("{\"command\": \"hold\", \"ok\": true}");
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        if (strcmp(line, "quit\n") == 0)
            break;
        if (strncmp(line, "& ", 2) == 0)
            start_in_background(line + 2);
        else
            run_line(line);
    }
    return 0;
}

static int run_argv(int argc, char **argv)
{
    char line[1024] = "";

    for (int i = 0; i < argc; i++) {
        strncat(line, argv[i], sizeof(line) - strlen(line) - 2);
        strcat(line, " ");
    }
    return run_line(line) == 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
    uint64_t bytes = 0, index;
    bool is_private = argc > 3 && strcmp(argv[3], "--private") == 0;
    bool is_file = argc > 4 && strcmp(argv[3], "--file") == 0;
    int first = is_private ? 4 : is_file ? 5 : 3;

    if (argc <= first || strcmp(argv[1], "--bytes") != 0 || size_parse(argv[2], &bytes) < 0) {
        fputs("usage: memory-client --bytes SIZE [--private | --file FILE] hold | COMMAND [key=value]…\n", stderr);
        return 2;
    }
    sigaction(SIGBUS, &action, NULL);
    bool mapped =
        is_file ? map_file(argv[4], bytes) : memory_map(bytes, is_private ? MAP_PRIVATE : MAP_SHARED, &index) != NULL;

    if (!mapped) {
        fprintf(stderr, "memory-client: cannot map: %s\n", strerror(errno));
        return 3;
    }
    return strcmp(argv[first], "hold") == 0 ? hold() : run_argv(argc - first, argv + first);
}
