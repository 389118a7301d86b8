/* SPDX-License-Identifier: MIT */
/* The keys of --tls-psk, by the names of their exports. They are read once, at the start, and never change. */
#ifndef GHOSTBOX_MEMSERVER_KEYS_H
#define GHOSTBOX_MEMSERVER_KEYS_H

#include "common/psk.h"

struct key {
    char name[PSK_IDENTITY_MAX + 1];
    struct psk psk;
};

struct keys {
    struct key *entries; /* malloc'd */
    size_t n;
};

/* Reads the keys from a file, or none if path is NULL. Returns 0, or -errno with a reason for people in text. */
int keys_read(struct keys *keys, const char *path, char *text, size_t text_bytes);
/* Returns the key of the export of this name, or NULL. */
const struct psk *keys_find(const struct keys *keys, const char *name);
/* Overwrites the keys and frees them. */
void keys_free(struct keys *keys);

#endif
