/* SPDX-License-Identifier: MIT */
/*
 * ghostbox-pager: answers the page faults of a VM's remote memory.
 *
 * Theory of operation
 *
 * QEMU maps a memfd MAP_SHARED for the guest's second NUMA node. The shim in QEMU (../shim) registers that mapping
 * with a userfaultfd and hands the descriptors to the pager over a Unix socket. From then on each first touch of a
 * page is an event for the pager:
 *
 *   MISSING   the memfd has a hole there: the page becomes a zero page (it was never written), or it is fetched from
 * a donor and mapped by UFFDIO_COPY MINOR     the memfd has the page, but no page table maps it: UFFDIO_CONTINUE maps
 * it WP        only on kernels without WP_ASYNC: the first write to a clean page
 *
 * At most --cache bytes are in the memfds (an eighth more while no page can leave: takes.c). Pages beyond that go to
 * the donors, oldest first, in an order that loses nothing: zap (the shim unmaps the page in QEMU) → read → send →
 * the donor's ack → punch the hole. pages.h has the states of a page and says which thread may change them.
 *
 * Threads
 *   main      signals; starts and ends the others
 *   fault     userfaultfds, demand and readahead connections; only this thread maps pages        (fault/)
 *   evict     shims, zaps, write-back connections, punching holes, discards, copies of extents   (evict/, session/,
 *                                                                                                 link/, rebuild/,
 *                                                                                                 regions/)
 *   lookup    asks the resolver for donors' names, which may take seconds                        (donor/names.c)
 *   key       reads key files of donors over TLS, which may be on a file system that hangs       (donor/secret.c)
 *   control   the control socket                                                                 (control/)
 * The threads share the page table under one lock, which is never held while a page moves.
 *
 * Failure model: if a donor dies, readers of its pages wait for it; with --replicas 2 another donor has the pages
 * (copies.h). If this process dies, the guest waits at its next absent page: the shim holds the userfaultfd open, so
 * nothing ever reads zeroes. With --state another pager goes on with the page map as it was at the last instruction
 * of this process (state.h, recover.c). If QEMU dies, its region is dissolved, and with --exit-with-client this
 * process ends, too. SIGTERM and SIGINT do not end this process while a VM uses its memory.
 *
 * Rights: once all threads run, the program may make only the system calls that it needs (common/sandbox.h).
 *
 * Memory: 16 bytes a touched page, 4.5 MiB for fetches, 8 MiB for write-back (32 with --backup), 2 MiB to copy
 * extents. This memory is locked, because the kernel must not reclaim it while reclaim waits for the pager (trap 6):
 * mlockall, PR_SET_IO_FLUSHER. libnbd allocates a small block for each request, and GnuTLS one for each record,
 * so the allocator is told to keep freed memory.
 */
#include "control.h"
#include "control/status.h"
#include "donor/names.h"
#include "donor/secret.h"
#include "evict/evict_loop.h"
#include "fault/fault_loop.h"
#include "link/link.h"
#include "log.h"
#include "pager.h"
#include "pool/state_anew.h"
#include "regions/recover.h"
#include "sandbox.h"
#include "session/session.h"

#include <errno.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define EXIT_USAGE         2
#define PR_SET_IO_FLUSHER_ 57 /* linux/prctl.h, Linux 5.6 */

/* Locks the process's memory. Reclaim on this host may wait for the pager, so the pager must not wait for reclaim. */
static void stay_in_memory(void)
{
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
    mallopt(M_MMAP_MAX, 0);
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0)
        log_warning("cannot lock our memory (%s): under memory pressure the VM may stall", strerror(errno));
    if (prctl(PR_SET_IO_FLUSHER_, 1, 0, 0, 0) < 0)
        log_info("PR_SET_IO_FLUSHER: %s", strerror(errno));
}

