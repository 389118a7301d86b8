/* SPDX-License-Identifier: MIT */
#include "donor/recognise.h"

#include "donor/names.h"
#include "donor/negotiate.h"
#include "log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DONOR_ID_PREFIX ", donor " /* in an export's description: memserver/negotiate.c */

/* Returns the donor's id in an export's description, or NULL if the server gives none. */
static const char *donor_id(const char *identity)
{
    const char *id = strstr(identity, DONOR_ID_PREFIX);

    return id ? id + strlen(DONOR_ID_PREFIX) : NULL;
}

/* Whether another server answers in place of the donor's, which may then be down and still hold our pages. */
static bool is_stranger(const struct channel *channel, const char *identity)
{
    const struct donor *donor = channel->donor;
    const char *expected = donor_id(donor->identity), *found = donor_id(identity);

    if (!expected) /* a donor whose server gives no id is known by its address only */
        return donor->name && name_is_elsewhere(donor->name, channel->address);
    return !found || strcmp(expected, found) != 0;
}

enum memory channel_memory(const struct channel *channel, char why[REASON_BYTES])
{
    const struct donor *donor = channel->donor;
    char *description = channel_identity(channel);
    const char *identity = description ? description : "", *id = donor_id(identity);
    int64_t bytes = channel_facts(channel).bytes;
    bool may_be_nameless = channel->inherited;
    enum memory memory = MEMORY_GONE;

    if ((*donor->identity || may_be_nameless) && strcmp(identity, donor->identity) == 0 && bytes >= 0 &&
        (uint64_t)bytes == donor->export_bytes) {
        memory = MEMORY_OURS;
    } else if (is_stranger(channel, identity)) {
        const char *expected = donor_id(donor->identity);

        memory = MEMORY_OF_OTHERS;
        snprintf(why, REASON_BYTES, "another server answers there: %s%s instead of %s%s", id ? "donor " : "",
                 id ? id : "a server without a donor's id", expected ? "donor " : "",
                 expected ? expected : "this donor");
    } else {
        log_error("donor %s: it is back, but cannot show that it still holds our pages (identity '%s', was '%s'): "
                  "the pages that it held are lost",
                  donor->uri, identity, donor->identity);
    }
    free(description);
    return memory;
}
