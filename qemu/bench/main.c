/* SPDX-License-Identifier: MIT */
/*
 * ghostbox-bench-client: the program that `ghostbox bench` runs. A process runs one command and prints one JSON
 * object.
 *
 *   ghostbox-bench-client COMMAND [KEY=VALUE]…
 *
 * There are four kinds of commands:
 *
 * - random, sequential, zipf, write: the process takes the place of QEMU. It maps memory (remote memory through the
 * shim, a file, or plain local memory: memory_map() in bench.h), touches it in a pattern and measures how long that
 * takes. The pattern is made before the clock starts.
 * - ping-pong, userfault, wire: the floor, that is what the machine needs at least for the same work without
 * GhostBox. Both ends wait as the pager does: they poll for poll_us, then sleep.
 * - checksum: what it costs to check a page.
 * - load, crowd, redundancy: NBD clients that load a server (nbd_load.c, nbd_crowd.c, redundancy.c).
 *
 * The kernel ends this process (SIGTERM) when the process that started it has ended. `follow CMD…` becomes CMD, which
 * ends in the same way. So a benchmark that is killed leaves no process behind.
 *
 * Exit status: 0; 1 if it failed, with the reason on stderr; 2 for wrong usage.
 */
#include "bench.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS_MAX 63

static const struct command {
    const char *name;
    command_run *run;
    const char *help;
} commands[] = {
    {"random", touch_random, "touch count= pages in random order with threads=, seed="},
    {"sequential", touch_sequential, "touch every page in order"},
    {"zipf", mix_zipf, "zipf=CENTI reads over array=SIZE, write_percent=, for ms= after warm_ms=, scan=0|1"},
    {"write", mix_write, "count= writes to random pages with threads="},
    {"ping-pong", floor_ping_pong,
     "count= times 16 bytes out and 4096 back over TCP, client_us=, server_us=, address= peer_namespace="},
    {"userfault", floor_userfault, "count= empty round trips of a userfaultfd between processes, poll_us="},
    {"wire", wire_throughput, "receive over TCP for ms=, address= peer_namespace="},
    {"checksum", checksum_cost, "check and copy count= pages"},
    {"load", nbd_load,
     "NBD requests to host= port= export= depth= bytes= mode= pattern= connections= first= span= poll_us= ms=, over "
     "TLS "
     "with keys=FILE"},
    {"crowd", nbd_crowd,
     "peers that make it hard for a server at host= port= export=: idle= trickle= slow= silent= stuck= vanish= ms="},
    {"redundancy", redundancy,
     "pages to NBD servers at ports=,… export= in mode=copies|parity|stripes of k=, depth= span= pattern= "
     "count=|ms="},
};

static void print_failure(const char *format, va_list args, int error)
{
    fputs("ghostbox-bench-client: ", stderr);
    vfprintf(stderr, format, args);
    if (error)
        fprintf(stderr, ": %s", strerror(error));
    fputc('\n', stderr);
}

void fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    print_failure(format, args, 0);
    va_end(args);
    exit(EXIT_FAILURE);
}

void fail_errno(const char *format, ...)
{
    int error = errno;
    va_list args;

    va_start(args, format);
    print_failure(format, args, error);
    va_end(args);
    exit(EXIT_FAILURE);
}

void child_end(int pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

void child_follow_parent(int parent)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(EXIT_FAILURE);
}

static void usage(void)
{
    fputs("usage: ghostbox-bench-client COMMAND [KEY=VALUE]…\n\n", stderr);
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
        fprintf(stderr, "  %-12s%s\n", commands[i].name, commands[i].help);
    fputs("  follow CMD… run CMD and end it with the caller\n", stderr);
}

/* Becomes another program. PR_SET_PDEATHSIG outlives exec, so that program, too, ends with the parent. */
static int follow(char **argv)
{
    execvp(argv[0], argv);
    fprintf(stderr, "ghostbox-bench-client: cannot run %s: %s\n", argv[0], strerror(errno));
    return 127;
}

static int run(const struct command *command, struct arguments *args)
{
    json_t *result = command->run(args);

    json_dumpf(result, stdout, JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(result);
    return fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

int main(int argc, char **argv)
{
    struct arguments args = {argv + 2, argc - 2, 0};

    child_follow_parent(getppid());
    if (argc > 2 && strcmp(argv[1], "follow") == 0)
        return follow(argv + 2);
    for (size_t i = 0; argc > 1 && argc - 2 <= WORDS_MAX && i < sizeof(commands) / sizeof(*commands); i++)
        if (strcmp(commands[i].name, argv[1]) == 0)
            return run(&commands[i], &args);
    usage();
    return 2;
}
