# SPDX-License-Identifier: MIT
"""Manage domains by libvirt, start its daemon, and test whether KVM runs a guest. Only this package imports libvirt."""

from ghostbox.system.hypervisor.accounts import qemu_user
from ghostbox.system.hypervisor.connection import (
    DiskTrouble,
    DomainInfo,
    DomainState,
    FailedWrite,
    Hypervisor,
    Taken,
    connect,
)
from ghostbox.system.hypervisor.domain_log import qemu_log
from ghostbox.system.hypervisor.kvm import kvm_usable, problem_hint
from ghostbox.system.hypervisor.process import QemuProcess, disk_is_written, end_qemu, find_qemu

__all__ = [
    "DiskTrouble",
    "DomainInfo",
    "DomainState",
    "FailedWrite",
    "Hypervisor",
    "QemuProcess",
    "Taken",
    "connect",
    "disk_is_written",
    "end_qemu",
    "find_qemu",
    "kvm_usable",
    "problem_hint",
    "qemu_log",
    "qemu_user",
]
