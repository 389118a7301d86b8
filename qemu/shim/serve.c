/* SPDX-License-Identifier: MIT */
#include "serve.h"

#include "link.h"
#include "real_calls.h"
#include "say.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define RETRY_NS           200000000l
#define RESUME_TIMEOUT_S   30u /* a pager that takes over looks at all pages before it answers */
#define THREAD_STACK_BYTES (256u << 10)

static bool is_gone(struct region *region)
{
    pthread_mutex_lock(&region->lock);
    bool gone = region->gone;

    pthread_mutex_unlock(&region->lock);
    return gone;
}

static bool range_is_valid(const struct region *region, const struct gb_range *range)
{
    return range->length > 0 && range->offset % REGION_PAGE_BYTES == 0 && range->length % REGION_PAGE_BYTES == 0 &&
           range->offset < region->length && range->length <= region->length - range->offset;
}

/*
 * Zaps a range. The call is repeated after EAGAIN and EINTR, which mean that the address space is changing. With the
 * region's lock.
 */
static int zap_range(const struct region *region, const struct gb_range *range)
{
    int rc;

    do
        rc = real.madvise((void *)(uintptr_t)(region->base + range->offset), range->length, MADV_DONTNEED);
    while (rc < 0 && (errno == EAGAIN || errno == EINTR));
    return rc < 0 ? errno : 0;
}

/* Zaps the ranges of a message, after it has validated all of them. Returns 0 or an errno. */
static int zap_ranges(struct region *region, const struct gb_zap *zap)
{
    int error = 0;

    for (uint32_t i = 0; i < zap->n_ranges; i++)
        if (!range_is_valid(region, &zap->ranges[i]))
            return EINVAL;
    pthread_mutex_lock(&region->lock);
    if (region->gone)
        error = ESRCH;
    for (uint32_t i = 0; i < zap->n_ranges && !error; i++)
        error = zap_range(region, &zap->ranges[i]);
    pthread_mutex_unlock(&region->lock);
    return error;
}

static int answer_zap(struct region *region, const struct gb_zap *zap, struct text *text)
{
    struct gb_done done = {.error = 0};

    if (zap->h.bytes < GB_ZAP_BYTES(1) || zap->n_ranges < 1 || zap->n_ranges > GB_PROTO_MAX_RANGES ||
        zap->h.bytes != GB_ZAP_BYTES(zap->n_ranges)) {
        text_set(text, "the pager sent a zap of %u bytes that says it has %u ranges", zap->h.bytes, zap->n_ranges);
        return -EPROTO;
    }
    done.error = zap_ranges(region, zap);
    int rc = link_send(region->sock, &done, GB_MSG_ZAP_DONE, zap->h.seq, sizeof(done));

    if (rc < 0)
        text_set(text, "the pager closed the connection");
    return rc;
}

static int pass_on(struct region *region, const struct gb_done *done, struct text *text)
{
    if (done->h.bytes != sizeof(*done)) {
        text_set(text, "the pager sent an answer of %u bytes", done->h.bytes);
        return -EPROTO;
    }
    pthread_mutex_lock(&region->lock);
    for (struct waiter *waiter = region->waiters; waiter; waiter = waiter->next) {
        if (waiter->seq != done->h.seq || waiter->type != done->h.type || waiter->answered)
            continue;
        waiter->answered = true;
        waiter->error = done->error;
        pthread_cond_broadcast(&region->changed);
        break;
    }
    pthread_mutex_unlock(&region->lock);
    return 0;
}

void serve_say_bye(struct region *region)
{
    struct gb_header bye;

    if (region->sock >= 0)
        link_send(region->sock, &bye, GB_MSG_BYE, ++region->last_seq, sizeof(bye));
}

/*
 * Serves until the connection ends, and writes why into text. Returns true if no new connection is needed, because
 * the pager knows that the region is unmapped.
 */
static bool serve_connection(struct region *region, struct text *text)
{
    union {
        struct gb_header h;
        struct gb_zap zap;
        struct gb_done done;
    } message;
    int rc = 0;

    while (rc == 0) {
        rc = link_receive(region->sock, &message, sizeof(message), text);
        if (rc < 0)
            break;
        if (message.h.type == GB_MSG_BYE_DONE && is_gone(region))
            return true;
        if (message.h.type == GB_MSG_ZAP) {
            rc = answer_zap(region, &message.zap, text);
        } else if (message.h.type == GB_MSG_DISCARD_READY || message.h.type == GB_MSG_DISCARD_DONE) {
            rc = pass_on(region, &message.done, text);
        } else {
            text_set(text, "the pager sent message %u, which the protocol does not allow here", message.h.type);
            rc = -EPROTO;
        }
    }
    return false;
}

static time_t now_s(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

/* Only this thread closes the socket; other threads may send on it while they hold the lock. */
static void disconnect(struct region *region)
{
    pthread_mutex_lock(&region->lock);
    close(region->sock);
    region->sock = -1;
    region->lost_at_s = now_s();
    for (struct waiter *waiter = region->waiters; waiter; waiter = waiter->next) {
        if (waiter->answered)
            continue;
        waiter->answered = true;
        waiter->lost = true;
    }
    pthread_cond_broadcast(&region->changed);
    pthread_mutex_unlock(&region->lock);
}

static int reconnect(struct region *region, struct text *text)
{
    struct gb_welcome welcome;
    int device_fd;
    int sock = link_open(regions.socket_path, text);

    if (sock < 0)
        return sock;
    link_set_timeout(sock, RESUME_TIMEOUT_S);
    int rc = link_hello(sock, GB_HELLO_RESUME, &welcome, &device_fd, text);

    if (rc == 0) {
        close(device_fd);
        /* From here on no DISCARD_READY of an earlier connection is valid (proto.h). */
        pthread_mutex_lock(&region->lock);
        region->connection++;
        pthread_mutex_unlock(&region->lock);
        rc = link_hand_over(sock, region, text);
    }
    if (rc < 0) {
        close(sock);
        return rc;
    }
    link_set_timeout(sock, 0);
    pthread_mutex_lock(&region->lock);
    region->sock = sock;
    if (region->gone)
        serve_say_bye(region);
    pthread_cond_broadcast(&region->changed);
    pthread_mutex_unlock(&region->lock);
    return 0;
}

/*
 * Connects again, trying for ever, and prints each reason for a failure once, not five times a second. Returns false
 * if no connection is needed: the region is unmapped, and the pager does not know it.
 */
static bool reconnect_for_ever(struct region *region)
{
    const struct timespec pause = {.tv_nsec = RETRY_NS};
    struct text text, said = {.s = ""};

    for (;;) {
        int rc = reconnect(region, &text);

        if (rc == -ESTALE && is_gone(region))
            return false;
        if (rc == 0) {
            say("connected to the pager again");
            return true;
        }
        if (strcmp(text.s, said.s) != 0)
            say("%s; trying again until a pager serves the memory", text.s);
        said = text;
        nanosleep(&pause, NULL);
    }
}

static void *serve_thread(void *argument)
{
    struct region *region = argument;
    struct text text;
    bool parted;

    prctl(PR_SET_NAME, "ghostbox-shim");
    do {
        parted = serve_connection(region, &text);
        disconnect(region);
        if (!parted && !is_gone(region))
            say("%s; accesses to absent pages wait until a pager is back", text.s);
    } while (!parted && reconnect_for_ever(region));
    region_retire(region);
    return NULL;
}

int serve_start(struct region *region)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;

    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, THREAD_STACK_BYTES);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int error = pthread_create(&thread, &attributes, serve_thread, region);

    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    if (error)
        return -error;
    return 0;
}
