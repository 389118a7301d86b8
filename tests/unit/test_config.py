# SPDX-License-Identifier: MIT
"""Values come from several places, the nearest place wins, and wrong values are reported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ghostbox import config
from ghostbox.config import PortForward
from ghostbox.errors import ConfigError, NotFound
from ghostbox.units import GIB, MIB


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory and user and system directories of the test's own."""
    (tmp_path / "work").mkdir()
    (tmp_path / "user/ghostbox").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("GHOSTBOX_SYSTEM_CONFIG", str(tmp_path / "system.yaml"))
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_each_layer_wins_over_the_one_below_and_says_so(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert config.load().vm.cpus == 2
    assert config.load().origin("vm.cpus") == "default"

    system = write(places / "system.yaml", "vm:\n  cpus: 3\n  user: ana\n")
    assert config.load().vm.cpus == 3
    assert config.load().origin("vm.cpus") == f"{system}:2"

    user = write(places / "user/ghostbox/config.yaml", "vm: {cpus: 4}\n")
    assert config.load().origin("vm.cpus") == f"{user}:1"

    project = write(places / "work/ghostbox.yaml", "\nvm:\n  cpus: 5\n")
    assert config.load().origin("vm.cpus") == f"{project}:3"

    given = write(places / "other.yaml", "vm:\n  cpus: 6\n")
    assert config.load({}, given).vm.cpus == 6

    monkeypatch.setenv("GHOSTBOX_VM_CPUS", "7")
    assert config.load().vm.cpus == 7
    assert config.load().origin("vm.cpus") == "environment GHOSTBOX_VM_CPUS"

    loaded = config.load({"vm.cpus": 8, "vm.memory": None})
    assert (loaded.vm.cpus, loaded.origin("vm.cpus")) == (8, "flag")
    assert (loaded.vm.user, loaded.origin("vm.user")) == ("ana", f"{system}:3")


def test_a_given_file_replaces_the_project_file_only(places: Path) -> None:
    write(places / "work/ghostbox.yaml", "vm: {user: project}\n")
    write(places / "user/ghostbox/config.yaml", "vm: {image: mine}\n")
    loaded = config.load({}, write(places / "given.yaml", "vm: {cpus: 3}\n"))
    assert (loaded.vm.user, loaded.vm.image, loaded.vm.cpus) == ("ghost", "mine", 3)


def test_a_given_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(NotFound, match="no configuration file nowhere.yaml"):
        config.load({}, Path("nowhere.yaml"))


def test_a_path_is_relative_to_the_file_it_is_written_in(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = write(places / "user/vm.yaml", "vm:\n  cloud_init: extra.yaml\n  ssh_key: ~/key.pub\n")
    monkeypatch.setenv("HOME", "/nonexistent-home")
    loaded = config.load({}, given)
    assert loaded.vm.cloud_init == places / "user/extra.yaml"
    assert loaded.vm.ssh_key == Path("/nonexistent-home/key.pub")
    assert config.load({"vm.cloud_init": "here.yaml"}).vm.cloud_init == places / "work/here.yaml"


def test_words_of_yaml_1_1_are_not_misread(places: Path) -> None:
    given = write(places / "a.yaml", "vm:\n  ports: [8080:22, 4443:443]\n  image: no\npool:\n  donors: [10.0.0.1:1]\n")
    loaded = config.load({}, given)
    assert loaded.vm.ports == (PortForward(8080, 22), PortForward(4443, 443))
    assert (loaded.vm.image, loaded.pool.donors) == ("no", ("10.0.0.1:1",))


def test_a_list_in_the_environment_is_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_POOL_DONORS", "tower, [fe80::1]:10810")
    assert config.load().pool.donors == ("tower", "[fe80::1]:10810")


def test_an_empty_section_and_an_empty_file_are_no_error(places: Path) -> None:
    assert config.load({}, write(places / "a.yaml", "vm:\n# nothing yet\n")) == config.load()
    assert config.load({}, write(places / "b.yaml", "# nothing\n")) == config.load()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("vm:\n  memroy: 3G\n", ":2: unknown key 'vm.memroy'", "did you mean 'vm.memory'?"),
        ("vm: {cache: 1G}\n", ":1: unknown key 'vm.cache'", "did you mean 'pool.cache'?"),
        ("vmm: {cpus: 1}\n", ":1: unknown section 'vmm'", "did you mean 'vm'?"),
        ("\n\nzzz:\n  q: 1\n", ":4: unknown section 'zzz'", "sections are vm, pool, pager,"),
        ("guest: {zzz: 1}\n", ":1: unknown key 'guest.zzz'", "keys of guest are tiering"),
        ("vm: 3\n", ":1: 'vm' is not a group of keys", "write 'section:'"),
        ("- vm\n", ":1: the configuration is not a group of keys", "write 'section:'"),
        ("vm:\n  cpus: 2\n  cpus: 3\n", ":3: 'cpus' stands there twice", ""),
        ("vm: [\n", ":2: not valid YAML:", ""),
        ("vm:\n\tcpus: 2\n", ":2: not valid YAML:", ""),
        ("vm:\n  memory: 3Q\n", ":2: vm.memory: '3Q' is not a size", "write a size such as 512M or 4GiB"),
        ("vm:\n  memory:\n", ":2: vm.memory: 'null' is not a size", "write a size"),
        ("vm: {memory: 1M}\n", ":1: vm.memory: 1 MiB is too small, the least is 256 MiB", "vm.memory: RAM on this"),
        ("vm: {cpus: two}\n", ":1: vm.cpus: 'two' is not a whole number", "vm.cpus: virtual processors"),
        ("vm: {cpus: 0}\n", ":1: vm.cpus: 0 is out of range, 1 to 512 are possible", ""),
        ("vm: {cpus: true}\n", ":1: vm.cpus: 'True' is not a whole number", ""),
        ("vm: {name: a/b}\n", ":1: vm.name: 'a/b' is not a name (letters", ""),
        ("vm: {ports: 80}\n", ":1: vm.ports: '80' is not a list", ""),
        ("vm: {ports: ['80']}\n", ":1: vm.ports: '80' is not a forwarded port", "write HOST:GUEST"),
        ("vm: {ports: ['80:70000']}\n", ":1: vm.ports: 70000 is out of range", ""),
        ("vm: {boot_timeout: soon}\n", ":1: vm.boot_timeout: 'soon' is not a duration", "90s or 5m"),
        ("vm: {boot_timeout: 0.1s}\n", ":1: vm.boot_timeout: '0.1s' is too short, the least is 1.0 s", ""),
        ("pool: {slow: 2m}\n", ":1: pool.slow: '2m' is too long, the most is 1 min 0 s", ""),
        ("pool: {rebuild_after: 1000h}\n", ":1: pool.rebuild_after: '1000h' is too long, the most is 277 h 46 min", ""),
        ("vm: {ssh_key: [a]}\n", ":1: vm.ssh_key: '['a']' is not a path", ""),
        ("pool: {extent: 3MiB}\n", ":1: pool.extent: 3 MiB is not a power of two of at least 4 KiB", ""),
        ("pool: {donors: ['a b']}\n", ":1: pool.donors: 'a b' is not HOST or HOST:PORT", ""),
        ("pager: {log_level: loud}\n", ":1: pager.log_level: 'loud' is not one of error, warn, info, debug", ""),
        ("guest: {tiering: perhaps}\n", ":1: guest.tiering: 'perhaps' is not auto, damon, numa or off", ""),
        ("memserver: {size: most}\n", ":1: memserver.size: 'most' is not a size, a percentage or auto", ""),
        ("libvirt: {uri: qemu}\n", ":1: libvirt.uri: 'qemu' is not a libvirt URI", ""),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(places: Path, text: str, message: str, hint: str) -> None:
    given = write(places / "wrong.yaml", text)
    with pytest.raises(ConfigError, match=re.escape(f"{given}{message}")) as caught:
        config.load({}, given)
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *[("true", "damon"), ("false", "off"), ("on", "damon"), ("no", "off"), ("1", "damon"), ("auto", "auto")],
        *[("Auto", "auto"), ("damon", "damon"), ("NUMA", "numa")],
    ],
)
def test_tiering_is_written_as_a_word_or_as_true_and_false(places: Path, written: str, meant: str) -> None:
    given = write(places / "some.yaml", f"guest: {{tiering: {written}}}\n")
    assert config.load({}, given).guest.tiering == meant
    assert config.load({"guest.tiering": {"true": True, "false": False}.get(written, written)}).guest.tiering == meant


