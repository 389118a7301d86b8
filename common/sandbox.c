/* SPDX-License-Identifier: MIT */
#include "sandbox.h"

#include "log.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED true
#endif
#endif
#ifndef SANITIZED
#define SANITIZED false
#endif

/* The filter takes some 400 KiB while it is made. A block is too small for a mapping of its own. */
#define ROOM_BLOCK_BYTES 65536
#define ROOM_BLOCKS      17

/*
 * The calls that the programs, libnbd, GnuTLS and the C library with its resolver's modules make, and others that do
 * no harm. Names that this libseccomp does not know are left out.
 */
static const char *const allowed[] = {
    /* memory */
    "brk", "madvise", "membarrier", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mprotect", "mremap", "mseal",
    "msync", "munlock", "munlockall", "munmap", "userfaultfd", "memfd_create",
    /* threads and time */
    "arch_prctl", "clock_getres", "clock_gettime", "clock_nanosleep", "exit", "exit_group", "futex", "futex_requeue",
    "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "getcpu", "getitimer", "getrandom", "gettimeofday",
    "nanosleep", "prctl", "restart_syscall", "rseq", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_setaffinity",
    "sched_setscheduler", "sched_yield", "set_robust_list", "set_tid_address", "setitimer", "time", "timer_create",
    "timer_delete", "timer_getoverrun", "timer_gettime", "timer_settime", "timerfd_create", "timerfd_gettime",
    "timerfd_settime",
    /* signals */
    "pause", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
    "sigaltstack", "signalfd", "signalfd4",
    /* facts about this process and this machine, and its limits */
    "capget", "getegid", "geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getpid", "getppid", "getpriority",
    "getresgid", "getresuid", "getrlimit", "getrusage", "getsid", "gettid", "getuid", "prlimit64", "setpriority",
    "setrlimit", "sysinfo", "times", "umask", "uname",
    /* descriptors */
    "close", "close_range", "dup", "dup2", "dup3", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_pwait",
    "epoll_pwait2", "epoll_wait", "eventfd", "eventfd2", "fcntl", "flock", "inotify_add_watch", "inotify_init1",
    "inotify_rm_watch", "ioctl", "lseek", "pidfd_open", "pidfd_send_signal", "pipe", "pipe2", "poll", "ppoll",
    "pread64", "preadv", "preadv2", "pselect6", "pwrite64", "pwritev", "pwritev2", "read", "readv", "select",
    "sendfile", "splice", "tee", "vmsplice", "write", "writev",
    /* files */
    "access", "chdir", "chmod", "copy_file_range", "faccessat", "faccessat2", "fadvise64", "fallocate", "fchdir",
    "fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "fdatasync", "fgetxattr", "flistxattr", "fstat",
    "fstatfs", "fsync", "ftruncate", "getcwd", "getdents", "getdents64", "getxattr", "lgetxattr", "link", "linkat",
    "listxattr", "lstat", "mkdir", "mkdirat", "newfstatat", "open", "openat", "openat2", "readahead", "readlink",
    "readlinkat", "rename", "renameat", "renameat2", "rmdir", "stat", "statfs", "statx", "symlink", "symlinkat",
    "sync_file_range", "truncate", "unlink", "unlinkat", "utimensat",
    /* network; socket() itself is below */
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom",
    "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socketpair"};

/* Calls that these programs and their libraries never make, but an intruder would. */
static const char *const forbidden[] = {"bpf",
                                        "chroot",
                                        "delete_module",
                                        "execve",
                                        "execveat",
                                        "finit_module",
                                        "fsconfig",
                                        "fsmount",
                                        "fsopen",
                                        "fspick",
                                        "init_module",
                                        "kcmp",
                                        "kexec_file_load",
                                        "kexec_load",
                                        "mount",
                                        "mount_setattr",
                                        "move_mount",
                                        "open_by_handle_at",
                                        "open_tree",
                                        "perf_event_open",
                                        "pidfd_getfd",
                                        "pivot_root",
                                        "process_vm_readv",
                                        "process_vm_writev",
                                        "ptrace",
                                        "reboot",
                                        "setns",
                                        "swapoff",
                                        "swapon",
                                        "umount2",
                                        "unshare"};

