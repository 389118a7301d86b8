# SPDX-License-Identifier: MIT
"""Make the files of a VM: disk, keys, cloud-init seed, SSH configuration, its copy of the shim."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ghostbox.errors import Refused, UsageError, hint_for
from ghostbox.images import Image, ImageStore, qemu_img
from ghostbox.paths import Paths, VmPaths, home_directory, make_directory
from ghostbox.plan import cloudinit, domain_xml
from ghostbox.plan.plan import Virt, VmPlan
from ghostbox.session import network
from ghostbox.system import hypervisor, ssh_keys, state_files
from ghostbox.system.hypervisor import accounts
from ghostbox.units import exact_bytes, format_bytes


def prepare(plan: VmPlan, image: Image, paths: Paths, shim_library: Path) -> None:
    """Make all files that QEMU and ssh need. Disks and keys that exist already are kept."""
    files = plan.files
    make_directory(files.state)
    make_directory(files.runtime)
    _prepare_disk(plan, image, paths)
    more = [(files.more_disk(number), disk.size_bytes) for number, disk in enumerate(plan.disks, start=2)]
    for file, size_bytes in more:
        _prepare_more(plan, file, size_bytes)
    prepare_keys(plan)
    cloudinit.write_seed_iso(cloudinit.render(seed_spec(plan)), files.seed)
    if plan.network.choice.kind == "user":
        write_ssh_files(
            plan.name, plan.guest.user, (network.HOST, plan.network.ssh_port), files, ssh_key=plan.guest.ssh_key
        )
    shutil.copyfile(shim_library, plan.shim)
    plan.shim.chmod(0o644)
    for file in (files.disk, files.seed, *(file for file, _ in more)):
        hand_to_qemu(file, plan.libvirt_uri)


def begin_console_log(file: Path) -> None:
    """Make an empty console log that this user owns; otherwise libvirt's logger, which runs as root, makes it."""
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)


def prepare_keys(plan: VmPlan) -> None:
    """Make the guest's host key and GhostBox's login key, once in a VM's life."""
    for key in (plan.files.host_key, plan.files.client_key):
        if not key.exists():
            ssh_keys.write_key(ssh_keys.generate_key(f"ghostbox-{plan.name}"), key)


def seed_spec(plan: VmPlan) -> cloudinit.SeedSpec:
    """Return the content of the VM's cloud-init seed.

    Raises:
        UsageError: the user's key or cloud-init file cannot be read.
    """
    files = plan.files
    own = _read(files.client_key.with_suffix(".pub"), "our own key")
    private = _read(files.host_key, "the guest's host key")
    public = _read(files.host_key.with_suffix(".pub"), "the guest's host key")
    return _seed(plan, own, private, public)


def preview_user_data(plan: VmPlan) -> str:
    """Return the user-data that ``up`` would give the guest, without the keys that ``up`` generates."""
    hidden = "(made by up)"
    public = f"ssh-ed25519 {hidden}"
    return cloudinit.render(_seed(plan, public, hidden, public)).user_data


def _seed(plan: VmPlan, own_key: str, host_key_private: str, host_key_public: str) -> cloudinit.SeedSpec:
    """Return the guest's files; ``own_key`` is the public key of GhostBox's logins."""
    return cloudinit.SeedSpec(
        hostname=plan.name,
        user=plan.guest.user,
        ssh_authorized_keys=tuple(key.strip() for key in (own_key, *_user_keys(plan))),
        host_key_private=host_key_private,
        host_key_public=host_key_public,
        tiering=plan.guest.tiering,
        extra_user_data=_extra_user_data(plan),
        mac=plan.network.mac,
        more_disks=tuple(domain_xml.disk_serial(number) for number in range(2, 2 + len(plan.disks))),
        machine_id=plan.machine_id,
        emulated=plan.virt is Virt.TCG,
    )


def _extra_user_data(plan: VmPlan) -> str | None:
    return None if plan.guest.cloud_init is None else _read(plan.guest.cloud_init, "vm.cloud_init")


def _user_keys(plan: VmPlan) -> list[str]:
    if plan.guest.ssh_key is not None:
        return [ssh_keys.read_public_key(plan.guest.ssh_key)]
    home = home_directory()
    return [] if home is None else list(ssh_keys.user_public_keys(home))


def _prepare_disk(plan: VmPlan, image: Image, paths: Paths) -> None:
    if not plan.files.disk.exists():
        draft = plan.files.disk.with_suffix(".new")
        ImageStore(paths.images).create_overlay(image, draft, plan.disk_bytes)
        draft.replace(plan.files.disk)
        return
    _grow(plan, plan.files.disk, plan.disk_bytes, "--disk")


def notes(plan: VmPlan) -> tuple[str, ...]:
    """Return notes on disks that the VM has and its definition does not name any more: they stay, unattached."""
    named = {plan.files.more_disk(number) for number in range(2, 2 + len(plan.disks))}
    left = sorted(set(plan.files.state.glob("disk[0-9]*.qcow2")) - named)
    return tuple(f"note: {disk} is kept and not attached: vm.disks does not name it any more" for disk in left)


def _prepare_more(plan: VmPlan, file: Path, size_bytes: int) -> None:
    if file.exists():
        _grow(plan, file, size_bytes, "--add-disk")
        return
    draft = file.with_suffix(".new")
    qemu_img.create(draft, size_bytes)
    draft.replace(file)


def _grow(plan: VmPlan, file: Path, wanted_bytes: int, flag: str) -> None:
    has_bytes = qemu_img.info(file).virtual_bytes
    if wanted_bytes < has_bytes:
        raise Refused(
            f"the {file.stem} of VM '{plan.name}' has {format_bytes(has_bytes)} and cannot shrink"
            f" to {format_bytes(wanted_bytes)}",
            why="the guest's file system is on it",
            hint=f"leave {flag} out, or give {exact_bytes(has_bytes)} or more",
        )
    if wanted_bytes > has_bytes:
        qemu_img.grow(file, wanted_bytes)


def write_ssh_files(name: str, user: str, endpoint: tuple[str, int], files: VmPaths, *, ssh_key: Path | None) -> None:
    """Write the ssh configuration that leads to the guest's address, and the guest's host key."""
    host, port = endpoint
    public = _read(files.host_key.with_suffix(".pub"), "the guest's host key")
    known_hosts = cloudinit.render_known_hosts(host, port, public)
    keys = [files.client_key] + ([] if ssh_key is None else [ssh_key])
    text = cloudinit.render_ssh_config(name, host, port, user, files.known_hosts, keys)
    for file, content in ((files.known_hosts, known_hosts.encode()), (files.ssh_config, os.fsencode(text))):
        # ssh refuses files that others may write, as a umask of 002 allows.
        state_files.replace(file, content, mode=0o600)


def hand_to_qemu(file: Path, uri: str) -> None:
    """Let only QEMU's user read a file. QEMU of a session libvirt runs as this user.

    Raises:
        Refused: the file's owner cannot be changed.
    """
    account = hypervisor.qemu_user(uri)
    try:
        accounts.hand_over(file, account)
    except OSError as err:
        raise Refused(
            f"QEMU runs as user {account.name}, which cannot be given access to {file}",
            why=err.strerror,
            hint=hint_for(err, "set libvirt.uri to qemu:///session, or run this as root"),
        ) from err


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as err:
        raise UsageError(f"cannot read {what} {path}: {err}") from err
