# SPDX-License-Identifier: MIT
"""The built image boots, accepts a login by the pinned key, and its kernel treats node 1 as a slower tier."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.errors import DeadlineExceeded, GuestError, UsageError
from ghostbox.plan import cloudinit
from ghostbox.session import first_boot
from ghostbox.system import processes, ssh, ssh_keys
from helpers import guest as guests

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

USER_DATA = """## template: jinja
#cloud-config
bootcmd:
  - [sh, -c, "echo theirs > /run/their-bootcmd"]
write_files:
  - {path: /etc/their-file, content: "hello {{ v1.local_hostname }}\\n"}
runcmd:
  - [sh, -c, "echo ran > /run/their-runcmd"]
"""


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[guests.Guest]:
    directory = tmp_path_factory.mktemp("guest")
    with guests.booted(directory, guests.shared_image(), user_data=USER_DATA) as booted:
        first_boot.wait_cloud_init(booted.ssh, guests.BOOT_TIMEOUT_S)
        yield booted


def test_guest_is_the_one_that_the_seed_describes(guest: guests.Guest) -> None:
    assert guest.run("hostname").strip() == "testbox"
    assert guest.run("whoami").strip() == guests.USER
    assert guest.run("sudo -n whoami").strip() == "root"
    public = guest.run("cat /etc/ssh/ssh_host_ed25519_key.pub")
    assert public.split()[:2] == guest.host_key.public.split()[:2]


def test_cloud_init_finished_without_any_complaint(guest: guests.Guest) -> None:
    status = guest.run("cloud-init status --long")
    assert "status: done" in status
    assert "extended_status: done" in status
    assert "WARNING" not in status


def test_users_own_cloud_init_is_merged_with_ghostboxs_though_it_is_a_template(guest: guests.Guest) -> None:
    assert guest.run("cat /etc/their-file").strip() == "hello testbox"
    assert guest.run("cat /run/their-bootcmd").strip() == "theirs"
    assert guest.run("cat /run/their-runcmd").strip() == "ran"


def test_memory_is_both_nodes(guest: guests.Guest) -> None:
    total_kib = int(re.search(r"MemTotal: *(\d+)", guest.run("cat /proc/meminfo"))[1])  # type: ignore[index]
    given_kib = (guests.NODE0_BYTES + guests.NODE1_BYTES) // 1024
    assert 0.85 * given_kib < total_kib < given_kib
    table = guest.run("numactl -H")
    assert "available: 2 nodes (0-1)" in table
    assert re.search(r"^node 1 cpus:\s*$", table, re.MULTILINE)


def test_node_1_is_a_lower_memory_tier(guest: guests.Guest) -> None:
    lines = guest.run("grep -r . /sys/devices/virtual/memory_tiering/*/nodelist").split()
    tier_of = {}
    for line in lines:
        match = re.search(r"tier(\d+)/nodelist:(\d+)", line)
        assert match is not None, line
        tier_of[int(match[2])] = int(match[1])
    assert tier_of[1] > tier_of[0], "a higher number is a slower tier"


def test_tiering_is_on(guest: guests.Guest) -> None:
    assert guest.run("cat /proc/sys/kernel/numa_balancing").strip() == "2"
    assert guest.run("cat /sys/kernel/mm/numa/demotion_enabled").strip() == "true"


def test_root_file_system_has_grown_to_the_disk(guest: guests.Guest) -> None:
    size_bytes = int(guest.run("df --output=size -B1 / | tail -n 1"))
    assert size_bytes > 0.9 * guests.DISK_BYTES


def test_no_unit_has_failed(guest: guests.Guest) -> None:
    assert guest.run("systemctl list-units --failed --no-legend --plain").strip() == ""


def test_user_of_a_groups_name_has_it_as_the_primary_group(guest: guests.Guest) -> None:
    assert guest.run("id -gn").strip() == guests.USER == "users"


def test_accounts_of_the_system_are_known_to_the_check_of_the_users_name(guest: guests.Guest) -> None:
    for line in guest.run("getent passwd").splitlines():
        name = line.split(":")[0]
        if name != guests.USER:
            with pytest.raises(UsageError, match=f"vm.user cannot be '{name}'"):
                cloudinit.check_user(name)


def test_terminals_of_today_are_known(guest: guests.Guest) -> None:
    names = (
        "alacritty foot ghostty kitty screen-256color tmux-256color wezterm xterm-256color xterm-ghostty xterm-kitty"
    )
    unknown = guest.run(f"for name in {names}; do infocmp $name > /dev/null 2>&1 || echo $name; done")
    assert unknown == ""


def test_user_can_ping(guest: guests.Guest) -> None:
    assert " 0% packet loss" in guest.run("ping -c 1 -w 20 127.0.0.1 && ping -c 1 -w 20 10.0.2.2")


def test_language_that_the_users_own_ssh_brings_along_makes_no_program_complain(guest: guests.Guest) -> None:
    options = ["-p", str(guest.port), "-i", str(guest.directory / "id_ed25519"), "-o", "SendEnv=LANG LC_ALL"]
    pinned = ["-o", f"UserKnownHostsFile={guest.directory / 'known_hosts'}", "-o", "BatchMode=yes", "-F", "none"]
    done = subprocess.run(
        ["ssh", *options, *pinned, f"{guests.USER}@127.0.0.1", "bash -lc locale; perl -e 'print qq(ok\\n)'"],
        env={**os.environ, "LANG": "xx_YY.UTF-8", "LC_ALL": "xx_YY.UTF-8"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert "LANG=C.UTF-8" in done.stdout


def test_security_updates_are_among_the_sources_if_this_machines_apt_has_them(guest: guests.Guest) -> None:
    planned = subprocess.run(["apt-get", "update", "--print-uris"], capture_output=True, text=True, check=True).stdout
    assert ("-security main" in guest.run("cat /etc/apt/sources.list")) == ("-security/InRelease" in planned)


def test_user_is_logged_in_on_the_console(guest: guests.Guest) -> None:
    assert f"testbox login: {guests.USER} (automatic login)" in guest.console()


def test_a_file_can_be_put_into_the_guest(guest: guests.Guest) -> None:
    guest.ssh.put_text("/tmp/with space", "ä\n", 0o600)
    assert guest.run("stat -c %a '/tmp/with space'; cat '/tmp/with space'") == "600\nä\n"
    with pytest.raises(GuestError, match="cannot write /nowhere/file in the guest"):
        guest.ssh.put_text("/nowhere/file", "")


def test_status_and_both_streams_of_a_command_come_back(guest: guests.Guest) -> None:
    done = guest.ssh.run("echo out; echo err >&2; exit 7", 30)
    assert (done.status, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_command_that_takes_too_long_is_given_up(guest: guests.Guest) -> None:
    with pytest.raises(DeadlineExceeded, match="'sleep 600' in the guest did not end within 1 s"):
        guest.ssh.run("sleep 600", 1)
    assert guest.run("echo still here") == "still here\n"


def test_command_that_leaves_a_child_behind_does_not_hold_up_its_caller(guest: guests.Guest) -> None:
    assert guest.run("sleep 600 & echo done", 30) == "done\n"


def test_password_login_is_refused(guest: guests.Guest) -> None:
    assert "passwordauthentication no" in guest.run("sudo sshd -T").lower()


def test_another_host_key_is_refused(guest: guests.Guest, tmp_path: Path) -> None:
    other = ssh_keys.generate_key("other")
    (tmp_path / "known_hosts").write_text(cloudinit.render_known_hosts("127.0.0.1", guest.port, other.public))
    client = ssh.GuestSsh(
        "127.0.0.1", guest.port, guests.USER, guest.directory / "id_ed25519", tmp_path / "known_hosts"
    )
    with pytest.raises(GuestError, match="shows another SSH host key than GhostBox gave to the guest"):
        client.wait_ready(30)


def test_another_client_key_is_refused_and_the_message_says_so(guest: guests.Guest, tmp_path: Path) -> None:
    ssh_keys.write_key(ssh_keys.generate_key("other"), tmp_path / "key")
    client = ssh.GuestSsh(
        "127.0.0.1", guest.port, guests.USER, tmp_path / "key", guest.directory / "known_hosts", console=guest.console
    )
    with pytest.raises(GuestError, match="gave no SSH login") as caught:
        client.wait_ready(15)
    assert caught.value.why is not None
    assert "SSH answers, but refuses GhostBox's key" in caught.value.why
    assert "the guest's console ends with:" in caught.value.why


def test_the_users_own_ssh_logs_in_with_the_written_config(guest: guests.Guest, tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(
        cloudinit.render_ssh_config(
            "testbox",
            "127.0.0.1",
            guest.port,
            guests.USER,
            guest.directory / "known_hosts",
            [guest.directory / "id_ed25519"],
        )
    )
    assert (
        processes.run(["ssh", "-F", config, "-o", "BatchMode=yes", "testbox", "hostname"], timeout_s=60) == "testbox\n"
    )
