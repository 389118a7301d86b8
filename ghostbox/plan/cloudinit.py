# SPDX-License-Identifier: MIT
"""Render the NoCloud seed, which cloud-init in the guest reads, and the configuration of the user's own ssh.

If the user has cloud-init data of their own, the user data is a MIME archive of two parts. cloud-init merges them and
appends lists; the user's part may be a script or any other kind that cloud-init knows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pycdlib
import yaml

from ghostbox.errors import ConfigError, UsageError
from ghostbox.plan import guest_boot
from ghostbox.plan.tiering import Tiering

# A guest that was reset has forgotten its connections and said farewell to none: it refuses the next probe. One that
# waits for pages of a donor answers late: only after ten minutes of silence is it given up.
_PROBE_S = 15
_SILENT_PROBES = 40
_SSH_PORT = 22
# Only a disk to which nothing was written is formatted: it has no signature that blkid knows, and begins with zeroes.
# Only a disk that was formatted here is mounted, so that a disk which the user has set up otherwise is left alone.
# Every user may write to the mounted disk, as to /tmp.
_MOUNT_DISK = """\
disk=/dev/disk/by-id/virtio-{serial} place=/mnt/{name}
udevadm settle --timeout=30 --exit-if-exists=$disk
test -b $disk || exit 0
if ! blkid -p $disk >/dev/null && cmp -s -n 1048576 $disk /dev/zero; then
  mkfs.ext4 -q -m 0 -L {serial} $disk && fresh=1
