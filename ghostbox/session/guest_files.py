# SPDX-License-Identifier: MIT
"""The files of a VM: disk, keys, cloud-init seed, SSH configuration, its copy of the shim."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ghostbox import cloudinit, hypervisor, processes, ssh
from ghostbox.errors import Refused, UsageError
from ghostbox.images import Image, ImageStore, qemu_img
from ghostbox.paths import Paths, home_directory, make_directory
from ghostbox.plan import Virt, VmPlan
from ghostbox.units import exact_bytes, format_bytes

HOST = "127.0.0.1"


def prepare(plan: VmPlan, image: Image, paths: Paths, shim_library: Path) -> None:
    """Make all files that QEMU and ssh need. What is there already (disk, keys) is kept."""
    files = plan.files
    make_directory(files.state)
    make_directory(files.runtime)
    _prepare_disk(plan, image, paths)
    prepare_keys(plan)
    cloudinit.write_seed_iso(cloudinit.render(seed_spec(plan)), files.seed)
    _write_ssh_files(plan)
    shutil.copyfile(shim_library, plan.shim)
    plan.shim.chmod(0o644)
    for file in (files.disk, files.seed):
        _hand_to_qemu(file, plan.libvirt_uri)


def prepare_keys(plan: VmPlan) -> None:
    """Make the guest's host key and our own login key, once in a VM's life."""
    for key in (plan.files.host_key, plan.files.client_key):
        if not key.exists():
            ssh.write_key(ssh.generate_key(f"ghostbox-{plan.name}"), key)


def seed_spec(plan: VmPlan) -> cloudinit.SeedSpec:
    """Return what the VM's cloud-init seed says.

    Raises:
        UsageError: the user's key or cloud-init file cannot be read.
    """
    files = plan.files
    keys = [_read(files.client_key.with_suffix(".pub"), "our own key"), *_user_keys(plan)]
    return cloudinit.SeedSpec(
        hostname=plan.name,
        user=plan.guest.user,
        ssh_authorized_keys=tuple(key.strip() for key in keys),
        host_key_private=_read(files.host_key, "the guest's host key"),
        host_key_public=_read(files.host_key.with_suffix(".pub"), "the guest's host key"),
        tiering=plan.guest.tiering,
        extra_user_data=_extra_user_data(plan),
        mac=plan.network.mac,
        emulated=plan.virt is Virt.TCG,
    )


def preview_user_data(plan: VmPlan) -> str:
    """Return the user-data that ``up`` would give the guest, with our own keys left out."""
    hidden = "(made by up)"
    spec = cloudinit.SeedSpec(
        hostname=plan.name,
        user=plan.guest.user,
        ssh_authorized_keys=(f"ssh-ed25519 {hidden}", *_user_keys(plan)),
        host_key_private=hidden,
        host_key_public=f"ssh-ed25519 {hidden}",
        tiering=plan.guest.tiering,
        extra_user_data=_extra_user_data(plan),
        mac=plan.network.mac,
        emulated=plan.virt is Virt.TCG,
    )
    return cloudinit.render(spec).user_data


def _extra_user_data(plan: VmPlan) -> str | None:
    return None if plan.guest.cloud_init is None else _read(plan.guest.cloud_init, "vm.cloud_init")


def _user_keys(plan: VmPlan) -> list[str]:
    if plan.guest.ssh_key is not None:
        return [ssh.read_public_key(plan.guest.ssh_key)]
    home = home_directory()
    return [] if home is None else list(ssh.user_public_keys(home))


def _prepare_disk(plan: VmPlan, image: Image, paths: Paths) -> None:
    if not plan.files.disk.exists():
        draft = plan.files.disk.with_suffix(".new")
        ImageStore(paths.images).create_overlay(image, draft, plan.disk_bytes)
        draft.replace(plan.files.disk)
        return
    size_bytes = qemu_img.info(plan.files.disk).virtual_bytes
    if plan.disk_bytes < size_bytes:
        raise Refused(
            f"the disk of VM '{plan.name}' has {format_bytes(size_bytes)} and cannot shrink"
            f" to {format_bytes(plan.disk_bytes)}",
            why="the guest's file system is on it",
            hint=f"leave --disk out, or give {exact_bytes(size_bytes)} or more",
        )
    if plan.disk_bytes > size_bytes:
        processes.run(["qemu-img", "resize", "-q", plan.files.disk, str(plan.disk_bytes)], timeout_s=60)


def _write_ssh_files(plan: VmPlan) -> None:
    files, port = plan.files, plan.network.ssh_port
    public = _read(files.host_key.with_suffix(".pub"), "the guest's host key")
    files.known_hosts.write_text(cloudinit.render_known_hosts(HOST, port, public))
    keys = [files.client_key] + ([] if plan.guest.ssh_key is None else [plan.guest.ssh_key.absolute()])
    text = cloudinit.render_ssh_config(plan.name, HOST, port, plan.guest.user, files.known_hosts, keys)
    files.ssh_config.write_bytes(os.fsencode(text))
    for file in (files.known_hosts, files.ssh_config):
        file.chmod(0o600)  # ssh refuses a configuration that others may write, which a umask of 002 lets them


def _hand_to_qemu(file: Path, uri: str) -> None:
    """Give a file to QEMU's user and nobody else; a session libvirt's QEMU is us."""
    file.chmod(0o600)
    account = hypervisor.qemu_user(uri)
    if os.geteuid() == 0 and account.uid != 0:
        os.chown(file, account.uid, -1)


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"cannot read {what} {path}: {err}") from err
