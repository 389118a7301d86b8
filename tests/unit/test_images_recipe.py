# SPDX-License-Identifier: MIT
"""GhostBox's recipe is read, broken recipes are refused, and packages come from the machine's mirrors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ghostbox import config, paths
from ghostbox.errors import ImageError
from ghostbox.images import customized, load_recipe, mirrors
from ghostbox.images.build import check_user

SHIPPED = paths.data_file("images/debian.yaml")


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = SHIPPED.read_text()
    assert old in text
    (tmp_path / "recipe.yaml").write_text(text.replace(old, new, 1))
    return tmp_path / "recipe.yaml"


def test_shipped_recipe_loads_and_names_no_host() -> None:
    recipe = load_recipe()
    assert recipe.name == "debian"
    assert {"cloud-init", "openssh-server", "numactl", "python3"} <= set(recipe.packages)
    assert "://" not in SHIPPED.read_text()


def test_any_change_is_another_image(tmp_path: Path) -> None:
    other = load_recipe(changed(tmp_path, "  - nano\n", ""))
    assert other.hash != load_recipe().hash
    assert load_recipe().hash == load_recipe(SHIPPED).hash


def test_default_configuration_changes_nothing() -> None:
    recipe, image = load_recipe(), config.load({}).image
    assert customized(recipe, image.suite, image.packages) is recipe
    assert customized(recipe, recipe.suite, ["nano", "python3"]) is recipe


def test_further_packages_are_another_image() -> None:
    recipe = load_recipe()
    other = customized(recipe, recipe.suite, ["htop", "nano", "gdb", "htop"])
    assert other.packages == (*recipe.packages, "gdb", "htop")
    assert other.hash != recipe.hash
    assert customized(recipe, recipe.suite, ["gdb", "htop"]) == other


def test_other_suite_is_another_image() -> None:
    recipe = load_recipe()
    other = customized(recipe, "forky", ())
    assert (other.suite, other.packages) == ("forky", recipe.packages)
    assert len({recipe.hash, other.hash, customized(recipe, "forky", ["htop"]).hash}) == 3


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("suite:", "siute:", "unknown key 'siute'"),
        ("suite: trixie", "", "key 'suite' is missing"),
        ("disk_size: 4G", "disk_size: big", "is wrong"),
        ("name: debian", "name: [", "is not YAML"),
        ("name: debian", "---\n- list\n---\n", "is not YAML"),
    ],
)
def test_broken_recipe_is_explained(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ImageError, match=rf"image recipe .*recipe\.yaml.*{message}"):
        load_recipe(changed(tmp_path, old, new))


def test_recipe_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("- list\n")
    with pytest.raises(ImageError, match=r"recipe\.yaml is not a mapping"):
        load_recipe(tmp_path / "recipe.yaml")


def test_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot read the image recipe .*none\.yaml: No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_archives_are_found_by_their_release_files_or_by_their_paths() -> None:
    by_origin = "http://a.test/x/|bookworm|Debian|Debian\nhttp://b.test/y/|bookworm-security|Debian|Debian-Security\n"
    assert mirrors.known_archives(by_origin) == ("http://a.test/x/", "http://b.test/y/")
    by_path = "http://a.test/debian/|bookworm||\nhttp://a.test/debian-security/|bookworm-security||\n"
    assert mirrors.known_archives(by_path) == ("http://a.test/debian/", "http://a.test/debian-security/")
    others_too = "http://c.test/apt/|stable|Vendor|Vendor\n" + by_path
    assert mirrors.known_archives(others_too)[0] == "http://a.test/debian/"


def test_security_archive_is_found_though_its_lists_were_never_fetched() -> None:
    """``apt-get indextargets`` lists fetched indexes only, ``apt-get update --print-uris`` all configured ones."""
    planned = (
        "'http://a.test/debian/dists/bookworm/InRelease' a.test_debian_dists_bookworm_InRelease 0 \n"
        "'http://a.test/debian/dists/bookworm/main/binary-amd64/Packages.xz' a.test_Packages 0 \n"
        "'http://b.test/debian-sec/dists/bookworm-security/InRelease' b.test_InRelease 0 \n"
    )
    fetched = "http://a.test/debian/|bookworm|Debian|Debian"
    for known in ("", fetched):
        both = f"{known}\n{mirrors.configured(planned)}"
        assert mirrors.known_archives(both) == ("http://a.test/debian/", "http://b.test/debian-sec/")


def test_what_this_machines_apt_would_fetch_is_among_the_guests_sources() -> None:
    suites = [line.split(" main")[0].rpartition(" ")[2] for line in mirrors.sources_list("trixie", ("main",))]
    planned = subprocess.run(["apt-get", "update", "--print-uris"], capture_output=True, text=True, check=True).stdout
    assert ("trixie-security" in suites) == ("-security/InRelease" in planned)


def test_machine_without_a_debian_archive_is_told_to_name_one() -> None:
    with pytest.raises(ImageError, match="apt on this machine knows no Debian archive") as caught:
        mirrors.known_archives("http://c.test/ubuntu/|noble|Ubuntu|Ubuntu\n")
    assert caught.value.hint == "name a mirror: ghostbox image build --mirror URI"


def test_sources_are_archive_updates_and_security() -> None:
    lines = mirrors.sources_list("trixie", ("main", "contrib"), "http://a.test/debian")
    assert len(lines) == 1
    assert lines[0].endswith("http://a.test/debian trixie main contrib")


def test_only_settings_about_reaching_mirrors_are_passed_on() -> None:
    dump = (
        'Acquire::http::Proxy "http://p.test:3142";\nAcquire::Languages "none";\nDPkg::Post-Invoke:: "rm";\n'
        'Acquire::Check-Date "false";\nAcquire::https "";\n'
    )
    assert mirrors.passed_on(dump) == ['Acquire::http::Proxy "http://p.test:3142";', 'Acquire::Check-Date "false";']


def test_user_without_subordinate_ids_is_told_how_to_get_them() -> None:
    check_user("root", 0, "")
    check_user("ana", 1000, "ben:100000:65536\nana:165536:65536\n")
    check_user("ana", 1000, "1000:165536:65536\n")
    with pytest.raises(ImageError, match="user 'ana' cannot build an image: no subordinate user ids") as caught:
        check_user("ana", 1000, "anabel:100000:65536\n")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("sudo usermod --add-subuids 100000-165535")
