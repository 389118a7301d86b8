# SPDX-License-Identifier: MIT
"""Domains by libvirt, the daemon behind it, and whether KVM really runs a guest. ``libvirt`` is imported only here."""

from ghostbox.hypervisor.accounts import qemu_user
from ghostbox.hypervisor.connection import DiskTrouble, DomainInfo, DomainState, FailedWrite, Hypervisor, Taken, connect
from ghostbox.hypervisor.domain_log import qemu_log
from ghostbox.hypervisor.kvm import kvm_usable, problem_hint
from ghostbox.hypervisor.process import QemuProcess, disk_is_written, end_qemu, find_qemu

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