fi
test "$(blkid -p -s LABEL -o value $disk)" = {serial} || exit 0
mkdir -p $place
mountpoint -q $place || mount -o noatime $disk $place || exit 0
resize2fs $disk >/dev/null 2>&1
test -z "$fresh" || chmod 1777 $place
"""
_MERGE_HOW = "list(append)+dict(recurse_list,no_replace)+str()"
_JINJA = re.compile(r"##\s*template\s*:\s*jinja\s*", re.IGNORECASE)
_PART_TYPES = {
    "#cloud-config": "cloud-config",
    "#!": "x-shellscript",
    "#cloud-boothook": "cloud-boothook",
    "#include": "x-include-url",
}
# These kinds replace other parts, or have a form that cloud-init does not merge.
_UNMERGED_TYPES = ("#cloud-config-archive", "#cloud-config-jsonp", "#part-handler", "#include-once")
_MERGED = ("cloud-config", "jinja2")

# The accounts of Debian's base system (base-passwd, systemd, udev, dbus, openssh-server, cron); Ubuntu's are nearly the
# same.
_ACCOUNTS = frozenset(
    (
        *("root", "daemon", "bin", "sys", "sync", "games", "man", "lp", "mail", "news", "uucp", "proxy", "www-data"),
        *("backup", "list", "irc", "_apt", "nobody", "messagebus", "sshd", "systemd-network", "systemd-resolve"),
        *("systemd-timesync", "polkitd", "syslog", "tss", "uuidd", "landscape", "dhcpcd", "dnsmasq"),
    )
)


@dataclass(frozen=True)
class SeedSpec:
    """Holds the content of a VM's seed. Keys are in OpenSSH's text format; ``mac`` None matches the NIC by its driver.

    ``more_disks`` are the serial numbers of further disks. ``machine_id`` (machine-id(5)) is written into a guest whose
    disk is a copy of another VM's.
    """

    hostname: str
    user: str
    ssh_authorized_keys: tuple[str, ...]
    host_key_private: str
    host_key_public: str
    tiering: Tiering
    extra_user_data: str | None = None
    mac: str | None = None
    emulated: bool = False
    machine_id: str | None = None
    more_disks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seed:
    """Holds the three files of a NoCloud seed."""

    user_data: str
    meta_data: str
    network_config: str


def check_user(name: str) -> None:
    """Refuse a login name that an account of the guest's system has.

    The name of a group that exists is allowed: the user gets it as the primary group.

    Raises:
        UsageError: no user could log in with this name.
    """
    if name not in _ACCOUNTS:
        return
    raise UsageError(
        f"vm.user cannot be '{name}': the guest's system has an account of that name",
        why="it has no home directory, no shell or no login, and cloud-init does not change existing accounts",
        hint="choose another name; the login user may run sudo without a password",
    )


def render(spec: SeedSpec) -> Seed:
    """Return the seed for ``spec``.

    Raises:
        ConfigError: cloud-init does not know the kind of the user's own data, or the data is broken YAML.
    """
    meta_data = _yaml({"instance-id": _instance_id(spec), "local-hostname": spec.hostname})
    return Seed(_user_data(spec), meta_data, _yaml(_network_config(spec.mac)))


def _user_data(spec: SeedSpec) -> str:
    ours = "#cloud-config\n" + _yaml(_cloud_config(spec))
    return ours if spec.extra_user_data is None else _multipart(ours, spec.extra_user_data)


def _instance_id(spec: SeedSpec) -> str:
    """Return an id that changes with the user data: cloud-init does most of its work once for each id.

    A second run adds what is new (keys, files), runs the user's own scripts and writes the same host key. A new
    measurement of a link must not cause one, so the tiering's details are left out: its script sets the limit of
    promotion at each boot.
    """
    same = dataclasses.replace(spec, tiering=Tiering(on=spec.tiering.on, why=""))
    return f"ghostbox-{spec.hostname}-{hashlib.sha256(_user_data(same).encode()).hexdigest()[:12]}"


def _cloud_config(spec: SeedSpec) -> dict[str, Any]:
    scripts = guest_boot.scripts(spec.user, spec.tiering, emulated=spec.emulated, machine_id=spec.machine_id)
    mounts = [_MOUNT_DISK.format(serial=serial, name=serial.removeprefix("gb-")) for serial in spec.more_disks]
    return {
        "hostname": spec.hostname,
        "users": [
            {
                "name": spec.user,
                "gecos": "GhostBox",
                # cloud-init makes this group if it is missing: useradd refuses the name of a group that exists.
                "primary_group": spec.user,
                "groups": ["adm", "sudo", "video"],
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "shell": "/bin/bash",
                "lock_passwd": True,
                "ssh_authorized_keys": list(spec.ssh_authorized_keys),
            }
        ],
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": _with_newline(spec.host_key_private),
            "ed25519_public": spec.host_key_public.strip(),
        },
        "no_ssh_fingerprints": True,
        # Without this, a guest that is ended hard in its first minute keeps empty host keys, and sshd never starts
        # again.
        "runcmd": [["sync"]],
        "bootcmd": [["sh", "-c", script] for script in (*scripts, *mounts)],
    }


def _network_config(mac: str | None) -> dict[str, Any]:
    match = {"driver": "virtio_net"} if mac is None else {"macaddress": mac.lower()}
    return {"version": 2, "ethernets": {"ghostbox0": {"match": match, "dhcp4": True, "dhcp6": False}}}


def _multipart(base: str, users_own: str) -> str:
    """Join two parts; the user's is the second, so that its keys are added and never replace what GhostBox needs."""
    from email.mime.multipart import MIMEMultipart  # noqa: PLC0415 - rarely needed
    from email.mime.text import MIMEText  # noqa: PLC0415 - as above

    users_own = users_own.removeprefix("\ufeff")  # a byte order mark would hide the first line's kind
    archive = MIMEMultipart(boundary="==ghostbox==")
    for text, subtype in ((base, "cloud-config"), (users_own, _part_type(users_own))):
        part = MIMEText(_with_newline(text), subtype, "utf-8")
        part.replace_header("Content-Transfer-Encoding", part["Content-Transfer-Encoding"])
        if subtype in _MERGED:
            part.add_header("Merge-Type", _MERGE_HOW)
        archive.attach(part)
    return archive.as_string()


