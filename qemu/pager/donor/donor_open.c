/* SPDX-License-Identifier: MIT */
#include "donor/donor_open.h"

#include "base/clock.h"
#include "donor/address.h"
#include "donor/channel.h"
#include "donor/disconnect_reason.h"
#include "donor/machine.h"
#include "donor/names.h"
#include "donor/nbds_uri.h"
#include "donor/negotiate.h"
#include "donor/wire.h"
#include "log.h"
#include "page/pages.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FENCE_NS           1000000000ull
#define CONNECT_TIMEOUT_MS 5000
#define SILENT_MS          1500 /* for one address among several, if its machine does not answer at all */
#define CONNECT_TEXT_BYTES 1024

/*
 * Connects to channel->address or, if that is "", to the host of the URI. Returns 0, or -errno with a reason in why.
 */
static int connect_once(struct channel *channel, bool several, char *why, size_t why_bytes)
{
    int rc = channel_create(channel, why, why_bytes);

    if (rc < 0)
        return rc;
    rc = channel_connect(channel, CONNECT_TIMEOUT_MS, several ? SILENT_MS : CONNECT_TIMEOUT_MS, why, why_bytes);
    if (rc == 0 && channel_go_direct(channel) < 0) {
        snprintf(why, why_bytes, NO_MEMORY);
        rc = -ENOMEM;
    }
    if (rc < 0)
        channel_drop(channel);
    return rc;
}

/*
 * Connects to one of several addresses. Each address has its own timeout, so that a dead address delays the others by
 * no more than that. Returns 0, or -errno with the reasons in text.
 */
static int connect_somewhere(struct channel *channel, char *text, size_t text_bytes)
{
    struct name *name = channel->donor->name;
    char unused[NAME_ERROR_BYTES];
    size_t length = 0;
    int rc = -ENOTCONN;

    for (uint32_t i = 0; name_address(name, i, channel->address, unused); i++) {
        char why[CONNECT_TEXT_BYTES], plain[REASON_BYTES];

        rc = connect_once(channel, true, why, sizeof(why));
        if (rc == 0)
            return 0;
        reason_make_plain(why, plain);
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

/* Takes over what the server said in the negotiation, and checks it. Returns 0, or -errno with an error in text. */
static int donor_learn(struct donor *donor, char *text, size_t text_bytes)
{
    const struct channel *channel = &donor->channels[CHANNEL_DEMAND];
    struct export_facts facts = channel_facts(channel);

    if (facts.bytes < (int64_t)EXTENT_MIN_BYTES) {
        snprintf(text, text_bytes, "donor %s: its export has %lld bytes, at least %llu are needed", donor->uri,
                 (long long)facts.bytes, (unsigned long long)EXTENT_MIN_BYTES);
        return -ENOSPC;
    }
    if (facts.read_only) {
        snprintf(text, text_bytes, "donor %s: its export is read-only", donor->uri);
        return -EROFS;
    }
    if ((facts.max_read > 0 && facts.max_read < (1 << 20)) || facts.min_block > PAGE_BYTES) {
        snprintf(text, text_bytes, "donor %s: its block sizes (%lld to %lld bytes) do not allow 4 KiB to 1 MiB",
                 donor->uri, (long long)facts.min_block, (long long)facts.max_read);
        return -EINVAL;
    }
    if (!facts.sees_all)
        log_warning("donor %s: its server does not promise that connections see each other's writes", donor->uri);
    donor->export_bytes = (uint64_t)facts.bytes;
    donor->can_trim = facts.can_trim;
    donor->identity = channel_identity(channel);
    donor->host = donor->identity ? machine_of(donor->identity, donor->uri, channel_socket(channel)) : NULL;
    return donor->host ? 0 : -ENOMEM;
}

/*
 * Looks the donor's name up and waits for the resolver. If there is no address, that is said when it connects.
 * Returns 0 or -ENOMEM.
 */
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

/* Makes the donor's secret if its URI is nbds://. The URI may be wrong: then connecting fails. Returns 0 or -ENOMEM.
 */
static int find_secret(struct donor *donor)
{
    struct nbds_uri parts;

    if (!uri_is_nbds(donor->uri) || nbds_uri_read(&parts, donor->uri))
        return 0;
    donor->secret = secret_new(&parts);
    return donor->secret ? 0 : -ENOMEM;
}

int donor_open(struct donor *donor, const char *uri, char *text, size_t text_bytes)
{
    char why[CONNECT_TEXT_BYTES];

    donor->uri = strdup(uri);
    if (!donor->uri || find_machine(donor) < 0 || find_secret(donor) < 0)
        return -ENOMEM;
    if (donor->secret && secret_read(donor->secret, why, sizeof(why)) < 0) {
        snprintf(text, text_bytes, "donor %s: cannot connect: %s", donor->uri, why);
        return -EACCES;
    }
    for (int class = 0; class < CHANNEL_CLASSES; class ++) {
        int rc = channel_open(&donor->channels[class], donor, (enum channel_class) class, text, text_bytes);

        /* The identity that the first channel learns decides whether the write-back channel asks for ?writer. */
        if (rc == 0 && class == CHANNEL_DEMAND)
            rc = donor_learn(donor, text, text_bytes);
        if (rc < 0)
            return rc;
    }
    return 0;
}

void donor_inherit(struct donor *donor)
{
    uint64_t now = clock_ns();

    if (address_kind_of(donor->uri) != ADDRESS_NONE)
        donor->name = name_new(donor->uri);
    if (donor->name)
        name_ask(donor->name);
    if (find_secret(donor) == 0 && donor->secret)
        secret_ask(donor->secret);
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
        channel_drop(&donor->channels[class]);
    }
    secret_free(donor->secret);
    free(donor->slots);
    free(donor->identity);
    name_free(donor->name);
    free(donor->host);
    free(donor->uri);
}
