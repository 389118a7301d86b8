/* SPDX-License-Identifier: MIT */
#include "donor.h"

#include "address.h"
#include "clock.h"
#include "log.h"
#include "machine.h"
#include "pages.h"
#include "wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FENCE_NS           1000000000ull
#define CONNECT_TIMEOUT_MS 5000
#define SILENT_MS          1500 /* of one address among several */
#define CONNECT_TEXT_BYTES 1024
#define OUR_IDENTITY       "GhostBox memory "
#define WRITER_SUFFIX      "%3Fwriter" /* "?writer", as a URI's path has it */

static bool donor_fences(const struct donor *donor)
{
    return donor->identity && strncmp(donor->identity, OUR_IDENTITY, strlen(OUR_IDENTITY)) == 0;
}

const char *channel_uri(const struct channel *channel, char uri[CHANNEL_URI_BYTES])
{
    const struct donor *donor = channel->donor;
    char plain[CHANNEL_URI_BYTES];

    if (*channel->address)
        address_put(donor->uri, channel->address, plain, sizeof(plain));
    else
        snprintf(plain, sizeof(plain), "%s", donor->uri);
    bool as_writer = channel->class == CHANNEL_WRITEBACK && donor_fences(donor);
    int path_length = (int)strcspn(plain, "?#");

    snprintf(uri, CHANNEL_URI_BYTES, "%.*s%s%s", path_length, plain, as_writer ? WRITER_SUFFIX : "",
             plain + path_length);
    return uri;
}

static void channel_init(struct channel *channel, struct donor *donor, enum channel_class class,
                         enum channel_state state)
{
    *channel = (struct channel){.donor = donor, .class = class, .state = state, .fd = -1};
    channel->done_tail = &channel->done_head;
    atomic_store(&donor->states[class], (int)state);
}

/* At the address that is set, or, where none is, where the URI says. */
static int connect_once(struct channel *channel, bool several, char *why, size_t why_bytes)
{
    if (!channel_create(channel)) {
        snprintf(why, why_bytes, "no memory for a connection");
        return -ENOMEM;
    }
    int rc = channel_connect(channel, CONNECT_TIMEOUT_MS, several ? SILENT_MS : CONNECT_TIMEOUT_MS, why, why_bytes);

    if (rc < 0) {
        nbd_close(channel->nbd);
        channel->nbd = NULL;
    }
    return rc;
}

/* At one of several addresses. Each has its own time, so that one that is dead costs the others nothing but that. */
static int connect_somewhere(struct channel *channel, char *text, size_t text_bytes)
{
    struct name *name = channel->donor->name;
    char unused[NAME_ERROR_BYTES];
    size_t length = 0;
    int rc = -ENOTCONN;

    for (uint32_t i = 0; name_address(name, i, channel->address, unused); i++) {
        char why[CONNECT_TEXT_BYTES], plain[CAUSE_BYTES];

        rc = connect_once(channel, true, why, sizeof(why));
        if (rc == 0)
            return 0;
        cause_make_plain(why, plain);
        if (length < text_bytes)
            length += (size_t)snprintf(text + length, text_bytes - length, "%s%s: %s", i ? "; " : "",
                                       channel->address, plain);
    }
    return rc;
}

static int channel_open(struct channel *channel, struct donor *donor, enum channel_class class, char *text,
                        size_t text_bytes)
{
    char why[CONNECT_TEXT_BYTES] = "", unused[NAME_ERROR_BYTES];

    channel_init(channel, donor, class, CHANNEL_UP);
    bool several = donor->name && name_has_several(donor->name);

    if (donor->name && !several && !name_address(donor->name, 0, channel->address, unused))
        channel->address[0] = '\0';
    int rc = several ? connect_somewhere(channel, why, sizeof(why)) : connect_once(channel, false, why, sizeof(why));

    if (rc < 0)
        snprintf(text, text_bytes, "donor %s: cannot connect: %s", donor->uri, why);
    else if (donor->name && *channel->address)
        name_worked(donor->name, channel->address);
    return rc;
}

