# SPDX-License-Identifier: MIT
"""config.yaml and the schema list the same keys; every key can be set, and reaches the program as a typed value."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ghostbox import config, paths
from ghostbox.config import ExtraDisk, NetworkChoice, PortForward, SharedFolder, definition, document
from ghostbox.units import GIB, KIB, MIB

# Every key has a value here that is not its default: as a user writes it, and as the program sees it.
OTHER_VALUES: dict[str, tuple[str, object]] = {
    "vm.name": ("big-1", "big-1"),
    "vm.memory": ("3GiB", 3 * GIB),
    "vm.remote_memory": ("16G", 16 * GIB),
    "vm.cpus": ("8", 8),
    "vm.disk": ("40GiB", 40 * GIB),
    "vm.disks": ("[50G, 1GiB]", (ExtraDisk(50 * GIB), ExtraDisk(GIB))),
    "vm.shares": ("[/a:ro, /c]", (SharedFolder(Path("/a"), True), SharedFolder(Path("/c")))),
    "vm.image": ("mine", "mine"),
    "vm.user": ("ana", "ana"),
    "vm.ssh_key": ("/k.pub", Path("/k.pub")),
    "vm.ports": ("[8080:80]", (PortForward(8080, 80),)),
    "vm.network": ("libvirt:default", NetworkChoice("libvirt", "default")),
    "vm.host_access": ("true", True),
    "vm.cloud_init": ("/c.yaml", Path("/c.yaml")),
    "vm.boot_timeout": ("90s", 90.0),
    "vm.autostart": ("true", True),
    "pool.donors": ("[tower, 10.0.0.2:7]", ("tower", "10.0.0.2:7")),
    "pool.cache": ("256MiB", 256 * MIB),
    "pool.extent": ("4MiB", 4 * MIB),
    "pool.replicas": ("2", 2),
    "pool.allow_same_host": ("true", True),
    "pool.backup": ("/b", Path("/b")),
    "pool.on_donor_loss": ("pause", "pause"),
    "pool.rebuild_after": ("1m", 60.0),
    "pool.rebuild_rate": ("0", 0),
    "pool.slow": ("5ms", 0.005),
    "pool.insecure": ("true", True),
    "pager.poll_us": ("0", 0),
    "pager.readahead": ("64KiB", 64 * KIB),
    "pager.log_level": ("debug", "debug"),
    "guest.tiering": ("off", "off"),
    "libvirt.uri": ("qemu:///session", "qemu:///session"),
    "memserver.name": ("tower", "tower"),
    "memserver.size": ("50%", "50%"),
    "memserver.reserve": ("1GiB", GIB),
    "memserver.bind": ("0.0.0.0", "0.0.0.0"),
    "memserver.port": ("0", 0),
    "memserver.control_port": ("7000", 7000),
    "memserver.machine": ("rack-1", "rack-1"),
    "memserver.drain_timeout": ("10s", 10.0),
    "memserver.remind_every": ("5s", 5.0),
    "memserver.drain_on_pressure": ("20%", 20.0),
    "memserver.pressure_file": ("/sys/fs/cgroup/x/memory.pressure", Path("/sys/fs/cgroup/x/memory.pressure")),
    "memserver.lock_memory": ("true", True),
    "memserver.insecure": ("true", True),
    "memserver.secure": ("true", True),
    "memserver.announce": ("false", False),
    "memserver.trust_network": ("true", True),
    "image.suite": ("forky", "forky"),
    "image.packages": ("[htop]", ("htop",)),
}


def test_the_reference_file_names_every_key_with_its_default_in_order() -> None:
    entries = document.read(paths.data_file("config.yaml"))
    assert [(entry.name, entry.value) for entry in entries] == [
        (key.name, key.default) for key in config.keys().values()
    ]


def test_every_key_of_the_reference_file_has_a_comment_of_its_own() -> None:
    lines = paths.data_file("config.yaml").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        if re.match(r"  \w+:", line):
            assert lines[number - 1].startswith("  # "), f"no comment above line {number + 1}: {line}"


def test_this_file_tries_every_key() -> None:
    assert set(OTHER_VALUES) == set(config.keys())


@pytest.mark.parametrize("name", sorted(OTHER_VALUES))
def test_every_key_can_be_set_in_a_file(name: str, tmp_path: Path) -> None:
    written, typed = OTHER_VALUES[name]
    section, _, key = name.partition(".")
    given = tmp_path / "one.yaml"
    given.write_text(f"{section}:\n  {key}: {written}\n", encoding="utf-8")
    loaded = config.load({}, given)
    assert loaded.value(name) == typed != config.load().value(name)
    assert loaded.origin(name) == f"{given}:2"


@pytest.mark.parametrize("name", sorted(OTHER_VALUES))
def test_every_key_can_be_set_in_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, typed = OTHER_VALUES[name]
    monkeypatch.setenv("GHOSTBOX_" + name.replace(".", "_").upper(), written.strip("[]"))
    assert config.load().value(name) == typed


def test_every_key_of_a_vm_is_the_same_when_its_definition_is_read() -> None:
    place = Path("/s/vms/box/definition.yaml")
    settings = {name: (document.scalar(OTHER_VALUES[name][0]), "somewhere") for name in definition.vm_keys()}
    made = config.from_settings(settings, Path("/"))
    again = definition.parse(definition.new_text("box", definition.frozen(made)), place, "box", Path("/"))
    for name in definition.vm_keys():
        assert again.value(name) == made.value(name) == OTHER_VALUES[name][1], name
        assert again.origin(name).startswith(f"{place}:"), name


def test_the_extent_of_64_kib_is_the_least() -> None:
    assert config.load({"pool.extent": "64KiB"}).pool.extent_bytes == 64 * KIB
