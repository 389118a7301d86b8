# SPDX-License-Identifier: MIT
"""A machine that cannot be a donor says why before anything is copied, and whatever fails on the way leaves nothing."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.system.processes import wait_until
from helpers import deploying as deploys
from helpers.deploying import SMALL, call, deploy, refused, undeploy
from helpers.secure_host import Host
from helpers.ssh_machine import PORT, SshMachine, ssh_machine

PYTHON = shlex.quote(sys.executable)
cache, host = deploys.cache, deploys.host


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshMachine]:
    with ssh_machine(tmp_path_factory.mktemp("bare") / "tower") as made:
        yield made


@pytest.fixture
def machine(one_machine: SshMachine) -> Iterator[SshMachine]:
    """Return the machine, on which no test of this module may leave anything."""
    before = one_machine.files()
    yield one_machine
    one_machine.no_own_programs()
    one_machine.configure()
    assert one_machine.files() == before
    assert one_machine.processes() == []


OTHER_MACHINES = {
    "processor": (
        "uname",
        'if [ "$1" = -m ]; then echo riscv64; else exec /bin/uname "$@"; fi',
        r"tower is a machine of another kind: Linux on riscv64 why: this host has programs for Linux on \w+ alone",
    ),
    "system": (
        "uname",
        'if [ "$1" = -s ]; then echo FreeBSD; else exec /bin/uname "$@"; fi',
        r"tower is a machine of another kind: FreeBSD on \w+",
    ),
    "old C library": (
        "getconf",
        "echo glibc 2.17",
        r"the C library of tower is too old: glibc 2\.17 why: the programs of this host need glibc 2\.\d+ or later",
    ),
    "another C library": (
        "getconf",
        "exit 1",
        r"tower has another C library: musl libc \(x86_64\) why: the programs of this host need the GNU C library",
    ),
    "old Python": (
        "python3",
        "echo python=3.9.2; echo python_path=/usr/bin/python3",
        r"tower has Python 3\.9\.2 \(/usr/bin/python3\), which is too old fix: Python 3\.11 or later is needed there",
    ),
    "incomplete Python": (
        "python3",
        """
        case "$*" in
        *asyncio*) echo "ModuleNotFoundError: No module named 'asyncio'" >&2; exit 1 ;;
        *) exec /usr/bin/python3 "$@" ;;
        esac""",
        r"the Python of tower is incomplete: ModuleNotFoundError: No module named 'asyncio' fix: install the whole",
    ),
    "broken Python": (
        "python3",
        "echo libpython3.11.so.1.0: cannot open shared object file >&2; exit 127",
        r"tower has no python3 that runs why: libpython3\.11\.so\.1\.0: cannot open shared object file fix",
    ),
    "no Python": ("python3", None, r"tower has no python3 fix: install Python 3\.11 or later there, then again"),
    "full disk": (
        "df",
        "echo heading; echo tmpfs 1000 900 100 90% /opt",
        r"the disk of tower is too full: 100 KiB are free for /opt/ghostbox why: a donor takes \S+ MiB there",
    ),
}


@pytest.mark.parametrize("kind", OTHER_MACHINES)
def test_a_machine_that_cannot_be_a_donor_is_told_why(host: Host, machine: SshMachine, kind: str) -> None:
    program, script, text = OTHER_MACHINES[kind]
    if script is None:
        machine.hide_from_logins(program)
    else:
        machine.own_program(program, script)
    if kind == "another C library":
        machine.own_program("ldd", "echo 'musl libc (x86_64)' >&2; exit 1")
    code, err = refused(host, machine, *SMALL)
    assert code == 5
    assert re.search(text, err), err


def test_what_is_there_already_is_left_alone(host: Host, machine: SshMachine) -> None:
    machine.sh("mkdir /opt/ghostbox && echo mine >/opt/ghostbox/file")
    code, err = refused(host, machine, *SMALL)
    assert code == 5
    assert "/opt/ghostbox of tower exists, and `ghostbox donor deploy` has not made it" in err
    assert machine.sh("cat /opt/ghostbox/file && rm -r /opt/ghostbox") == "mine\n"


def test_a_service_that_was_installed_by_hand_is_left_alone(host: Host, machine: SshMachine) -> None:
    machine.sh("mkdir -p /etc/systemd/system && mount -t tmpfs tmpfs /etc/systemd/system")
    machine.sh("echo '[Unit]' >/etc/systemd/system/ghostbox-donor.service")
    try:
        code, err = refused(host, machine, *SMALL)
    finally:
        machine.sh("umount /etc/systemd/system")
    assert code == 5
    assert "tower has a service ghostbox-donor already, which was not deployed from a host" in err


def test_a_disk_that_fills_up_while_it_is_copied_to(host: Host, tmp_path: Path) -> None:
    with ssh_machine(tmp_path / "tower", opt_size="12m") as machine:
        machine.own_program("df", "echo heading; echo tmpfs 99999999 0 99999999 0% /opt")
        before = machine.files()
        code, err = refused(host, machine, *SMALL)
        assert code == 1
        assert "no space left on device" in err
        assert machine.files() == before


def test_a_connection_that_is_cut_half_way(host: Host, machine: SshMachine, tmp_path: Path) -> None:
    cut = tmp_path / "cut.py"
    cut.write_text(CUT)
    machine.configure(f"ProxyCommand {PYTHON} {cut} {machine.address} {PORT} 6000000")
    code, err = refused(host, machine, *SMALL)
    assert code == 1
    assert "the connection to tower was lost: the copy was not finished" in err
    assert "fix: the same command again begins anew, and removes what is half done" in err
    machine.wait_until_idle()


def test_a_command_that_is_interrupted_while_it_copies(host: Host, machine: SshMachine, tmp_path: Path) -> None:
    stall = tmp_path / "stall.py"
    stall.write_text(CUT.rpartition("os._exit")[0] + "threading.Event().wait()\n")
    machine.configure(f"ProxyCommand {PYTHON} {stall} {machine.address} {PORT} 6000000")
    words = ["donor", "deploy", "tower", "--ssh-config", str(machine.config), *SMALL]
    argv = [sys.executable, "-m", "ghostbox", *words]
    with subprocess.Popen(argv, env=host.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        wait_until(
            lambda: machine.sh("find /opt -name '.partial-*'") != "", timeout_s=120, what="a copy", interval_s=0.1
        )
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "error: interrupted" in err
    machine.wait_until_idle()


def test_what_a_killed_copy_has_left_is_removed_by_the_next(host: Host, tmp_path: Path) -> None:
    with ssh_machine(tmp_path / "tower") as machine:
        deploy(host, machine, *SMALL)
        machine.sh(
            "mkdir /opt/ghostbox/versions/.partial-0 && mv /opt/ghostbox/versions/0* /opt/ghostbox/versions/9.9-old"
        )
        deploy(host, machine)
        left = machine.sh("ls -A /opt/ghostbox/versions").split()
        assert ".partial-0" not in left


def test_what_cannot_be_removed_is_named_and_the_rest_goes(host: Host, machine: SshMachine) -> None:
    deploy(host, machine, *SMALL)
    kept = "/opt/ghostbox/state/kept"
    machine.sh(f"mkdir {kept} && mount -t tmpfs tmpfs {kept}")
    code, err = refused(host, machine, "--yes", command="undeploy")
    assert code == 1
    assert f"error: tower: not all could be removed: {kept} why: Device or resource busy" in err
    assert machine.sh("find /opt/ghostbox -type f").split() == ["/opt/ghostbox/deployed.json"]
    machine.sh(f"umount {kept}")
    undeploy(host, machine)


def test_an_installation_that_answers_in_another_form(host: Host, machine: SshMachine) -> None:
    deploy(host, machine, *SMALL)
    machine.sh("cd /opt/ghostbox/bin && mv ghostbox mine && echo 'echo []' >ghostbox && chmod +x ghostbox")
    code, err = refused(host, machine, "--yes", command="undeploy")
    assert code == 1
    assert "error: tower: the memserver was not stopped why: its answer has another form: " in err
    machine.sh("mv /opt/ghostbox/bin/mine /opt/ghostbox/bin/ghostbox")
    undeploy(host, machine)


def test_a_data_port_that_is_not_let_through(host: Host, machine: SshMachine) -> None:
    """The control API answers; what the data plane sends finds no way out, as behind a firewall."""
    machine.sh("ip rule add ipproto tcp sport 10809 prohibit")
    try:
        code, err = refused(host, machine, *SMALL)
    finally:
        machine.sh("ip rule del ipproto tcp sport 10809 prohibit")
    assert code == 1
    assert (
        f"error: memserver 'attic' runs on tower, and this host does not reach it: donor {machine.address}:10810 does"
        " not take connections on port 10809 why: timed out fix: let its ports through there (TCP 10809 and 10810, if"
    ) in err
    assert deploy(host, machine)["paired"] is False, "it was paired with before, and is deployed now"
    undeploy(host, machine)


# This relay ends a connection after so many bytes from the client.
CUT = """
import os, socket, sys, threading
host, port, left = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
there = socket.create_connection((host, port))

