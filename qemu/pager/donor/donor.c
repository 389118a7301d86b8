/* SPDX-License-Identifier: MIT */
#include "donor/donor.h"

#include "donor/nbds_uri.h"
#include "donor/secure.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define OUR_IDENTITY "GhostBox memory "

bool donor_fences(const struct donor *donor)
{
    return donor->identity && strncmp(donor->identity, OUR_IDENTITY, strlen(OUR_IDENTITY)) == 0;
}

/*
 * Whether no request of an earlier donor with the same export can come any more. While the connection of that donor
 * is open, trims of its slots may still reach the export.
 */
static bool is_fenced(const struct donor *donor)
{
    return !donor->before || atomic_load(&donor->before->states[CHANNEL_WRITEBACK]) == CHANNEL_DOWN;
}

bool donor_reachable(const struct donor *donor)
{
    return !atomic_load(&donor->lost) && !atomic_load(&donor->removed) && is_fenced(donor) &&
           atomic_load(&donor->states[CHANNEL_WRITEBACK]) == CHANNEL_UP;
}

void donor_note_state(struct donor *donor, uint64_t now_ns)
{
    uint64_t up = 0;

    for (int class = 0; class < CHANNEL_CLASSES; class ++)
        if (atomic_load(&donor->states[class]) != CHANNEL_UP) {
            atomic_compare_exchange_strong(&donor->down_since_ns, &up, now_ns);
            return;
        }
    atomic_store(&donor->down_since_ns, 0);
}

uint64_t donor_full_since(const struct donor *donor, uint64_t now_ns)
{
    uint64_t at_ns = atomic_load(&donor->full_at_ns);

    return at_ns && now_ns < at_ns + FULL_NS ? atomic_load(&donor->full_since_ns) : 0;
}

void donor_note_write(struct donor *donor, int error, uint64_t now_ns)
{
    if (!error)
        return;
    atomic_fetch_add_explicit(&donor->counters.errors, 1, memory_order_relaxed);
    if (error != ENOSPC)
        return;
    atomic_fetch_add_explicit(&donor->counters.writes_refused, 1, memory_order_relaxed);
    if (!donor_full_since(donor, now_ns))
        atomic_store(&donor->full_since_ns, now_ns);
    atomic_store(&donor->full_at_ns, now_ns);
}

const char *donor_uri_fault(const char *uri)
{
    struct nbds_uri parts;

    if (uri_is_nbds(uri))
        return nbds_uri_read(&parts, uri);
    return strncmp(uri, "nbd://", 6) == 0 || strncmp(uri, "nbd+unix://", 11) == 0
               ? NULL
               : "is not an NBD URI such as nbd://HOST:PORT/EXPORT";
}

int channel_socket(const struct channel *channel)
{
    return channel->secure ? secure_fd(channel->secure) : nbd_aio_get_fd(channel->nbd);
}

/* The URI is nbd://[USER@]HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH. */
char *donor_host(const char *uri)
{
    const char *socket = strstr(uri, "socket="), *begin = strstr(uri, "://");

    if (strncmp(uri, "nbd+unix", 8) == 0 && socket) {
        socket += strlen("socket=");
        return strndup(socket, strcspn(socket, "&#"));
    }
    begin = begin ? begin + 3 : uri;
    size_t length = strcspn(begin, "/?#");
    const char *user_end = memchr(begin, '@', length);

    if (user_end) {
        length -= (size_t)(user_end + 1 - begin);
        begin = user_end + 1;
    }
    if (*begin == '[')
        return strndup(begin, strcspn(begin, "]/") + 1);
    const char *port = memchr(begin, ':', length);

    return strndup(begin, port ? (size_t)(port - begin) : length);
}

int donor_cut(struct donor *donor, uint64_t extent_bytes)
{
    donor->n_slots = (uint32_t)(donor->export_bytes / extent_bytes);
    donor->slots = calloc(donor->n_slots + 1, sizeof(*donor->slots));
    return donor->slots ? 0 : -ENOMEM;
}
