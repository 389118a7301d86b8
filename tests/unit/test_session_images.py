# SPDX-License-Identifier: MIT
"""A VM's image is known before its disk is made and after it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ghostbox import config, paths
from ghostbox.errors import NotFound
from ghostbox.images import Image, ImageStore, load_recipe
from ghostbox.session import images


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> paths.Paths:
    for name in ("STATE", "RUNTIME", "CACHE"):
        monkeypatch.setenv(f"GHOSTBOX_{name}_DIR", str(tmp_path / name.lower()))
    return paths.find()


def loaded(**flags: object) -> config.Config:
    return config.load({key.replace("__", "."): value for key, value in flags.items()})


def imported(here: paths.Paths, name: str = "debian") -> Image:
    source = here.state.parent / "disk.raw"
    source.write_bytes(os.urandom(510) + b"\x55\xaa" + bytes(1 << 20))
    return ImageStore(here.images).import_file(source, name)


def test_disk_keeps_its_image_when_a_new_one_is_built(here: paths.Paths) -> None:
    old = imported(here)
    disk = here.vm("box").disk
    disk.parent.mkdir(parents=True)
    ImageStore(here.images).create_overlay(old, disk, 8 << 20)
    (here.images / "debian.json").unlink()
    new = imported(here)
    assert images.find(loaded(vm__name="box"), here).disk == old.disk
    assert images.find(loaded(vm__name="other"), here).disk == new.disk != old.disk


def test_missing_default_image_is_to_be_built(here: paths.Paths) -> None:
    found = images.find(loaded(image__suite="forky", image__packages=["htop"]), here)
    assert (found.to_build, found.suite, found.packages) == (True, "forky", ("htop",))


def built(here: paths.Paths, recipe_hash: str) -> Image:
    """Return an imported disk with the record of an image that was built."""
    image = imported(here)
    record = here.images / "debian.json"
    record.write_text(json.dumps({**image.to_json(), "kind": "built", "recipe_hash": recipe_hash}))
    return image


def test_image_of_another_recipe_is_taken_and_said_to_be_so(here: paths.Paths) -> None:
    built(here, load_recipe().hash)
    assert images.notes(images.find(loaded(), here)) == ()
    found = images.find(loaded(image__packages=["htop"]), here)
    assert not found.to_build
    assert images.notes(found) == (
        "note: image 'debian' was built from another recipe than the present one",
        "      to build the present one, for VMs made from then on: ghostbox image build",
    )


def test_imported_image_is_never_outdated(here: paths.Paths) -> None:
    imported(here)
    assert images.notes(images.find(loaded(), here)) == ()


def test_missing_image_of_another_name_is_not_built(here: paths.Paths) -> None:
    with pytest.raises(NotFound, match="no image named 'mine'"):
        images.find(loaded(vm__image="mine"), here)
