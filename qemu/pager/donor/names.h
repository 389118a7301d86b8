/* SPDX-License-Identifier: MIT */
/*
 * Names of donors, and the addresses that they stand for.
 *
 * libnbd looks a URI's name up each time that it connects and waits for the resolver, which may take seconds; the
 * threads that connect serve all donors. So these threads take addresses from here, and the lookup thread asks the
 * resolver whenever no address of a name is known, or all were tried in vain, because a donor may have moved (DHCP):
 * at most once in LOOKUP_NS for each name. If a lookup fails, the addresses found before are kept.
 *
 * A round of attempts begins with the address at which the donor answered last and goes on in the resolver's order.
 * If the resolver no longer names that address, the round ends with it. The server has to show the donor's id
 * (channel.c), so that another machine with an address that the donor had is not taken for the donor.
 */
#ifndef GHOSTBOX_PAGER_NAMES_H
#define GHOSTBOX_PAGER_NAMES_H

#include "donor/address.h"

#define NAME_ERROR_BYTES 64

struct name;

/*
 * Starts the lookup thread, which ends with the process, because a resolver cannot be interrupted. Returns 0 or
 * -errno.
 */
int names_start(void);
/*
 * Makes the name of the machine in an nbd:// URI. If the URI has an address, that is known at once; a name has no
 * address until it was looked up. NULL: no memory.
 */
struct name *name_new(const char *uri);
/* Frees a name, at the end of its lookup if one is under way. NULL is allowed. */
void name_free(struct name *name);

/* The functions below may be called in any thread; none of them waits for a resolver. */

/* Says that the donor has answered at this address, which is then tried first. */
void name_worked(struct name *name, const char *address);
/*
 * Copies the address for this attempt of a round (counted from 0). Returns false if the round is over, or no address
 * is known; why is the resolver's last error, "" if there was none.
 */
bool name_address(struct name *name, uint32_t attempt, char address[ADDRESS_BYTES], char why[NAME_ERROR_BYTES]);
/* Whether more than one address is to be tried. */
bool name_has_several(struct name *name);
/* Whether the donor has answered before, and last at another address than this. */
bool name_is_elsewhere(struct name *name, const char *address);
/* Asks for a new lookup, as all addresses were tried in vain. Does nothing if the URI has an address. */
void name_ask(struct name *name);
/* Takes over what the caller has looked up itself. */
void name_found(struct name *name, const struct addresses *found);

#endif
