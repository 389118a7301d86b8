/* SPDX-License-Identifier: MIT */
/*
 * On which machine a donor's memory is: two copies of an extent on one machine would both die with it. A memory
 * server of ours says so in its export's description (--machine), whatever name or network it is reached by. Of
 * another one the address counts that it was found at, and all addresses of the loopback network are one machine.
 */
#ifndef GHOSTBOX_MACHINE_H
#define GHOSTBOX_MACHINE_H

/* Of a server with this description at the other end of fd, as uri names it. NULL: no memory. */
char *machine_of(const char *identity, const char *uri, int fd);

#endif
