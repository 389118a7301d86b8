/* SPDX-License-Identifier: MIT */
/*
 * Names of donors, and the addresses that they stand for.
 *
 * libnbd looks a URI's name up each time that it connects, and waits for the answer, which may take a resolver
 * seconds; the threads that connect serve all donors. So they take addresses from here, and the lookup thread asks
 * the resolver: once for a name that is new, and again, at most once in LOOKUP_NS, whenever all addresses of a name
 * were tried in vain: a donor may have moved (DHCP). What a lookup that fails had found before is kept.
 *
 * A round of attempts begins with the address that was connected to last, goes on in the resolver's order, and ends
 * with the one that was connected to last where the resolver no longer names it. Who answers has to show the donor's
 * id (channel.c), so that a machine which took over an address is not taken for the donor.
 */
#ifndef GHOSTBOX_PAGER_NAMES_H
#define GHOSTBOX_PAGER_NAMES_H

#include "address.h"

#define NAME_ERROR_BYTES 64

struct name;

/* Starts the lookup thread, which ends with the process: nobody can interrupt a resolver. Returns 0 or -errno. */
int names_start(void);
/* The machine that an nbd:// URI names; an address is known at once, a name when it was looked up. NULL: no memory.
 */
struct name *name_new(const char *uri);
/* NULL is allowed. */
void name_free(struct name *name);

/* All of these in any thread; none of them waits for a resolver. */
/* A connection to this address showed the donor: it is the first to be tried from now on. */
void name_worked(struct name *name, const char *address);
/*
 * The address for this attempt of a round, counted from 0; false: the round is over, or no address is known. Then
 * why says what the resolver said, "" if nothing.
 */
bool name_address(struct name *name, uint32_t attempt, char address[ADDRESS_BYTES], char why[NAME_ERROR_BYTES]);
/* Whether there is a choice: more than one address to try. */
bool name_has_several(struct name *name);
/* Whether it was connected to before, but never at this address. */
bool name_is_elsewhere(struct name *name, const char *address);
/* All were tried in vain: it is to be looked up anew. Nothing to do for an address. */
void name_ask(struct name *name);
/* What the caller has looked up itself, waiting for it. */
void name_found(struct name *name, const struct addresses *found);

#endif
