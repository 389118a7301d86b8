# SPDX-License-Identifier: MIT
"""Each package that the code imports and each program that it calls is named where it is installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

from packaging.requirements import Requirement
from packaging.version import Version

from ghostbox.images import build
from helpers import project


def imported_modules() -> set[str]:
    """Return the top-level modules that ``ghostbox`` imports, without its own and Python's."""
    paths = project.package_modules().values()
    found = {name.partition(".")[0] for path in paths for name, _line in project.imports(path)}
    return found - set(sys.stdlib_module_names) - {"ghostbox"}


def named_distributions() -> set[str]:
    """Return the normalised names of the dependencies in pyproject.toml, optional ones included."""
    data = tomllib.loads((project.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = data["optional-dependencies"]
    wanted = [*data["dependencies"], *extras["donor"], *extras["host"], *extras["bench"]]
    return {name_of(line) for line in wanted}


def name_of(requirement: str) -> str:
    return normalised(re.split(r"[<>=!~ \[;]", requirement)[0])


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_python_package_that_is_imported_is_a_named_dependency() -> None:
    providers, named = packages_distributions(), named_distributions()
    modules = imported_modules()
    assert {"click", "libvirt", "yaml"} <= modules
    missing = [m for m in sorted(modules) if not {normalised(d) for d in providers.get(m, [])} & named]
    assert missing == [], "not in pyproject.toml"


def test_constraints_name_a_version_of_every_dependency_that_pyproject_allows() -> None:
    data = tomllib.loads((project.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = data["project"]["optional-dependencies"].values()
    wanted = [
        *data["build-system"]["requires"],
        *data["project"]["dependencies"],
        *(line for e in extras for line in e),
    ]
    lines = (project.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    tried = {normalised(name): Version(version) for name, version in pinned.items()}
    assert tried.keys() == {name_of(line) for line in wanted}
    refused = [line for line in wanted if not Requirement(line).specifier.contains(tried[name_of(line)])]
    assert refused == []


def test_every_tool_of_the_image_build_is_in_a_package_that_bootstrap_installs() -> None:
    told = subprocess.check_output(["bash", project.ROOT / "bootstrap", "packages"], text=True)
    packages = {line.split()[0] for line in told.splitlines()}
    assert set(build.TOOLS.values()) <= packages
