/* SPDX-License-Identifier: MIT */
/*
 * URIs of donors over TLS: nbds://[IDENTITY@]HOST[:PORT]/EXPORT?tls-psk-file=FILE, as libnbd and the NBD URI
 * specification have them. Without IDENTITY, the export's name is the identity, as our memory server demands it.
 */
#ifndef GHOSTBOX_PAGER_NBDS_URI_H
#define GHOSTBOX_PAGER_NBDS_URI_H

#include "common/psk.h"

#include <stdbool.h>

#define NBDS_EXPORT_BYTES 512
#define NBDS_PATH_BYTES   1024

struct nbds_uri {
    char export[NBDS_EXPORT_BYTES];
    char identity[PSK_IDENTITY_MAX + 1];
    char key_path[NBDS_PATH_BYTES];
};

bool uri_is_nbds(const char *uri);
/* Takes an nbds:// URI apart. Returns NULL, or what is wrong with the URI: "needs …". */
const char *nbds_uri_read(struct nbds_uri *parts, const char *uri);

#endif
