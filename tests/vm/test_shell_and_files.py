# SPDX-License-Identifier: MIT
"""A running VM is used as every day: commands in it, files to and from it, its name for ssh. No test changes it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ghostbox.system import processes, ssh_keys
from helpers import outside
from helpers.donor import RunningDonor
from helpers.machine import Machine
from helpers.main_vm import ODD, VM

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


def test_255_of_a_command_in_the_guest_is_its_own(machine: Machine) -> None:
    done = machine.cli("shell", "exit 255", check=False)
    assert (done.returncode, done.stderr) == (255, "")


def test_shell_with_many_keys_in_the_agent_locks_nobody_out(machine: Machine, tmp_path: Path) -> None:
    """sshd ends a login after six keys, and from Debian 13 on then refuses the host's connections for a while."""
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        processes.wait_until((tmp_path / "agent").exists, timeout_s=20, what="the agent")
        env = {**machine.host.env, "SSH_AUTH_SOCK": str(tmp_path / "agent")}
        for number in range(8):
            ssh_keys.write_key(ssh_keys.generate_key(str(number)), tmp_path / f"key{number}")
            subprocess.run(["ssh-add", "-q", tmp_path / f"key{number}"], env=env, check=True)
        host = dataclasses.replace(machine.host, env=env)
        for _ in range(3):
            assert host.cli("shell", VM, "hostname", check=True).stdout == f"{VM}\n"
    finally:
        agent.terminate()
        agent.wait(10)


def test_a_program_in_the_guest_reaches_no_donor(machine: Machine, secure_donor: RunningDonor) -> None:
    """test_up.py has the same with ``--host-access``."""
    here = outside.look([sys.executable], secure_donor, [])
    assert (here["control"], here["data"]) == (True, True)
    assert outside.look_from_guest(machine, secure_donor, []) == outside.NOBODY


def test_cp_brings_files_and_directories_there_and_back(machine: Machine, tmp_path: Path) -> None:
    source, back = tmp_path / "a:b c", tmp_path / "back"
    (source / "deep 'er").mkdir(parents=True)
    (source / "deep 'er" / "f[1]*.bin").write_bytes(os.urandom(1 << 20))
    (source / "-rf").write_text("not an option")
    machine.host.cli("cp", "-r", source, f"{VM}:to", check=True)
    machine.host.cli("cp", source / "-rf", f"{VM}:with space", check=True)
    assert machine.guest("cat 'with space'") == "not an option"
    back.mkdir()
    machine.host.cli("cp", "-r", "-p", f"{VM}:to", back, check=True)
    for file in ("deep 'er/f[1]*.bin", "-rf"):
        assert (back / "to" / file).read_bytes() == (source / file).read_bytes()
    missing = machine.host.cli("cp", f"{VM}:nothing", back)
    assert (missing.returncode, f"error: VM '{VM}' has no such file or directory" in missing.stderr) == (4, True)
    closed = machine.host.cli("cp", source / "-rf", f"{VM}:/etc/x")
    assert (closed.returncode, f"error: VM '{VM}': permission denied" in closed.stderr) == (1, True)


def test_ssh_config_installed_lets_every_ssh_find_the_vm_by_name(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / ".ssh" / "config"
    machine.host.cli("ssh-config", "--install", "--file", file, check=True)
    argv = ["-F", str(file), "-o", "BatchMode=yes"]
    done = subprocess.run(["ssh", *argv, VM, "hostname"], capture_output=True, text=True, check=False)
    assert done.stdout == f"{VM}\n", done.stderr
    subprocess.run(["scp", "-q", *argv, f"ghostbox-{VM}:/etc/hostname", tmp_path / "got"], check=True)
    assert (tmp_path / "got").read_text() == f"{VM}\n"
    machine.host.cli("ssh-config", "--uninstall", "--file", file, check=True)
    assert file.read_bytes() == b""


def test_an_odd_state_directory_and_a_strict_umask_keep_nothing_from_anyone(machine: Machine) -> None:
    """All tests of this file use such a directory: libvirt, QEMU, ssh and the loader accept its name."""
    assert ODD in str(machine.host.paths.vm(VM).state)
    assert machine.host.umask == 0o077
    [shim] = machine.host.paths.vm(VM).runtime.glob("libghostbox-shim-*.so")
    assert str(shim) in Path(f"/proc/{machine.status()['qemu_pid']}/maps").read_text()
