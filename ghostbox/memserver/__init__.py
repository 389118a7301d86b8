# SPDX-License-Identifier: MIT
"""``ghostbox memserver``: the control plane of a donor.

It decides who may use how much of this machine's RAM, and tells the C program ``ghostbox-memserver``, which holds the
memory and moves the pages. No page passes through Python.

    memory      how much may be lent                     leases   who has what; kept over restarts
    records     the lease records' file                  app      the HTTP API
    data_plane  starts, adopts, watches the C program    service  one running memserver: lock, signals
                                                         ending   the wait for the last lease

What dies when:

- Python is killed: the C program, in a session of its own, goes on serving; the next ``ghostbox memserver`` of the same
  name adopts it through its control socket, and no lease is lost.
- The C program is killed: noticed at once (pidfd), logged, started again with empty memory; each lease is made again
  under its name and size with a new incarnation, by which its holder sees that the memory is not the one it wrote.
- Both are gone (reboot): the leases of the old process are lost; they are logged and not made again.
- SIGTERM, SIGINT or SIGHUP: no new leases; when the last one is released the C program is ended, too. It waits for
  that without limit (unless there is a ``--drain-timeout``), and asks before it gives memory up: see `ending`.
"""