static int print_probe(const struct options *options)
{
    struct features features = {.have = {false}};
    char text[512] = "";
    int device_fd = -1;

    memcpy(features.hidden, options->hidden, sizeof(features.hidden));
    int rc = features_probe(&features, &device_fd, text, sizeof(text));
    bool usable = rc == 0;
    json_t *missing = json_array();

    for (int i = 0; i < FEATURES; i++)
        if (!features.have[i])
            json_array_append_new(missing, json_string(feature_name((enum feature)i)));
    if (usable && options->state)
        rc = state_check(options->state, &features, text, sizeof(text));
    json_t *result = json_pack("{s:b, s:s, s:o, s:s, s:o}", "usable", usable, "error", text, "features",
                               features_to_json(&features), "dirty_tracking", features_dirty_tracking(&features),
                               "missing", missing);

    if (options->state)
        json_object_set_new(result, "resumable", json_boolean(rc == 0));
    json_dumpf(result, stdout, 0);
    putchar('\n');
    if (rc < 0)
        fprintf(stderr, "%s\n", text);
    json_decref(result);
    if (device_fd >= 0)
        close(device_fd);
    return rc == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* Makes a new pool and a new page table. Returns 0, or -errno with an error for people in text. */
static int begin(struct pager *pager, char *text, size_t text_bytes)
{
    const struct options *options = pager->options;
    const struct pool_wishes wishes = {
        .uris = options->donors,
        .n_uris = options->n_donors,
        .backup = options->backup,
        .extent_bytes = options->extent_bytes,
        .pool_bytes = options->pool_bytes,
        .replicas = options->replicas ? options->replicas : 1,
        .allow_same_host = options->allow_same_host,
        .libnbd_only = options->libnbd_only,
    };
    int rc = pool_open(&pager->pool, &wishes, text, text_bytes);

    if (rc < 0)
        return rc;
    uint64_t bytes = pool_bytes(&pager->pool);

    if (options->cache_bytes > bytes)
        log_warning("the cache (%llu bytes) is larger than the donors' memory (%llu bytes)",
                    (unsigned long long)options->cache_bytes, (unsigned long long)bytes);
    if (options->state)
        rc = state_create(&pager->state, options->state, &pager->pool, &pager->features,
                          options->contents == CONTENTS_KEEP, text, text_bytes);
    if (rc < 0)
        return rc;
    rc = page_table_create(&pager->table, (uint32_t)(bytes / PAGE_BYTES), options->contents == CONTENTS_KEEP,
                           state_pages(&pager->state));
    if (rc < 0)
        snprintf(text, text_bytes, "no memory for the page table: %s", strerror(-rc));
    pager_set_cache(pager, options->cache_bytes);
    return rc;
}

/*
 * Takes pool and page table of an earlier pager over from its state file. Returns 0, or -errno with an error in text.
 */
static int resume(struct pager *pager, char *text, size_t text_bytes)
{
    int rc = state_open(&pager->state, pager->options->state, text, text_bytes);

    rc = rc < 0 ? rc : state_restrict_features(&pager->state, &pager->features, text, text_bytes);
    if (rc < 0)
        return rc;
    state_forget_removed(&pager->state);
    const struct state_header *header = pager->state.header;

    rc = state_pool(&pager->state, &pager->pool, pager->options->libnbd_only);
    rc = rc < 0 ? rc
                : page_table_create(&pager->table, header->n_pages, header->keep != 0, state_pages(&pager->state));
    if (rc < 0) {
        snprintf(text, text_bytes, "cannot go on with the state file %s: %s", pager->state.path, strerror(-rc));
        return rc;
    }
    pager_set_cache(pager, atomic_load(&header->cache_bytes));
    recover_regions(pager);
    return 0;
}

/* Does everything that can fail because of the user or the machine. Returns 0, or -errno after logging why. */
static int prepare(struct pager *pager)
{
    const struct options *options = pager->options;
    char text[1536] = "";

    memcpy(pager->features.hidden, options->hidden, sizeof(options->hidden));
    int rc = features_probe(&pager->features, &pager->device_fd, text, sizeof(text));

    if (rc == 0)
        rc = options->resume ? resume(pager, text, sizeof(text)) : begin(pager, text, sizeof(text));
    if (rc < 0) {
        log_error("%s", text);
        return rc;
    }
    rc = link_listen(pager);
    if (rc < 0)
        log_error("cannot listen on %s: %s", options->listen, strerror(-rc));
    return rc;
}

/* Whether a process uses memory that this pager serves. */
static bool in_use(struct pager *pager)
{
    bool used = false;

    pager_lock(pager);
    for (uint32_t i = 0; i < REGIONS_MAX; i++)
        used = used || (pager->regions[i].in_use && !pager->regions[i].leaving);
    pager_unlock(pager);
    return used;
}

/* Has the sockets and the state file made anew if they were removed: runtime_dir.h. */
static void files_restore(struct pager *pager, struct control *control)
{
    control_restore(control);
    atomic_store(&pager->files_asked, true);
    pager_wake_evict(pager);
}

/*
 * Waits until the pager is to end. SIGUSR1 from a thread of this process ends the wait (`stopping` is set then); from
 * another process it asks for removed files to be made anew.
 */
static void wait_for_end(struct pager *pager, struct control *control, const sigset_t *signals)
{
    bool asked = false;

    while (!atomic_load(&pager->stopping)) {
        struct timespec pause = {.tv_sec = asked ? 0 : 1, .tv_nsec = asked ? 50000000 : 0};
        int signal = sigtimedwait(signals, NULL, &pause);
        bool now = signal == SIGTERM || signal == SIGINT;

        if (signal == SIGUSR1 && !atomic_load(&pager->stopping))
            files_restore(pager, control);
        asked = asked || now;
        if (asked && !in_use(pager))
            break;
        if (now)
            log_warning("asked to end, but a process uses this memory and would freeze: ending when it has ended");
    }
}

struct threads {
    pthread_t fault, evict;
    bool fault_made, evict_made;
    struct fault_loop *fault_loop;
    struct evict_loop *evict_loop;
    struct control *control;
};

static int thread_make(pthread_t *thread, bool *made, void *(*run)(void *), void *loop, const char *name)
{
    int rc = pthread_create(thread, NULL, run, loop);

    *made = rc == 0;
    if (rc)
        log_error("cannot start the %s thread: %s", name, strerror(rc));
    return -rc;
}

/* Makes everything that needs memory, descriptors or threads. Returns 0, or -errno after logging what failed. */
static int threads_make(struct pager *pager, struct threads *threads)
{
    int rc = fault_create(&threads->fault_loop, pager);

    if (rc < 0) {
        log_error("the fault thread cannot start: %s", strerror(-rc));
        return rc;
    }
    rc = evict_create(&threads->evict_loop, pager, &session_handler);
    if (rc < 0) {
        log_error("the evict thread cannot start: %s", strerror(-rc));
        return rc;
    }
    rc = thread_make(&threads->fault, &threads->fault_made, fault_thread, threads->fault_loop, "fault");
    if (rc == 0)
        rc = thread_make(&threads->evict, &threads->evict_made, evict_thread, threads->evict_loop, "evict");
    if (rc < 0)
        return rc;
    rc = names_start();
    if (rc < 0) {
        log_error("cannot start the lookup thread: %s", strerror(-rc));
        return rc;
    }
    rc = secrets_start();
    if (rc < 0) {
        log_error("cannot start the key thread: %s", strerror(-rc));
        return rc;
    }
    rc = control_start(&threads->control, pager->options->control, pager_commands, pager);
    if (rc < 0)
        log_error("cannot open the control socket %s: %s", pager->options->control, strerror(-rc));
    return rc;
}

static void threads_end(struct pager *pager, struct threads *threads)
{
    atomic_store(&pager->stopping, true);
    pager_wake_fault(pager);
    pager_wake_evict(pager);
    if (threads->evict_made)
        pthread_join(threads->evict, NULL);
    if (threads->fault_made)
        pthread_join(threads->fault, NULL);
    unlink(pager->options->listen);
    control_stop(threads->control);
    evict_destroy(threads->evict_loop);
    fault_destroy(threads->fault_loop);
}

/* Starts the threads and waits for the end. No thread begins to serve before all of them are started. */
static int run_threads(struct pager *pager, const sigset_t *signals)
{
    struct threads threads = {.fault_made = false};

    pthread_mutex_lock(&pager->start);
    int rc = threads_make(pager, &threads);

    if (rc < 0)
        atomic_store(&pager->stopping, true);
    pthread_mutex_unlock(&pager->start);
    if (rc == 0) {
        atomic_store(&pager->sandboxed, !pager->options->no_seccomp && sandbox_enter());
        puts("ready");
        fflush(stdout);
        wait_for_end(pager, threads.control, signals);
    }
    threads_end(pager, &threads);
    return rc == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

static int serve(struct pager *pager)
{
    sigset_t signals;

    sandbox_no_new_privs();
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* all threads inherit this; the main thread waits for signals */
    if (prepare(pager) < 0)
        return EXIT_FAILURE;
    stay_in_memory();
    return run_threads(pager, &signals);
}

int main(int argc, char **argv)
{
    struct options options;
    char text[256];

    if (options_parse(&options, argc, argv, text, sizeof(text)) < 0) {
        fprintf(stderr, "ghostbox-pager: %s\ntry: ghostbox-pager --help\n", text);
        return EXIT_USAGE;
    }
    if (options.help) {
        options_usage();
        return EXIT_SUCCESS;
    }
    if (options.version) {
        puts("ghostbox-pager " GHOSTBOX_VERSION);
        return EXIT_SUCCESS;
    }
    if (options.probe)
        return print_probe(&options);
    int rc = log_open("ghostbox-pager", options.log_file, options.log_level);

    if (rc < 0) {
        fprintf(stderr, "ghostbox-pager: cannot open %s: %s\n", options.log_file, strerror(-rc));
        return EXIT_FAILURE;
    }
    struct pager *pager = pager_create(&options);

    if (!pager) {
        log_error("cannot start: %s", strerror(errno));
        return EXIT_FAILURE;
    }
    int status = serve(pager);

    /* The state file stays if a process still uses the memory, which then waits for the next pager. */
    pager_destroy(pager, in_use(pager) || (options.resume && status != EXIT_SUCCESS));
    return status;
}
