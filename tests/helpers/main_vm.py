# SPDX-License-Identifier: MIT
"""Define the VM that several modules of tests/vm share (its fixtures are in tests/vm/conftest.py)."""

from __future__ import annotations

VM = "gbt-main"
# Each of these signs means something else to ssh, libvirt, QEMU, the loader or URIs.
ODD = "s %h:'\"$(x)[ä]"
CACHE_MIB = 96
WORKLOAD_MIB = 288
# On a machine that runs these tests, two answers in a row may well take 50 ms.
NEVER_SLOW = "pool: {slow: 1m}\n"
CLOUD_INIT = """#cloud-config
write_files:
  - {path: /etc/theirs, content: "merged\\n"}
"""
CLOUD_INIT_CHANGED = CLOUD_INIT.replace("/etc/theirs", "/etc/theirs-changed")
