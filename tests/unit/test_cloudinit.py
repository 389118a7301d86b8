# SPDX-License-Identifier: MIT
"""The seed has three files and an ISO image; ssh itself reads ssh's configuration."""

from __future__ import annotations

import email
import io
import re
import subprocess
from pathlib import Path
from typing import Any

import pycdlib
import pytest
import yaml

from ghostbox.errors import ConfigError, UsageError
from ghostbox.plan import cloudinit
from ghostbox.plan.cloudinit import SeedSpec
from ghostbox.plan.tiering import Tiering

SPEC = SeedSpec(
    hostname="box",
    user="ana",
    ssh_authorized_keys=("ssh-ed25519 AAAA ana@desk",),
    host_key_private="-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----\n",
    host_key_public="ssh-ed25519 BBBB guest\n",
    tiering=Tiering(on=True, why="KVM", promote_mib_per_s=12),
)
OFF = Tiering(on=False, why="emulated")


def config_of(**changes: Any) -> dict[str, Any]:
    text = cloudinit.render(SeedSpec(**{**vars(SPEC), **changes})).user_data
    assert text.startswith("#cloud-config\n")
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def parts_of(theirs: str) -> list[tuple[str, str]]:
    text = cloudinit.render(SeedSpec(**{**vars(SPEC), "extra_user_data": theirs})).user_data
    message = email.message_from_string(text)
    assert message.is_multipart()
    return [
        (part.get_content_type(), part.get_payload(decode=True).decode())  # type: ignore[union-attr]
        for part in message.walk()
        if not part.is_multipart()
    ]


def test_user_gets_the_key_and_no_password() -> None:
    (user,) = config_of()["users"]
    assert (user["name"], user["lock_passwd"]) == ("ana", True)
    assert user["ssh_authorized_keys"] == ["ssh-ed25519 AAAA ana@desk"]


def test_guest_gets_only_the_pinned_host_key() -> None:
    config = config_of()
    assert config["ssh_deletekeys"] is True
    assert config["ssh_keys"] == {
        "ed25519_private": SPEC.host_key_private,
        "ed25519_public": "ssh-ed25519 BBBB guest",
    }


def test_tiering_is_switched_on_with_its_limit_at_each_boot() -> None:
    *_, command = config_of()["bootcmd"]
    assert "echo 12 > /proc/sys/kernel/numa_balancing_promote_rate_limit_MBps; echo 2 > " in command[-1]
    assert "echo 2 > /proc/sys/kernel/numa_balancing;" in command[-1]
    assert "echo true > /sys/kernel/mm/numa/demotion_enabled" in command[-1]


def test_without_tiering_the_kernels_own_balancing_is_switched_off_too() -> None:
    *_, command = config_of(tiering=OFF)["bootcmd"]
    assert "echo 0 > /proc/sys/kernel/numa_balancing" in command[-1]
    assert "true >" not in command[-1]
    assert "promote_rate" not in command[-1]


def test_memory_that_was_plugged_in_is_taken_as_movable_at_each_boot() -> None:
    command = config_of(tiering=OFF)["bootcmd"][0]
    assert "echo online_movable" in command[-1]


def test_free_memory_is_reported_in_small_pieces_at_each_boot_of_a_guest_with_remote_memory() -> None:
    command = config_of(tiering=OFF)["bootcmd"][1][-1]
    assert command.startswith("if test -d /sys/devices/system/node/node1; then echo 5 > /sys/module/page_reporting/")
    assert "echo 0 > /proc/sys/vm/compaction_proactiveness" in command


def test_further_disk_is_formatted_if_empty_and_ghostboxs_own_is_mounted_at_each_boot() -> None:
    script = config_of(tiering=OFF, more_disks=("gb-disk2", "gb-disk3"))["bootcmd"][-1][-1]
    assert script.startswith("disk=/dev/disk/by-id/virtio-gb-disk3 place=/mnt/disk3\n")
    assert "if ! blkid -p $disk >/dev/null && cmp -s -n 1048576 $disk /dev/zero; then\n  mkfs.ext4" in script
    assert 'test "$(blkid -p -s LABEL -o value $disk)" = gb-disk3 || exit 0' in script


