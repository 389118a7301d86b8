# SPDX-License-Identifier: MIT
"""Run the control plane of a donor (``ghostbox memserver``).

The control plane decides which host may use how much of this machine's RAM, and tells the C program
``ghostbox-memserver``, which holds the memory and moves the pages. No page passes through Python.

    memory      how much may be lent                     leases   each lease and its holder; kept over restarts
    records     the lease records' file                  app      the HTTP API
    data_plane  starts, adopts, watches the C program    service  one running memserver: lock, signals
                                                         ending   the wait for the last lease

What happens when a part dies:

- The control plane is killed: the C program, in a session of its own, serves on; the next ``ghostbox memserver`` of the
  same name adopts it through its control socket, and no lease is lost.
- The C program is killed: the control plane notices at once (pidfd), logs it, and starts it again with empty memory.
  Each lease is made again under its name and size with a new incarnation, by which its holder sees that the content is
  lost.
- Both are gone (reboot): the leases of the old process are lost; they are logged and not made again.
- SIGTERM, SIGINT or SIGHUP: the memserver gives no new leases; when the last lease is released, the C program is ended
  and then the control plane. It waits without limit (unless there is a ``--drain-timeout``), and asks before it gives
  memory up: see `ending`.
"""
