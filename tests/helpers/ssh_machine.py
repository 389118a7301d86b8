# SPDX-License-Identifier: MIT
"""Be a machine that a host reaches by ssh: a real SSH server (dropbear) in namespaces of its own.

The machine has an address of its own, and sees only its own processes. /opt, /run, /root, /srv and /usr/local/bin are
its own, too, and are gone with it, as are its users: root, and ana, who lives in /srv. The rest is this machine's. A
test may put programs of its own first on the PATH of logins.

    with ssh_machine(tmp_path) as machine:
        machine.sh("ls /opt")
        run(["ssh", "-F", machine.config, "tower", "true"])
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghostbox.system import ssh_keys
from ghostbox.system.processes import wait_until
from helpers import netns
from helpers.ports import free_port
from helpers.systemd import Systemd

PORT = 2222
PASSWORD = "correct horse"  # noqa: S105 - ana's, who is a user of this machine alone
_SERVER = "dropbear"
_OWN_PLACES = ("/opt", "/run", "/root", "/srv", "/usr/local/bin")
_ANA = 12345
_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}  # of the machine: dropbear hands its own on to logins


@dataclass(frozen=True)
class SshMachine:
    """Is a running machine. ``pid`` is its first process, ``config`` the ssh configuration that calls it ``tower``."""

    place: Path
    address: str
    pid: int
    port: int = PORT

    @property
    def config(self) -> Path:
        """Return the ssh configuration."""
        return self.place / "ssh_config"

    def files(self) -> set[str]:
        """Return all that is in the places that are this machine's own, but for what the test and sudo put there."""
        found = self.sh(f"find {' '.join(_OWN_PLACES)} '(' -path /run/test -o -path /run/sudo ')' -prune -o -print")
        return set(found.splitlines())

    def processes(self) -> list[str]:
        """Return the command lines of its processes, without the SSH server's and this look's."""
        lines = self.sh("ps -eww -o args=").splitlines()
        return [line for line in lines if not line.startswith(("dropbear", "sh -c ps -eww", "ps -eww"))]

    def let_sudo(self, rule: str) -> None:
        """Write a rule for sudo."""
        (self.place / "sudoers").write_text(f"root ALL=(ALL) ALL\n{rule}\n")

    def sh(self, script: str, *, check: bool = True) -> str:
        """Run a shell script there, past ssh, and return its output."""
        argv = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "sh", "-c", script]
        done = subprocess.run(argv, env=_ENV, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def has(self, path: str) -> bool:
        """Tell whether a path exists there."""
        return self.sh(f"test -e '{path}' -o -L '{path}' && echo yes", check=False) == "yes\n"

    def own_program(self, name: str, script: str) -> None:
        """Put a program first on the PATH of logins."""
        path = self.place / "programs" / name
        path.write_text(f"#!/bin/sh\n{textwrap.dedent(script)}")
        path.chmod(0o755)

    def hide_from_logins(self, name: str) -> None:
        """Let a program of /usr/bin be none."""
        self.sh(f"mount --bind /dev/null $(realpath /usr/bin/{name})")

    def no_own_programs(self) -> None:
        """Take the programs away again, and show those that were hidden."""
        for path in (self.place / "programs").iterdir():
            path.unlink()
        hidden = self.sh("awk '$5 ~ /^.usr.bin./ {print $5}' /proc/self/mountinfo").split()
        for path_ in hidden:
            self.sh(f"umount {path_}")

    def wait_until_idle(self) -> None:
        """Wait until nothing runs there that ssh has started."""
        wait_until(lambda: not self.processes(), timeout_s=60, what="the end of what ssh has started")

    def configure(self, *lines: str, user: str = "root", known_hosts: str | None = None) -> None:
        """Write the ssh configuration anew, with further lines, and the known hosts."""
        text = "\n".join(
            [
                "Host tower",
                f"  HostName {self.address}",
                f"  Port {self.port}",
                f"  User {user}",
                "  IdentitiesOnly yes",
                f"  IdentityFile {self.place}/key",
                f"  UserKnownHostsFile {self.place}/known_hosts",
                "  GlobalKnownHostsFile /dev/null",
                *(f"  {line}" for line in lines),
            ]
        )
        self.config.write_text(f"{text}\n")
        key = (self.place / "host_key.pub").read_text().strip()
        hosts = f"[{self.address}]:{self.port} {key}\n" if known_hosts is None else known_hosts
        (self.place / "known_hosts").write_text(hosts)


def _start_script(place: Path, opt_size: str) -> str:
    """Return what the machine's first process does. Users have no way into ``place``, which is the test's alone."""
    return f"""
        for each in {" ".join(_OWN_PLACES)}; do mount -t tmpfs -o mode=755 tmpfs $each; done
        mount -o remount,size={opt_size} /opt
        mkdir -p /run/test/programs /root/.ssh /srv/ana/.ssh
        mount --bind {place}/programs /run/test/programs
        cp {place}/login /run/test/
        for each in passwd shadow group sudoers; do mount --bind {place}/$each /etc/$each; done
        cp {place}/authorized_keys /root/.ssh/ && cp {place}/authorized_keys /srv/ana/.ssh/
        chmod 700 /root /root/.ssh /srv/ana/.ssh && chown -R ana:ana /srv/ana
        exec {_SERVER} -F -E -s -p {PORT} -r {place}/dropbear_key -P '' -c /run/test/login
    """


def _write_users(place: Path) -> None:
    """Write the machine's users: this machine's, of whom root alone has a line for a password, and ana."""
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", PASSWORD], check=True, capture_output=True, text=True
    ).stdout.strip()
    added = {
        "passwd": f"ana:x:{_ANA}:{_ANA}::/srv/ana:/bin/sh",
        "shadow": f"ana:{hashed}:20000:0:99999:7:::",
        "group": f"ana:x:{_ANA}:",
    }
    for name, line in added.items():
        path = place / name
        others = "root:*:20000:0:99999:7:::\n" if name == "shadow" else Path("/etc", name).read_text()
        path.write_text(f"{others}{line}\n")
        path.chmod(0o640 if name == "shadow" else 0o644)
    (place / "sudoers").write_text("root ALL=(ALL) ALL\n")
    (place / "sudoers").chmod(0o440)