def _part_type(text: str) -> str:
    """Return the MIME subtype by which cloud-init knows the user's part (cloudinit/handlers: INCLUSION_TYPES_MAP).

    A template has a type of its own; below its first line, it must be of a kind that templates may make.
    """
    first, _, rest = text.partition("\n")
    if _JINJA.fullmatch(first):
        if not rest.startswith(("#cloud-config\n", "#!", "#cloud-boothook")):
            raise _unknown(rest)
        return "jinja2"
    if first.rstrip() in _UNMERGED_TYPES:
        raise ConfigError(
            f"cloud-init data of the kind '{first.rstrip()}' is not taken",
            why="cloud-init does not merge it with what GhostBox needs in the guest",
            hint="write it as '#cloud-config', as a script, or as '## template: jinja' with either below",
        )
    for start, subtype in _PART_TYPES.items():
        if text.startswith(start):
            if subtype == "cloud-config":
                _check_cloud_config(text)
            return subtype
    raise _unknown(text)


def _unknown(text: str) -> ConfigError:
    return ConfigError(
        f"cloud-init data begins with '{text.splitlines()[0][:40] if text else ''}', which cloud-init does not know",
        hint="begin the file with '#cloud-config' or, for a script, with '#!/bin/sh'",
    )


def _check_cloud_config(text: str) -> None:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError("the cloud-init file is not YAML", why=str(err)) from err
    if data is not None and not isinstance(data, dict):
        raise ConfigError("the cloud-init file is not a mapping", hint="write 'key: value' lines below #cloud-config")


def write_seed_iso(seed: Seed, path: Path) -> None:
    """Write a seed as the ISO image that cloud-init finds (volume label ``cidata``, Joliet and Rock Ridge)."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    files = {"user-data": seed.user_data, "meta-data": seed.meta_data, "network-config": seed.network_config}
    for name, text in files.items():
        data = text.encode()
        iso_name = f"/{name.upper().replace('-', '_')}.;1"
        iso.add_fp(io.BytesIO(data), len(data), iso_name, rr_name=name, joliet_path=f"/{name}")
    iso.write(str(path))
    iso.close()


def render_known_hosts(host: str, port: int, host_key_public: str) -> str:
    """Return the ``known_hosts`` line that pins the guest's key. SSH's own port is left out (sshd(8))."""
    kind, key = host_key_public.split()[:2]
    where = host if port == _SSH_PORT else f"[{host}]:{port}"
    return f"{where} {kind} {key}\n"


def render_ssh_config(vm: str, host: str, port: int, user: str, known_hosts: Path, identities: Sequence[Path]) -> str:
    """Return an OpenSSH client configuration for ``ssh VM``.

    Only ``identities`` are offered, the first one first: sshd disconnects after six keys (MaxAuthTries), and an agent
    may hold more keys that the guest does not know.
    """
    keys = "".join(f"    IdentityFile {ssh_quoted(path)}\n" for path in identities)
    return (
        f"Host {vm} ghostbox-{vm}\n"
        f"    HostName {host}\n"
        f"    Port {port}\n"
        f"    User {user}\n"
        f"    UserKnownHostsFile {ssh_quoted(known_hosts)}\n"
        "    StrictHostKeyChecking yes\n"
        "    HostKeyAlgorithms ssh-ed25519\n"
        f"{keys}"
        "    IdentitiesOnly yes\n"
        "    LogLevel ERROR\n"
        f"    ServerAliveInterval {_PROBE_S}\n"
        f"    ServerAliveCountMax {_SILENT_PROBES}\n"
    )


def ssh_quoted(path: Path) -> str:
    """Return a path as a word of an OpenSSH client configuration that takes tokens (ssh_config(5), TOKENS).

    A text with ``${`` is always a variable there, and cannot be quoted: `paths.find` refuses such paths.
    """
    text = str(path).replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _with_newline(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def _yaml(data: object) -> str:
    return yaml.safe_dump(data, sort_keys=False, width=1000)
