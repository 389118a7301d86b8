/* SPDX-License-Identifier: MIT */
#include "donor/secret.h"

#include "base/clock.h"
#include "common/page_memory.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WHY_BYTES (NBDS_PATH_BYTES + 256)
/* A reading that takes longer is a reason to tell people. */
#define PATIENCE_NS 1000000000ull

struct secret {
    struct secret *next;
    struct nbds_uri uri;
    struct psk psk;      /* n_bytes is 0 until the key is read */
    int error;           /* of the last attempt to read the file; 0: there was none, or it had the key */
    char why[WHY_BYTES]; /* the reason of that error */
    bool wanted;         /* the file is to be read */
    uint64_t asked_ns;   /* when the first reading was asked for */
    bool busy;           /* the key thread reads the file, without the lock */
    bool dropped;        /* its donor was freed: the key thread frees the secret */
};

/* Guards all secrets and their list. It is held only while a few bytes are copied. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked = PTHREAD_COND_INITIALIZER;
static struct secret *secrets;

static void destroy(struct secret *secret)
{
    psk_wipe(&secret->psk);
    free(secret);
}

/* Takes a secret out of the list. The caller holds the lock. */
static void unlink_secret(struct secret *secret)
{
    struct secret **at = &secrets;

    while (*at && *at != secret)
        at = &(*at)->next;
    if (*at)
        *at = secret->next;
}

struct secret *secret_new(const struct nbds_uri *uri)
{
    struct secret *secret = calloc(1, sizeof(*secret));

    if (!secret)
        return NULL;
    page_memory_hide(secret, sizeof(*secret));
    secret->uri = *uri;
    pthread_mutex_lock(&lock);
    secret->next = secrets;
    secrets = secret;
    pthread_mutex_unlock(&lock);
    return secret;
}

void secret_free(struct secret *secret)
{
    if (!secret)
        return;
    pthread_mutex_lock(&lock);
    bool busy = secret->busy;

    secret->dropped = true;
    psk_wipe(&secret->psk);
    if (!busy)
        unlink_secret(secret);
    pthread_mutex_unlock(&lock);
    if (!busy)
        destroy(secret);
}

/* Keeps what a reading found, or its error. The caller holds the lock. */
static void keep(struct secret *secret, const struct psk *found, int error, const char *why)
{
    secret->error = error;
    snprintf(secret->why, sizeof(secret->why), "%s", error < 0 ? why : "");
    if (error == 0)
        secret->psk = *found;
}

int secret_read(struct secret *secret, char *why, size_t why_bytes)
{
    struct psk found;
    int rc = psk_file_find(secret->uri.key_path, secret->uri.identity, &found, why, why_bytes);

    pthread_mutex_lock(&lock);
    keep(secret, &found, rc, why);
    pthread_mutex_unlock(&lock);
    psk_wipe(&found);
    return rc;
}

/* Asks for a reading. The caller holds the lock. */
static void want(struct secret *secret)
{
    if (!secret->wanted)
        pthread_cond_signal(&asked);
    if (!secret->asked_ns)
        secret->asked_ns = clock_ns();
    secret->wanted = true;
}

int secret_get(struct secret *secret, struct psk *psk, char *why, size_t why_bytes)
{
    int rc = 0;

    pthread_mutex_lock(&lock);
    if (secret->psk.n_bytes > 0) {
        *psk = secret->psk;
    } else {
        rc = secret->error < 0 ? secret->error : -EAGAIN;
        want(secret);
        if (rc < 0 && rc != -EAGAIN)
            snprintf(why, why_bytes, "%s", secret->why);
        else if (clock_ns() - secret->asked_ns > PATIENCE_NS)
            snprintf(why, why_bytes, "the key file %s takes long to read", secret->uri.key_path);
        else
            *why = '\0';
    }
    pthread_mutex_unlock(&lock);
    return rc;
}

void secret_ask(struct secret *secret)
{
    pthread_mutex_lock(&lock);
    want(secret);
    pthread_mutex_unlock(&lock);
}

/* Returns a secret whose file is to be read, or NULL. The caller holds the lock. */
static struct secret *choose(void)
{
    struct secret *secret = secrets;

    while (secret && !secret->wanted)
        secret = secret->next;
    return secret;
}

/* Reads the file of a secret. Releases the caller's lock while it waits for the file system. */
static void read_unlocks(struct secret *secret)
{
    struct psk found;
    char why[WHY_BYTES];

    secret->busy = true;
    secret->wanted = false;
    pthread_mutex_unlock(&lock);
    int rc = psk_file_find(secret->uri.key_path, secret->uri.identity, &found, why, sizeof(why));

    pthread_mutex_lock(&lock);
    secret->busy = false;
    keep(secret, &found, rc, why);
    psk_wipe(&found);
    if (secret->dropped) {
        unlink_secret(secret);
        destroy(secret);
    }
}

static void *key_thread(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&lock);
    for (;;) {
        struct secret *secret = choose();

        if (secret)
            read_unlocks(secret);
        else
            pthread_cond_wait(&asked, &lock);
    }
    return NULL;
}

int secrets_start(void)
{
    pthread_attr_t attributes;
    pthread_t thread;

    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int rc = pthread_create(&thread, &attributes, key_thread, NULL);

    pthread_attr_destroy(&attributes);
    return -rc;
}
