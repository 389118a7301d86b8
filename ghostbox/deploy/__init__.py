# SPDX-License-Identifier: MIT
"""Bring a complete donor to another machine by ssh, and remove it again (``ghostbox donor deploy``, ``undeploy``).

    facts ─► plan ─► bundle copied ─► tried there ─► switched ─► started ─► paired ─► asked over TLS: deployed
                                                        └── does not start: switched back, the former one is started

`facts` and `plan` decide before anything is copied. `agent` is the part that runs on the donor before GhostBox is
there; after that `memserver.deployed` does the rest, by the copy that was just installed.
"""
