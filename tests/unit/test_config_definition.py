# SPDX-License-Identifier: MIT
"""The definition of a VM is a file: it holds all keys, reads back as written, and keeps its comments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostbox import config
from ghostbox.config import definition, document, rewrite
from ghostbox.errors import ConfigError

PLACE = Path("/s/vms/box/definition.yaml")
WRITTEN = """# mine
vm:
  # five gigabytes here
  memory: 5GiB  # was 4
  ports:
    - 8080:80
    # the second one
    - 2222:22
  # about cpus
  cpus: 3
# about the pool
pool:
  donors: [tower,
           attic]
  cache: 1GiB
"""


def values(text: str) -> dict[str, object]:
    return {entry.name: entry.value for entry in document.parse(text, PLACE)}


def loaded(text: str) -> config.Config:
    return definition.parse(text, PLACE, "box", Path("/"))


def test_a_definition_has_what_was_set_and_the_hardware_and_not_the_defaults_of_all_else() -> None:
    made = config.load({"vm.memory": "5G", "pool.donors": ["tower"], "vm.ports": ["8080:80"], "memserver.size": "1G"})
    assert definition.frozen(made) == {
        "vm.memory": "5GiB",
        "vm.remote_memory": "8GiB",
        "vm.cpus": 2,
        "vm.disk": "20GiB",
        "vm.image": "debian",
        "vm.user": "ghost",
        "vm.ports": ["8080:80"],
        "pool.donors": ["tower"],
    }


def test_the_name_is_the_directorys() -> None:
    assert loaded("vm: {cpus: 3}\n").vm.name == "box"
    with pytest.raises(ConfigError, match=re.escape(f"{PLACE}:2: vm.name is not a part of a VM's definition")) as err:
        loaded("vm:\n  name: other\n")
    assert err.value.hint == "to give it another name: ghostbox rename"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memserver: {size: 1G}\n", ":1: 'memserver.size' is not a part of a VM's definition"),
        ("vm:\n  memroy: 1G\n", ":2: unknown key 'vm.memroy'"),
        ("vm:\n  cpus: many\n", ":2: vm.cpus: 'many' is not a whole number"),
        ("vm: [\n", ":2: not valid YAML"),
    ],
)
def test_what_is_wrong_in_a_definition_is_named_with_file_and_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{PLACE}{message}")):
        loaded(text)


def test_a_value_that_is_changed_keeps_its_place_and_all_comments() -> None:
    changed = rewrite.rewritten(WRITTEN, {"vm.memory": "8GiB", "vm.ports": ["1:2"], "pool.donors": ["attic"]})
    expected = WRITTEN.replace("5GiB ", "8GiB ").replace("donors: [tower,\n           attic]", "donors: [attic]")
    ports = "  ports:\n    - 8080:80\n    # the second one\n    - 2222:22\n"
    assert changed == expected.replace(ports, "  ports: ['1:2']\n")


def test_a_new_key_goes_to_its_section_and_a_new_section_to_the_end() -> None:
    changed = rewrite.rewritten(WRITTEN, {"vm.user": "ana", "guest.tiering": "on"})
    assert "  cpus: 3\n  user: ana\n# about the pool\n" in changed
    assert changed.endswith("  cache: 1GiB\nguest:\n  tiering: 'on'\n")


def test_a_key_that_is_taken_out_takes_its_section_along_if_it_was_the_last_one() -> None:
    assert rewrite.rewritten(WRITTEN, {}, ["vm.ports"]) == WRITTEN.replace(
        "  ports:\n    - 8080:80\n    # the second one\n    - 2222:22\n", ""
    )
    assert "pool:" not in rewrite.rewritten(WRITTEN, {}, ["pool.donors", "pool.cache"])
    assert rewrite.rewritten(WRITTEN, {}, ["guest.tiering"]) == WRITTEN


@pytest.mark.parametrize(
    "text",
    [
        "vm: {memory: 5GiB, cpus: 3}\n",
        "{vm: {memory: 5GiB, cpus: 3}}",
        "vm: &v\n  memory: 5GiB\n  cpus: 3\npool:\n",
        "vm:\n  memory: |\n    5GiB\n  cpus: 3\n",
        "# only a comment\nvm:\n    memory: 5GiB\n    cpus: 3\n",
        "vm:\n  memory: 5GiB\n  cpus: 3",
    ],
)
def test_unusual_ways_to_write_a_definition_lose_no_value(text: str) -> None:
    changed = values(rewrite.rewritten(text, {"vm.memory": "8GiB", "pool.cache": "1GiB"}, ["vm.user"]))
    assert changed == {"vm.memory": "8GiB", "vm.cpus": 3, "pool.cache": "1GiB"}


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.sampled_from(sorted(definition.vm_keys())), st.none()),
    st.sets(st.sampled_from(sorted(definition.vm_keys()))),
)
def test_any_change_gives_the_values_that_were_wanted(changed: dict[str, None], removed: set[str]) -> None:
    everything = config.from_settings(
        {name: (key.default, "") for name, key in definition.vm_keys().items()}, Path("/")
    )
    changes = {name: everything.written(name) for name in changed if name not in removed}
    text = rewrite.rewritten(WRITTEN, changes, sorted(removed))
    before = {name: value for name, value in values(WRITTEN).items() if name not in removed}
    assert values(text) == {**before, **changes}
    assert text.startswith("# mine\n")


def test_what_lies_around_is_told_from_what_the_command_line_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ghostbox.yaml").write_text("vm: {memory: 6G, user: ghost}\n")
    monkeypatch.setenv("GHOSTBOX_POOL_CACHE", "64M")
    found = config.load({"vm.cpus": 7})
    assert found.given == {"vm.cpus"}
    assert definition.lying_around(found, loaded("vm: {cpus: 2}\n")) == ["vm.memory", "pool.cache"]
    given_file = tmp_path / "lab.yaml"
    given_file.write_text("vm: {memory: 7G}\n")
    assert config.load({}, given_file).given == {"vm.memory"}