def instance_of(**changes: Any) -> str:
    meta = yaml.safe_load(cloudinit.render(SeedSpec(**{**vars(SPEC), **changes})).meta_data)
    assert meta["local-hostname"] == "box"
    return str(meta["instance-id"])


def test_instance_is_named_after_the_vm_and_stays_while_the_user_data_does() -> None:
    theirs = "#cloud-config\npackages: [htop]\n"
    assert re.fullmatch("ghostbox-box-[0-9a-f]{12}", instance_of())
    assert instance_of() == instance_of(mac="52:54:00:ab:cd:ef")
    assert instance_of(extra_user_data=theirs) == instance_of(extra_user_data=theirs)


def test_other_user_data_is_another_instance_so_that_cloud_init_takes_it() -> None:
    key = {"ssh_authorized_keys": (*SPEC.ssh_authorized_keys, "ssh-ed25519 CCCC")}
    scripts = [{"extra_user_data": f"#!/bin/sh\necho {word}\n"} for word in ("one", "two")]
    changes: list[dict[str, Any]] = [
        {},
        key,
        *scripts,
        {"user": "ben"},
        {"tiering": OFF},
        {"more_disks": ("gb-disk2",)},
    ]
    assert len({instance_of(**change) for change in changes}) == len(changes)


def test_a_link_that_was_measured_anew_is_no_reason_to_run_the_users_scripts_again() -> None:
    faster = Tiering(on=True, why="KVM", promote_mib_per_s=99)
    assert instance_of(tiering=faster) == instance_of()
    assert config_of(tiering=faster) != config_of()


@pytest.mark.parametrize(
    ("mac", "match"),
    [(None, {"driver": "virtio_net"}), ("52:54:00:AB:CD:EF", {"macaddress": "52:54:00:ab:cd:ef"})],
)
def test_network_is_matched_by_driver_or_mac_never_by_name(mac: str | None, match: dict[str, str]) -> None:
    seed = cloudinit.render(SeedSpec(**{**vars(SPEC), "mac": mac}))
    (interface,) = yaml.safe_load(seed.network_config)["ethernets"].values()
    assert interface["match"] == match
    assert "set-name" not in interface


def test_users_cloud_config_is_a_second_part_that_is_merged() -> None:
    theirs = "#cloud-config\npackages: [htop]\n"
    (ours, ours_text), (kind, text) = parts_of(theirs)
    assert (ours, kind) == ("text/cloud-config", "text/cloud-config")
    assert yaml.safe_load(ours_text) == config_of()
    assert text == theirs
    assert cloudinit.render(SeedSpec(**{**vars(SPEC), "extra_user_data": theirs})).user_data.count("Merge-Type") == 2


JINJA = "## template: jinja\n#cloud-config\npackages: [{{ v1.region }}]\n"


def test_users_template_is_merged_with_ghostboxs_like_any_other_config() -> None:
    """cloud-init passes the part's header on to the handler of the template's result."""
    (_, (kind, text)) = parts_of(JINJA)
    assert (kind, text) == ("text/jinja2", JINJA)
    assert cloudinit.render(SeedSpec(**{**vars(SPEC), "extra_user_data": JINJA})).user_data.count("Merge-Type") == 2


def test_an_editors_byte_order_mark_is_left_out() -> None:
    (_, (kind, text)) = parts_of("\ufeff#cloud-config\npackages: [htop]\n")
    assert (kind, text) == ("text/cloud-config", "#cloud-config\npackages: [htop]\n")


@pytest.mark.parametrize("kind", ["#cloud-config-archive", "#cloud-config-jsonp", "#part-handler", "#include-once"])
def test_kinds_that_are_not_merged_are_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"cloud-init data of the kind '{kind}' is not taken") as caught:
        parts_of(f"{kind}\n[]\n")
    assert caught.value.why == "cloud-init does not merge it with what GhostBox needs in the guest"


def test_user_named_like_a_group_gets_it_as_the_primary_group() -> None:
    """useradd would refuse `users` or `docker`, and no user could log in."""
    (user,) = config_of(user="users")["users"]
    assert (user["name"], user["primary_group"]) == ("users", "users")