def test_what_is_not_offered_is_explained(places: Path) -> None:
    given = write(places / "wrong.yaml", "pool:\n  parity: 2+1\n")
    with pytest.raises(ConfigError, match=re.escape(f"{given}:2: unknown key 'pool.parity'")) as caught:
        config.load({}, given)
    assert "cost more than a second copy (measured: `ghostbox bench --only redundancy`)" in str(caught.value.why)
    assert caught.value.hint == "set pool.replicas: 2, or pool.backup with one donor only"


def test_a_wrong_value_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_POOL_CACHE", "lots")
    with pytest.raises(ConfigError, match="GHOSTBOX_POOL_CACHE: 'lots' is not a size"):
        config.load()


def test_a_wrong_flag_names_the_flag() -> None:
    with pytest.raises(ConfigError, match="--remote-memory: 'lots' is not a size"):
        config.load({"vm.remote_memory": "lots"})


def test_a_file_that_cannot_be_read_says_why(places: Path) -> None:
    given = places / "binary.yaml"
    given.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*binary\.yaml: not UTF-8 text"):
        config.load({}, given)


def test_flags_that_were_not_given_count_for_nothing() -> None:
    loaded = config.load({"vm.memory": None, "vm.ports": (), "pool.donors": []})
    assert loaded == config.load()


def test_sizes_are_bytes_and_durations_seconds() -> None:
    loaded = config.load({"vm.memory": 3 * GIB, "pool.cache": "64M", "memserver.drain_timeout": "2m"})
    assert (loaded.vm.memory_bytes, loaded.pool.cache_bytes) == (3 * GIB, 64 * MIB)
    assert loaded.memserver.drain_timeout_s == 120.0