@contextlib.contextmanager
def ssh_machine(place: Path, *, opt_size: str = "1g") -> Iterator[SshMachine]:
    """Run a machine until the end of the block; all its processes end with it. ``place`` gets its keys."""
    _prepare(place, "")
    with netns.machines(1) as (machine,), (place / "sshd.log").open("w") as log:
        argv = [
            *machine.prefix,
            "unshare",
            "-m",
            "-p",
            "-f",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
        ]
        script = textwrap.dedent(_start_script(place, opt_size))
        words = [*argv, "sh", "-c", script]
        with subprocess.Popen(words, env=_ENV, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as unshare:
            try:
                children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
                wait_until(lambda: children.read_text().strip() != "", timeout_s=30, what="the machine's first process")
                yield _answering(SshMachine(place, machine.address, int(children.read_text().split()[0])))
            finally:
                unshare.kill()


@contextlib.contextmanager
def ssh_to_systemd(place: Path, systemd: Systemd) -> Iterator[SshMachine]:
    """Let root log in beside a systemd, with its home directory, on loopback; until the end of the block."""
    session = f"HOME={systemd.home} XDG_RUNTIME_DIR=/run/user/0 XDG_CONFIG_HOME={systemd.home}/.config"
    _prepare(place, f"export {session}")
    port = free_port()
    script = f"""
        mount -t tmpfs -o mode=700 tmpfs /root && mkdir -m 700 /root/.ssh && cp {place}/authorized_keys /root/.ssh/
        exec {_SERVER} -F -E -s -p 127.0.0.1:{port} -r {place}/dropbear_key -P '' -c {place}/login
    """
    argv = ["nsenter", "-t", str(systemd.pid), "-m", "-p", "unshare", "-m", "--propagation", "private"]
    with (place / "sshd.log").open("w") as log:
        words = [*argv, "sh", "-c", textwrap.dedent(script)]
        with subprocess.Popen(words, env=_ENV, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as server:
            try:
                yield _answering(SshMachine(place, "127.0.0.1", systemd.pid, port))
            finally:
                server.kill()


def _prepare(place: Path, session: str) -> None:
    """Write what a machine needs: keys, users, and the script that runs a login's command; or skip the test."""
    if os.geteuid() != 0:
        pytest.skip("cannot run here: namespaces need root")
    for program in (_SERVER, "sudo"):
        if shutil.which(program, path="/usr/sbin:/usr/bin") is None:
            pytest.skip(f"{program} is not installed")
    place.mkdir(parents=True, exist_ok=True)
    (place / "programs").mkdir()
    _write_keys(place)
    _write_users(place)
    path = "/run/test/programs:/usr/sbin:/usr/bin:/sbin:/bin"
    login = place / "login"
    login.write_text(f'#!/bin/sh\nexport PATH={path}\n{session}\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    login.chmod(0o755)


def _answering(machine: SshMachine) -> SshMachine:
    """Return a machine once ssh reaches it."""
    machine.configure()
    ask = ["ssh", "-n", "-F", str(machine.config), "-oBatchMode=yes", "tower", "true"]
    wait_until(
        lambda: subprocess.run(ask, capture_output=True, check=False).returncode == 0,
        timeout_s=30,
        what=f"ssh to the machine (its log is {machine.place}/sshd.log)",
        interval_s=0.1,
    )
    return machine


def _write_keys(place: Path) -> None:
    pair = ssh_keys.generate_key("test")
    ssh_keys.write_key(pair, place / "key")
    (place / "authorized_keys").write_text(pair.public + "\n")
    host = ssh_keys.generate_key("machine")
    ssh_keys.write_key(host, place / "host_key")
    convert = ["dropbearconvert", "openssh", "dropbear", str(place / "host_key"), str(place / "dropbear_key")]
    subprocess.run(convert, check=True, capture_output=True)