@pytest.mark.parametrize("name", ["root", "games", "www-data", "sshd"])
def test_user_named_like_an_account_of_the_system_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"vm.user cannot be '{name}': the guest's system has an account of that name"):
        cloudinit.check_user(name)
    cloudinit.check_user(f"{name}-2")


def test_user_is_logged_in_on_the_console_at_each_boot() -> None:
    command = config_of()["bootcmd"][2][-1]
    assert """echo 'AUTOLOGIN="--autologin ana"' > /run/ghostbox/console""" in command
    subprocess.run(["sh", "-n", "-c", command], check=True)


def test_only_an_emulated_guest_keeps_khugepaged_from_the_memory_of_programs_that_sleep() -> None:
    """With KVM the guest's kernel gets a machine check for a lost page, and goes on."""
    shown = [" ".join(map(str, config_of(emulated=emulated)["bootcmd"])) for emulated in (True, False)]
    assert ["khugepaged/scan_sleep_millisecs" in each for each in shown] == [True, False]


def test_users_script_is_a_part_of_its_own_kind() -> None:
    (_, (kind, text)) = parts_of("#!/bin/sh\necho grüße\n")
    assert (kind, text) == ("text/x-shellscript", "#!/bin/sh\necho grüße\n")


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ("packages: [htop]\n", "begins with 'packages: \\[htop\\]', which cloud-init does not know"),
        ("", "begins with '', which cloud-init does not know"),
        (
            "## template: jinja\npackages: [htop]\n",
            "begins with 'packages: \\[htop\\]', which cloud-init does not know",
        ),
        ("#cloud-config\nkey: [\n", "the cloud-init file is not YAML"),
        ("#cloud-config\n- list\n", "the cloud-init file is not a mapping"),
    ],
)
def test_data_that_cloud_init_would_silently_ignore_is_refused(theirs: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parts_of(theirs)


def test_seed_iso_has_the_label_and_files_that_cloud_init_looks_for(tmp_path: Path) -> None:
    seed = cloudinit.render(SPEC)
    cloudinit.write_seed_iso(seed, tmp_path / "seed.iso")
    label = subprocess.check_output(["blkid", "-o", "value", "-s", "LABEL", tmp_path / "seed.iso"], text=True)
    assert label.strip() == "cidata"
    iso = pycdlib.PyCdlib()
    iso.open(str(tmp_path / "seed.iso"))
    for name, text in (
        ("user-data", seed.user_data),
        ("meta-data", seed.meta_data),
        ("network-config", seed.network_config),
    ):
        for facade in ("rr_path", "joliet_path"):
            out = io.BytesIO()
            iso.get_file_from_iso_fp(out, **{facade: f"/{name}"})
            assert out.getvalue().decode() == text
    iso.close()


def test_ssh_reads_the_written_configuration(tmp_path: Path) -> None:
    known_hosts = tmp_path / "with space" / "known_hosts"
    config = tmp_path / "config"
    config.write_text(cloudinit.render_ssh_config("box", "127.0.0.1", 2222, "ana", known_hosts, [tmp_path / "key"]))
    told = subprocess.check_output(["ssh", "-F", config, "-G", "box"], text=True)
    options = dict(line.split(" ", 1) for line in told.splitlines())
    assert (options["hostname"], options["port"], options["user"]) == ("127.0.0.1", "2222", "ana")
    assert options["stricthostkeychecking"] in ("true", "yes")
    assert str(known_hosts) in options["userknownhostsfile"]


@pytest.mark.parametrize(("port", "looked_up"), [(2222, "[127.0.0.1]:2222"), (22, "127.0.0.1")])
def test_ssh_keygen_finds_the_pinned_key(tmp_path: Path, port: int, looked_up: str) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    public = (tmp_path / "key.pub").read_text()
    (tmp_path / "known_hosts").write_text(cloudinit.render_known_hosts("127.0.0.1", port, public))
    subprocess.run(
        ["ssh-keygen", "-F", looked_up, "-f", tmp_path / "known_hosts"], check=True, stdout=subprocess.DEVNULL
    )
