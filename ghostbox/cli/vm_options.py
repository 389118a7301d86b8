# SPDX-License-Identifier: MIT
"""Hold the flags of a VM's keys: one list for `up`, `set` and `plan`. Each flag sets a key of the definition."""

from __future__ import annotations

from ghostbox.cli.key_options import key_options

vm_options = key_options(
    "vm.local",
    "vm.memory",
    "vm.remote_memory",
    "pool.cache",
    "vm.cpus",
    "vm.disk",
    "vm.disks",
    "vm.shares",
    "vm.image",
    "pool.donors",
    "pool.replicas",
    "pool.allow_same_host",
    "pool.backup",
    "pool.on_donor_loss",
    "pool.insecure",
    "vm.user",
    "vm.cloud_init",
    "vm.ports",
    "vm.network",
    "vm.host_access",
    "vm.autostart",
)
"""A decorator that gives a command all of these flags."""