static int names_add(scmp_filter_ctx filter, uint32_t action, const char *const *names, size_t n_names)
{
    for (size_t i = 0; i < n_names; i++) {
        int call = seccomp_syscall_resolve_name(names[i]);
        int rc = call == __NR_SCMP_ERROR ? 0 : seccomp_rule_add(filter, action, call, 0);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

/* Allows sockets of these families only, and no raw IP sockets. */
static int sockets_add(scmp_filter_ctx filter)
{
    static const int whole[] = {AF_UNIX,
                                AF_NETLINK}; /* the resolver asks netlink for the interfaces, by a raw socket */
    static const int parts[] = {AF_INET, AF_INET6};
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM};
    const unsigned type_mask = ~(unsigned)(SOCK_CLOEXEC | SOCK_NONBLOCK);
    int rc = 0;
    for (size_t i = 0; i < 2 && rc == 0; i++) {
        rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 1,
                              SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)whole[i]));
        for (size_t t = 0; t < 2 && rc == 0; t++) {
            rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2,
                                  SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)parts[i]),
                                  SCMP_A1(SCMP_CMP_MASKED_EQ, type_mask, (scmp_datum_t)types[t]));
        }
    }
    return rc;
}

/*
 * Allows new threads, and signals to this process (abort(3) sends one). clone3() is not allowed, because a filter
 * cannot see its flags; the C library uses clone() where clone3() fails with ENOSYS.
 */
static int processes_add(scmp_filter_ctx filter)
{
    const scmp_datum_t self = (scmp_datum_t)getpid();
    int rc = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                              SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD));
    rc = rc < 0 ? rc : seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(kill), 1, SCMP_A0(SCMP_CMP_EQ, self));
    rc = rc < 0 ? rc : seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1, SCMP_A0(SCMP_CMP_EQ, self));
    return rc;
}

static int attributes_set(scmp_filter_ctx filter)
{
    const struct {
        enum scmp_filter_attr attribute;
        uint32_t value;
    } attributes[] = {
        {SCMP_FLTATR_CTL_TSYNC, 1},
        {SCMP_FLTATR_CTL_LOG, 1},
        {SCMP_FLTATR_CTL_SSB, 1},      /* leaves off the mitigation of Speculative Store Bypass: it costs too much */
        {SCMP_FLTATR_CTL_OPTIMIZE, 2}, /* a tree instead of a list: calls with checked arguments are found sooner */
        {SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS},
    };
    for (size_t i = 0; i < sizeof(attributes) / sizeof(attributes[0]); i++) {
        int rc = seccomp_attr_set(filter, attributes[i].attribute, attributes[i].value);
        if (rc < 0) {
            return rc;
        }
    }
    return 0;
}

/* Makes the filter and loads it; there is memory enough. Returns 0 or -errno. */
static int filter_make(void)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    if (filter == NULL) {
        return -ENOMEM;
    }
    int rc = attributes_set(filter);
    rc = rc < 0 ? rc : names_add(filter, SCMP_ACT_ALLOW, allowed, sizeof(allowed) / sizeof(allowed[0]));
    rc = rc < 0 ? rc : names_add(filter, SCMP_ACT_KILL_PROCESS, forbidden, sizeof(forbidden) / sizeof(forbidden[0]));
    rc = rc < 0 ? rc : sockets_add(filter);
    rc = rc < 0 ? rc : processes_add(filter);
    rc = rc < 0 ? rc : seccomp_load(filter);
    seccomp_release(filter);
    return rc;
}

/*
 * Makes sure that the heap has room for the filter: libseccomp (2.5.4) damages the heap if an allocation fails while
 * it loads one. Returns a block above that room, which keeps the C library from giving the room back to the kernel;
 * NULL if there is too little memory.
 */