/* What the server told us while we connected; valid before anything depends on it. */
static int donor_learn(struct donor *donor, char *text, size_t text_bytes)
{
    struct nbd_handle *nbd = donor->channels[CHANNEL_DEMAND].nbd;
    int64_t bytes = nbd_get_size(nbd);
    int64_t max_read = nbd_get_block_size(nbd, LIBNBD_SIZE_MAXIMUM);
    int64_t min_block = nbd_get_block_size(nbd, LIBNBD_SIZE_MINIMUM);

    if (bytes < (int64_t)EXTENT_MIN_BYTES) {
        snprintf(text, text_bytes, "donor %s: its export has %lld bytes, at least %llu are needed", donor->uri,
                 (long long)bytes, (unsigned long long)EXTENT_MIN_BYTES);
        return -ENOSPC;
    }
    if (nbd_is_read_only(nbd) == 1) {
        snprintf(text, text_bytes, "donor %s: its export is read-only", donor->uri);
        return -EROFS;
    }
    if ((max_read > 0 && max_read < (1 << 20)) || min_block > PAGE_BYTES) {
        snprintf(text, text_bytes, "donor %s: its block sizes (%lld to %lld bytes) do not allow 4 KiB to 1 MiB",
                 donor->uri, (long long)min_block, (long long)max_read);
        return -EINVAL;
    }
    if (nbd_can_multi_conn(nbd) != 1)
        log_warning("donor %s: does not promise that its connections see each other's writes", donor->uri);
    donor->export_bytes = (uint64_t)bytes;
    donor->can_trim = nbd_can_trim(nbd) == 1;
    donor->identity = nbd_get_export_description(nbd);
    if (!donor->identity)
        donor->identity = strdup("");
    donor->host = donor->identity ? machine_of(donor->identity, donor->uri, nbd_aio_get_fd(nbd)) : NULL;
    return donor->host ? 0 : -ENOMEM;
}

bool donor_uri_valid(const char *uri)
{
    return strncmp(uri, "nbd://", 6) == 0 || strncmp(uri, "nbd+unix://", 11) == 0;
}

/* nbd://[USER@]HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH */
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

/* Waits for the resolver. If it knows nothing, libnbd says so when it connects. */
static int find_machine(struct donor *donor)
{
    enum address_kind kind = address_kind_of(donor->uri);
    struct addresses found;

    if (kind == ADDRESS_NONE)
        return 0;
    donor->name = name_new(donor->uri);
    if (!donor->name)
        return -ENOMEM;
    if (kind == ADDRESS_NAME && address_look_up(donor->uri, &found) == NULL)
        name_found(donor->name, &found);
    return 0;
}

int donor_open(struct donor *donor, const char *uri, char *text, size_t text_bytes)
{
    donor->uri = strdup(uri);
    if (!donor->uri || find_machine(donor) < 0)
        return -ENOMEM;
    for (int class = 0; class < CHANNEL_CLASSES; class ++) {
        int rc = channel_open(&donor->channels[class], donor, (enum channel_class) class, text, text_bytes);

        /* What the first one learns decides how the last one, for write-back, is opened. */
        if (rc == 0 && class == CHANNEL_DEMAND)
            rc = donor_learn(donor, text, text_bytes);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int donor_cut(struct donor *donor, uint64_t extent_bytes)
{
    donor->n_slots = (uint32_t)(donor->export_bytes / extent_bytes);
    donor->slots = calloc(donor->n_slots + 1, sizeof(*donor->slots));
    return donor->slots ? 0 : -ENOMEM;
}

void donor_inherit(struct donor *donor)
{
    uint64_t now = clock_ns();

    if (address_kind_of(donor->uri) != ADDRESS_NONE)
        donor->name = name_new(donor->uri);
    if (donor->name)
        name_ask(donor->name);
    for (int class = 0; class < CHANNEL_CLASSES; class ++) {
        struct channel *channel = &donor->channels[class];

        channel_init(channel, donor, (enum channel_class) class, CHANNEL_DOWN);
        channel->inherited = true;
        if (class == CHANNEL_WRITEBACK && !donor_fences(donor))
            channel->retry_ns = now + FENCE_NS;
    }
}

void donor_close(struct donor *donor)
{
    for (int class = 0; class < CHANNEL_CLASSES; class ++) {
        wire_destroy(donor->channels[class].wire);
        if (donor->channels[class].nbd)
            nbd_close(donor->channels[class].nbd);
    }
    free(donor->slots);
    free(donor->identity);
    name_free(donor->name);
    free(donor->host);
    free(donor->uri);
}
