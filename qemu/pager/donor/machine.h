/* SPDX-License-Identifier: MIT */
/*
 * The machine that a donor is on: two copies of an extent on one machine would both be lost with it. Our memory
 * server names its machine in the export's description (--machine), by whatever name or network it is reached. For
 * any other server the machine is the address at which it answers; all addresses of the loopback network are one
 * machine.
 */
#ifndef GHOSTBOX_MACHINE_H
#define GHOSTBOX_MACHINE_H

/*
 * Returns the machine of the server at the other end of fd, malloc'd. `identity` is the export's description, `uri`
 * its URI, which counts if fd has no address. NULL: no memory.
 */
char *machine_of(const char *identity, const char *uri, int fd);

#endif
