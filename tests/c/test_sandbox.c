/* SPDX-License-Identifier: MIT */
/* Which system calls a program in the sandbox may make. A child process makes each of them. */
#include "common/sandbox.h"

#include "check.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <seccomp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define NO_SUCH_CALL 100000

/* Exit statuses of the child process; 1 to 199 are an errno. */
#define ALLOWED 0
#define OPEN    201 /* there is no sandbox */

/*
 * Makes a call in the sandbox. Returns minus the signal that killed the process, the errno of a call that failed, or
 * ALLOWED.
 */
static int outcome(long call, long a, long b, long c)
{
    pid_t pid = fork();
    if (pid == 0) {
        sandbox_no_new_privs();
        if (!sandbox_enter()) {
            _exit(OPEN);
        }
        _exit(syscall(call, a, b, c) < 0 ? errno : ALLOWED);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void what_only_an_intruder_asks_for_kills_the_process(void)
{
    static const long calls[] = {SYS_execve,
                                 SYS_execveat,
                                 SYS_ptrace,
                                 SYS_process_vm_readv,
                                 SYS_mount,
                                 SYS_umount2,
                                 SYS_process_vm_writev,
                                 SYS_unshare,
                                 SYS_setns,
                                 SYS_chroot,
                                 SYS_pivot_root,
                                 SYS_bpf,
                                 SYS_reboot,
                                 SYS_finit_module,
                                 SYS_kexec_load,
                                 SYS_perf_event_open,
                                 SYS_fsopen,
                                 SYS_move_mount,
                                 SYS_init_module,
                                 SYS_delete_module,
                                 SYS_open_tree,
                                 SYS_pidfd_getfd};
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        CHECK_EQUAL(outcome(calls[i], 0, 0, 0), -SIGSYS);
    }
}

static void calls_that_the_list_does_not_know_fail_as_if_the_kernel_had_none(void)
{
    CHECK_EQUAL(outcome(NO_SUCH_CALL, 0, 0, 0), ENOSYS);
    CHECK_EQUAL(outcome(SYS_keyctl, 0, 0, 0), ENOSYS);
    CHECK_EQUAL(outcome(SYS_io_uring_setup, 1, 0, 0), ENOSYS);
    CHECK_EQUAL(outcome(SYS_setuid, 0, 0, 0), ENOSYS);
}

static void no_other_process_is_made_or_signalled(void)
{
    CHECK_EQUAL(outcome(SYS_fork, 0, 0, 0), ENOSYS);
    CHECK_EQUAL(outcome(SYS_clone, SIGCHLD, 0, 0), ENOSYS);
    CHECK_EQUAL(outcome(SYS_kill, getpid(), 0, 0), ENOSYS);
}

static void sockets_are_of_the_families_in_use_and_not_raw(void)
{
    CHECK_EQUAL(outcome(SYS_socket, AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), ALLOWED);
    CHECK_EQUAL(outcome(SYS_socket, AF_INET, SOCK_DGRAM, 0), ALLOWED);
    CHECK_EQUAL(outcome(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), ALLOWED);
    CHECK_EQUAL(outcome(SYS_socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0), ALLOWED);
    CHECK_EQUAL(outcome(SYS_socket, AF_INET6, SOCK_RAW, IPPROTO_ICMPV6), ENOSYS);
    CHECK_EQUAL(outcome(SYS_socket, AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_TCP), ENOSYS);
    CHECK_EQUAL(outcome(SYS_socket, AF_PACKET, SOCK_RAW, 0), ENOSYS);
    CHECK_EQUAL(outcome(SYS_socket, AF_ALG, SOCK_SEQPACKET, 0), ENOSYS);
}

static void *run_program(void *arg)
{
    atomic_bool *entered = arg;
    while (!atomic_load(entered)) {
        usleep(1000);
    }
    syscall(SYS_execve, 0, 0, 0);
    return NULL;
}

static void threads_that_were_there_before_are_in_it_too(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        static atomic_bool entered;
        pthread_t thread;
        pthread_create(&thread, NULL, run_program, &entered);
        atomic_store(&entered, sandbox_enter());
        pthread_join(thread, NULL);
        _exit(EXIT_SUCCESS);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    CHECK(WIFSIGNALED(status));
    CHECK_EQUAL(WTERMSIG(status), SIGSYS);
}

/* Enters the sandbox with this many bytes of memory left. Returns the status of the process as waitpid() gives it. */
static int status_with_memory(size_t bytes)
{
    pid_t pid = fork();
    if (pid == 0) {
        size_t n_pages = 0;
        FILE *file = fopen("/proc/self/statm", "r");
        if (file == NULL || fscanf(file, "%zu", &n_pages) != 1) {
            _exit(OPEN);
        }
        fclose(file);
        struct rlimit limit = {.rlim_cur = n_pages * 4096 + bytes, .rlim_max = RLIM_INFINITY};
        setrlimit(RLIMIT_AS, &limit);
        _exit(sandbox_enter() ? EXIT_SUCCESS : EXIT_FAILURE);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return status;
}

static void a_lack_of_memory_on_the_way_is_an_error_and_damages_nothing(void)
{
    int refused = 0;
    int entered = 0;
    for (size_t bytes = 0; bytes < (2 << 20); bytes += 4096) {
        int status = status_with_memory(bytes);
        CHECK(WIFEXITED(status));
        CHECK(WEXITSTATUS(status) != OPEN);
        refused += WEXITSTATUS(status) == EXIT_FAILURE;
        entered += WEXITSTATUS(status) == EXIT_SUCCESS;
    }
    CHECK(refused > 0);
    CHECK(entered > 0);
}

/*
 * Enters the sandbox under a filter that does this to these calls, as SystemCallFilter= of a service installs one. In
 * `said` is what the program logs. Returns whether it has entered.
 */
static bool entered_under(uint32_t action, const int *calls, size_t n_calls, char said[512])
{
    int ends[2];
    CHECK_EQUAL(pipe(ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
        int rc = 0;
        for (size_t i = 0; i < n_calls && rc == 0; i++) {
            rc = seccomp_rule_add(filter, action, calls[i], 0);
        }
        if (rc < 0 || seccomp_load(filter) < 0) {
            _exit(OPEN);
        }
        _exit(sandbox_enter() ? EXIT_SUCCESS : EXIT_FAILURE);
    }
    close(ends[1]);
    size_t used = 0;
    ssize_t got;
    while ((got = read(ends[0], said + used, 511 - used)) > 0) {
        used += (size_t)got;
    }
    said[used] = '\0';
    close(ends[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) != OPEN);
    return WEXITSTATUS(status) == EXIT_SUCCESS;
}

static void a_process_that_may_not_ask_for_a_list_goes_on_without(void)
{
    static const int calls[] = {SCMP_SYS(seccomp)};
    char said[512];
    CHECK(!entered_under(SCMP_ACT_KILL_PROCESS, calls, 1, said));
    CHECK(strstr(said, "is not installed: the list that it was started with (SystemCallFilter= of its service?) "
                       "lacks seccomp(2)") != NULL);
    CHECK(!entered_under(SCMP_ACT_ERRNO(EPERM), calls, 1, said));
    CHECK(strstr(said, "lacks seccomp(2)") != NULL);
}

static void a_child_process_that_cannot_be_made_or_waited_for_is_said_so(void)
{
    static const int forks[] = {SCMP_SYS(fork), SCMP_SYS(vfork), SCMP_SYS(clone), SCMP_SYS(clone3)};
    static const int waits[] = {SCMP_SYS(wait4), SCMP_SYS(waitid)};
    char said[512];
    CHECK(!entered_under(SCMP_ACT_ERRNO(EAGAIN), forks, 4, said));
    CHECK(strstr(said, "has seccomp(2): fork: Resource temporarily unavailable") != NULL);
    CHECK(!entered_under(SCMP_ACT_ERRNO(ECHILD), waits, 2, said));
    CHECK(strstr(said, "has seccomp(2): waitpid: No child processes") != NULL);
}

static void a_list_is_added_to_one_that_was_there(void)
{
    static const int calls[] = {SCMP_SYS(reboot)};
    char said[512];
    CHECK(entered_under(SCMP_ACT_KILL_PROCESS, calls, 1, said));
    CHECK_TEXT(said, "");
}

static void a_parent_that_ignores_its_children_does_not_matter(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        static const int calls[] = {SCMP_SYS(reboot)};
        signal(SIGCHLD, SIG_IGN);
        scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
        if (seccomp_rule_add(filter, SCMP_ACT_KILL_PROCESS, calls[0], 0) < 0 || seccomp_load(filter) < 0) {
            _exit(OPEN);
        }
        _exit(sandbox_enter() ? EXIT_SUCCESS : EXIT_FAILURE);
    }
    int status = EXIT_FAILURE;
    waitpid(pid, &status, 0);
    CHECK_EQUAL(status, EXIT_SUCCESS);
}

static void *nothing(void *arg)
{
    return arg;
}

static void threads_names_and_abort_work_as_ever(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t thread;
        struct addrinfo *found = NULL;
        if (!sandbox_enter() || pthread_create(&thread, NULL, nothing, NULL) != 0 ||
            pthread_join(thread, NULL) != 0 || getaddrinfo("localhost", "10809", NULL, &found) != 0) {
            _exit(EXIT_FAILURE);
        }
        freeaddrinfo(found);
        abort();
    }
    int status = 0;
    waitpid(pid, &status, 0);
    CHECK(WIFSIGNALED(status));
    CHECK_EQUAL(WTERMSIG(status), SIGABRT);
}

int main(int argc, char **argv)
{
    static const struct test tests[] = {
        TEST(what_only_an_intruder_asks_for_kills_the_process),
        TEST(calls_that_the_list_does_not_know_fail_as_if_the_kernel_had_none),
        TEST(no_other_process_is_made_or_signalled),
        TEST(sockets_are_of_the_families_in_use_and_not_raw),
        TEST(threads_that_were_there_before_are_in_it_too),
        TEST(a_lack_of_memory_on_the_way_is_an_error_and_damages_nothing),
        TEST(a_process_that_may_not_ask_for_a_list_goes_on_without),
        TEST(a_child_process_that_cannot_be_made_or_waited_for_is_said_so),
        TEST(a_list_is_added_to_one_that_was_there),
        TEST(a_parent_that_ignores_its_children_does_not_matter),
        TEST(threads_names_and_abort_work_as_ever),
    };
    return TESTS_RUN(tests, argc, argv);
}
