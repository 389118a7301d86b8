/* SPDX-License-Identifier: MIT */
#include "memserver/keys.h"

#include "common/page_memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reading {
    struct keys *keys;
    char twice[PSK_IDENTITY_MAX + 1]; /* the name of which the file has a second key */
};

/* Makes room for one more key. realloc() might free the old block with the keys still in it. */
static int grow(struct keys *keys)
{
    struct key *grown = malloc((keys->n + 1) * sizeof(*grown));
    if (grown == NULL) {
        return -ENOMEM;
    }
    page_memory_hide(grown, (keys->n + 1) * sizeof(*grown));
    if (keys->n > 0) {
        memcpy(grown, keys->entries, keys->n * sizeof(*grown));
        explicit_bzero(keys->entries, keys->n * sizeof(*grown));
    }
    free(keys->entries);
    keys->entries = grown;
    return 0;
}

static int key_add(void *ctx, const char *identity, size_t identity_bytes, const struct psk *psk)
{
    struct reading *reading = ctx;
    struct keys *keys = reading->keys;
    struct key key = {.psk = *psk};
    memcpy(key.name, identity, identity_bytes);
    int rc = keys_find(keys, key.name) != NULL ? -EEXIST : grow(keys);
    if (rc == -EEXIST) {
        memcpy(reading->twice, key.name, sizeof(reading->twice));
    }
    if (rc == 0) {
        keys->entries[keys->n++] = key;
    }
    psk_wipe(&key.psk);
    return rc;
}

int keys_read(struct keys *keys, const char *path, char *text, size_t text_bytes)
{
    struct reading reading = {.keys = keys};
    *keys = (struct keys){0};
    int rc = path != NULL ? psk_file_read(path, key_add, &reading, text, text_bytes) : 0;
    if (rc == -EEXIST) {
        snprintf(text, text_bytes, "the key file %s has two keys for '%s': leave one", path, reading.twice);
    } else if (rc == -ENOMEM) {
        snprintf(text, text_bytes, "the key file %s: no memory for its keys", path);
    }
    return rc;
}

const struct psk *keys_find(const struct keys *keys, const char *name)
{
    for (size_t i = 0; i < keys->n; i++) {
        if (strcmp(keys->entries[i].name, name) == 0) {
            return &keys->entries[i].psk;
        }
    }
    return NULL;
}

void keys_free(struct keys *keys)
{
    if (keys->entries != NULL) {
        explicit_bzero(keys->entries, keys->n * sizeof(*keys->entries));
    }
    free(keys->entries);
    *keys = (struct keys){0};
}
