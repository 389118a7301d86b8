/* SPDX-License-Identifier: MIT */
#include "donor/names.h"

#include "base/clock.h"
#include "log.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOKUP_NS 1000000000ull
#define WAIT_NS   100000000

struct name {
    struct name *next;
    char *uri;
    enum address_kind kind;
    struct addresses known;
    char worked[ADDRESS_BYTES];   /* the address at which the donor answered last; "": it never did */
    char error[NAME_ERROR_BYTES]; /* of the last lookup; "": there was none */
    bool wanted;                  /* a lookup was asked for */
    bool busy;                    /* the lookup thread looks the name up, without the lock */
    bool dropped;                 /* its donor was freed: the lookup thread frees the name */
    uint64_t looked_ns;           /* when the name was looked up last; 0: never */
};

/* Guards all names and their list. It is held only while a few bytes are copied. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked = PTHREAD_COND_INITIALIZER;
static struct name *names;

static void destroy(struct name *name)
{
    free(name->uri);
    free(name);
}

/* Takes a name out of the list. The caller holds the lock. */
static void unlink_name(struct name *name)
{
    struct name **at = &names;

    while (*at && *at != name)
        at = &(*at)->next;
    if (*at)
        *at = name->next;
}

struct name *name_new(const char *uri)
{
    struct name *name = calloc(1, sizeof(*name));

    if (!name || !(name->uri = strdup(uri))) {
        free(name);
        return NULL;
    }
    name->kind = address_kind_of(uri);
    if (name->kind == ADDRESS_LITERAL)
        address_look_up(uri, &name->known);
    pthread_mutex_lock(&lock);
    name->next = names;
    names = name;
    pthread_mutex_unlock(&lock);
    return name;
}

void name_free(struct name *name)
{
    if (!name)
        return;
    pthread_mutex_lock(&lock);
    bool busy = name->busy;

    name->dropped = true;
    if (!busy)
        unlink_name(name);
    pthread_mutex_unlock(&lock);
    if (!busy)
        destroy(name);
}

void name_worked(struct name *name, const char *address)
{
    pthread_mutex_lock(&lock);
    snprintf(name->worked, sizeof(name->worked), "%s", address);
    pthread_mutex_unlock(&lock);
}

/* Lists the addresses of a round, in order. Returns how many there are. The caller holds the lock. */
static uint32_t list_round(const struct name *name, const char *round[ADDRESSES_MAX + 1])
{
    uint32_t n = 0;
    bool known = false;

    for (uint32_t i = 0; i < name->known.n; i++)
        known = known || strcmp(name->known.text[i], name->worked) == 0;
    if (known)
        round[n++] = name->worked;
    for (uint32_t i = 0; i < name->known.n; i++)
        if (strcmp(name->known.text[i], name->worked) != 0)
            round[n++] = name->known.text[i];
    if (!known && *name->worked)
        round[n++] = name->worked;
    return n;
}

bool name_address(struct name *name, uint32_t attempt, char address[ADDRESS_BYTES], char why[NAME_ERROR_BYTES])
{
    const char *round[ADDRESSES_MAX + 1];

    pthread_mutex_lock(&lock);
    uint32_t n = list_round(name, round);
    bool found = attempt < n;

    if (found)
        snprintf(address, ADDRESS_BYTES, "%s", round[attempt]);
    memcpy(why, name->error, NAME_ERROR_BYTES);
    pthread_mutex_unlock(&lock);
    return found;
}

bool name_has_several(struct name *name)
{
    const char *round[ADDRESSES_MAX + 1];

    pthread_mutex_lock(&lock);
    bool several = list_round(name, round) > 1;

    pthread_mutex_unlock(&lock);
    return several;
}

bool name_is_elsewhere(struct name *name, const char *address)
{
    pthread_mutex_lock(&lock);
    bool elsewhere = *name->worked && strcmp(name->worked, address) != 0;

    pthread_mutex_unlock(&lock);
    return elsewhere;
}

void name_ask(struct name *name)
{
    if (name->kind != ADDRESS_NAME)
        return;
    pthread_mutex_lock(&lock);
    if (!name->wanted) {
        name->wanted = true;
        pthread_cond_signal(&asked);
    }
    pthread_mutex_unlock(&lock);
}

/* Whether a lookup found an address that was not known; false for the first lookup. */
static bool moved(const struct addresses *before, const struct addresses *found)
{
    for (uint32_t i = 0; i < found->n; i++) {
        bool known = before->n == 0;

        for (uint32_t k = 0; k < before->n; k++)
            known = known || strcmp(before->text[k], found->text[i]) == 0;
        if (!known)
            return true;
    }
    return false;
}

/* Keeps what a lookup found, or its error. The caller holds the lock. */
static void keep(struct name *name, const struct addresses *found, const char *error)
{
    snprintf(name->error, sizeof(name->error), "%s", error ? error : "");
    name->looked_ns = clock_ns();
    if (found->n == 0)
        return;
    if (moved(&name->known, found))
        log_info("donor %s: its name stands for %s%s now", name->uri, found->text[0],
                 found->n > 1 ? " and other addresses" : "");
    name->known = *found;
}

void name_found(struct name *name, const struct addresses *found)
{
    pthread_mutex_lock(&lock);
    keep(name, found, NULL);
    pthread_mutex_unlock(&lock);
}

/*
 * Chooses the next name to look up: of those for which a lookup was asked and whose last one is LOOKUP_NS ago, the
 * name whose last lookup is oldest. NULL: none is due. The caller holds the lock.
 */
static struct name *choose(bool *any_wanted)
{
    struct name *best = NULL;
    uint64_t now_ns = clock_ns();

    *any_wanted = false;
    for (struct name *name = names; name; name = name->next) {
        *any_wanted = *any_wanted || name->wanted;
        if (name->wanted && (!name->looked_ns || now_ns >= name->looked_ns + LOOKUP_NS) &&
            (!best || name->looked_ns < best->looked_ns))
            best = name;
    }
    return best;
}

/* Looks a name up. Releases the caller's lock while it waits for the resolver. */
static void look_up_unlocks(struct name *name)
{
    struct addresses found = {.n = 0};

    name->busy = true;
    pthread_mutex_unlock(&lock);
    const char *error = address_look_up(name->uri, &found);

    pthread_mutex_lock(&lock);
    name->busy = name->wanted = false;
    keep(name, &found, error);
    if (name->dropped) {
        unlink_name(name);
        destroy(name);
    }
}

static void *lookup_thread(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&lock);
    for (;;) {
        bool any_wanted;
        struct name *name = choose(&any_wanted);
        struct timespec until;

        if (name) {
            look_up_unlocks(name);
        } else if (any_wanted) { /* but not due, as its last lookup was a moment ago */
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += WAIT_NS;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
            pthread_cond_timedwait(&asked, &lock, &until);
        } else {
            pthread_cond_wait(&asked, &lock);
        }
    }
    return NULL;
}

int names_start(void)
{
    pthread_attr_t attributes;
    pthread_t thread;

    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int rc = pthread_create(&thread, &attributes, lookup_thread, NULL);

    pthread_attr_destroy(&attributes);
    return -rc;
}
