/* SPDX-License-Identifier: MIT */
/*
 * Limits which system calls a program may make once all its threads run: seccomp(2), no_new_privs (docs/decisions.md,
 * "A list of system calls, and what becomes of the others"). There are three groups of calls:
 *
 * - Calls on the list are allowed.
 * - Calls that only an intruder makes kill the process with SIGSYS, and the kernel writes a line to its audit log.
 *   They concern other programs, other processes' memory, mounts, namespaces and modules.
 * - All other calls fail with ENOSYS, as on a kernel that does not have them, and are noted in the audit log.
 *   A newer C library tries calls that the list lacks, and then does without them.
 *
 * Builds with an address or a thread sanitizer have no list, because its runtime traces and starts processes.
 */
#ifndef GHOSTBOX_SANDBOX_H
#define GHOSTBOX_SANDBOX_H

#include <stdbool.h>

/* Sets no_new_privs: no program that this process starts gains rights. Called at the start of each program. */
void sandbox_no_new_privs(void);

/*
 * Installs the list for all threads of the process, for ever. Called once they are started: later threads are
 * allowed, later processes are not. Returns whether the list is in force; if it is not, a log line says why.
 */
bool sandbox_enter(void);

#endif