static void *room_make(void)
{
    void *blocks[ROOM_BLOCKS];
    size_t n = 0;
    while (n < ROOM_BLOCKS && (blocks[n] = malloc(ROOM_BLOCK_BYTES)) != NULL) {
        n++;
    }
    void *last = n == ROOM_BLOCKS ? blocks[--n] : NULL;
    while (n > 0) {
        free(blocks[--n]);
    }
    return last;
}

static int filter_load(void)
{
    void *above = room_make();
    int rc = above == NULL ? -ENOMEM : filter_make();
    free(above);
    return rc;
}

/*
 * Tries seccomp(2) in a child process. Returns 0 if it may be called, 1 if a list that the process was started with
 * kills or refuses it, or -errno if that could not be found out; then *what is the call that failed.
 */
static int child_try(const char **what)
{
    /* A parent that ignores SIGCHLD hands that on, and then waitpid() finds no child. */
    struct sigaction before, standard = {.sa_handler = SIG_DFL};
    sigaction(SIGCHLD, &standard, &before);
    int status = EXIT_FAILURE, rc = 0;
    *what = "fork";
    pid_t pid = fork();
    if (pid == 0) {
        uint32_t action = SECCOMP_RET_KILL_PROCESS;
        _exit(syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
    }
    pid_t ended = pid;
    if (pid > 0) {
        *what = "waitpid";
        do {
            ended = waitpid(pid, &status, 0);
        } while (ended < 0 && errno == EINTR);
    }
    if (ended < 0) {
        rc = -errno;
    } else if (status != EXIT_SUCCESS) {
        rc = 1;
    }
    sigaction(SIGCHLD, &before, NULL);
    return rc;
}

/*
 * Whether this process may call seccomp(2). A list that the process was started with (SystemCallFilter= of a service,
 * or that of a container) may kill a process that calls it, so a child process tries the call. If not, it logs why.
 */
static bool may_be_loaded(void)
{
    const char *what = "";
    int rc = prctl(PR_GET_SECCOMP, 0, 0, 0, 0) == 0 ? 0 : child_try(&what);
    if (rc > 0) {
        log_warning("this program's own list of system calls is not installed: the list that it was started with "
                    "(SystemCallFilter= of its service?) lacks seccomp(2)");
    } else if (rc < 0) {
        log_warning("this program's own list of system calls is not installed: a child process could not try whether "
                    "the list that it was started with has seccomp(2): %s: %s",
                    what, strerror(-rc));
    }
    return rc == 0;
}

void sandbox_no_new_privs(void)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) {
        log_warning("cannot set no_new_privs: %s", strerror(errno));
    }
}

/* In a test build (-Dfault_points=true), makes the call that GHOSTBOX_TRY_CALL names, as an intruder would. */
static void try_call(void)
{
#ifdef GHOSTBOX_FAULT_POINTS
    const char *name = getenv("GHOSTBOX_TRY_CALL");
    char *const argv[] = {"/bin/true", NULL};
    long rc = -1;
    if (name == NULL) {
        return;
    }
    if (strcmp(name, "execve") == 0) {
        rc = execve(argv[0], argv, NULL);
    } else if (strcmp(name, "ptrace") == 0) {
        rc = ptrace(PTRACE_ATTACH, getppid(), NULL, NULL);
    } else if (strcmp(name, "raw") == 0) {
        rc = socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6);
    } else if (strcmp(name, "fork") == 0) {
        rc = fork();
    } else if (strcmp(name, "kill") == 0) {
        rc = kill(getppid(), 0);
    }
    log_info("tried %s: %s", name, rc < 0 ? strerror(errno) : "allowed");
#endif
}

bool sandbox_enter(void)
{
    if (SANITIZED) {
        log_info("built with a sanitizer: every system call is allowed");
        return false;
    }
    if (!may_be_loaded()) {
        return false;
    }
    int rc = filter_load();
    if (rc < 0) {
        log_warning("every system call is allowed, because the kernel did not take the list of them: %s",
                    strerror(-rc));
    }
    try_call();
    return rc == 0;
}