def back():
    while data := there.recv(65536):
        os.write(1, data)
    os._exit(0)

threading.Thread(target=back, daemon=True).start()
while left > 0 and (data := os.read(0, 65536)):
    there.sendall(data)
    left -= len(data)
os._exit(0)
"""


def test_another_host_key(host: Host, machine: SshMachine) -> None:
    other = (machine.place / "key.pub").read_text().split()[1]
    machine.configure(known_hosts=f"[{machine.address}]:{PORT} ssh-ed25519 {other}\n")
    code, err = refused(host, machine, *SMALL)
    assert code == 5
    assert (
        "tower shows another SSH host key than the one that is known why: another machine may answer in its place, or"
        " it was installed anew fix: if you know that it was installed anew: ssh-keygen -R tower; then log in once: ssh"
    ) in err


def test_an_unknown_host_key(host: Host, machine: SshMachine) -> None:
    machine.configure(known_hosts="")
    code, err = refused(host, machine, *SMALL)
    assert code == 5
    assert "the SSH host key of tower is not known here why:" in err
    assert "fix: log in once, and compare the key that ssh shows with the machine's own: ssh tower" in err


def test_a_login_that_is_not_let_in(host: Host, machine: SshMachine) -> None:
    machine.configure(user="daemon")
    code, err = refused(host, machine, *SMALL)
    assert code == 1
    assert "tower does not let ssh log in why:" in err
    assert "Permission denied (publickey)" in err


def test_a_machine_that_ssh_does_not_reach(host: Host, machine: SshMachine) -> None:
    machine.configure("ProxyCommand /bin/false")
    code, err = refused(host, machine, *SMALL)
    assert code == 1
    assert "ssh cannot reach tower why:" in err
    assert "fix: see that this works: ssh tower true" in err


def test_a_login_that_runs_other_commands(host: Host, machine: SshMachine) -> None:
    machine.own_program("sh", "echo This account is for backups.")
    code, err = refused(host, machine, *SMALL)
    assert code == 1
    assert "tower does not say what it is why: This account is for backups. fix: see what this prints" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--", "--size", "much"), "'much' is not a size"),
        (("--", "--sise", "1G"), "No such option '--sise'"),
        (("--", "--insecure"), "a deployed donor is paired with this host: --insecure contradicts that"),
        (("--", "--pressure-file", "/tmp/a\nb"), "an option of the memserver has a line break in it"),
    ],
)
def test_wrong_options_are_refused_before_ssh_is_called(
    host: Host, machine: SshMachine, words: tuple[str, ...], text: str
) -> None:
    machine.configure("ProxyCommand /bin/false")
    code, err = refused(host, machine, *words)
    assert code == 2
    assert text in err


@pytest.mark.parametrize("target", ["-oProxyCommand=touch owned", "a b", ""])
def test_a_target_is_never_an_option_of_ssh(host: Host, target: str) -> None:
    code, _, err = host.cli("donor", "undeploy", "--yes", "--", target)
    assert code == 2
    assert f"'{target}' is not [USER@]HOST" in err


def test_packages_for_another_python_that_cannot_be_fetched(host: Host, machine: SshMachine) -> None:
    machine.own_program(
        "python3",
        'case "$*" in *python_path*) echo python=3.99.0; echo python_path=/usr/bin/python3 ;; *) exit 0 ;; esac',
    )
    alone = Host(host.root, {**host.more, "PIP_NO_INDEX": "1"})
    code, _, err = call(alone, machine, "deploy", *SMALL)
    assert code == 5
    assert re.search(
        r"the donor has Python 3\.99, this host 3\.\d+: packages for it are not here, and could not be", err
    )
    assert "fix: mend this host's way to its package index" in err
