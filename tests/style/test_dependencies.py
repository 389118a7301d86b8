# SPDX-License-Identifier: MIT
"""What the code imports or calls is named where it is installed from."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

from ghostbox.images import build
from helpers import project


def imported_modules() -> set[str]:
    """Return the top-level modules that ``ghostbox`` imports and that are neither its own nor Python's."""
    paths = project.package_modules().values()
    found = {name.partition(".")[0] for path in paths for name, _line in project.imports(path)}
    return found - set(sys.stdlib_module_names) - {"ghostbox"}


def named_distributions() -> set[str]:
    """Return the normalised names of the dependencies in pyproject.toml, the optional ones too."""
    data = tomllib.loads((project.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*data["dependencies"], *data["optional-dependencies"]["plot"]]
    return {normalised(re.split(r"[<>=!~ \[;]", line)[0]) for line in wanted}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_python_package_that_is_imported_is_a_named_dependency() -> None:
    providers, named = packages_distributions(), named_distributions()
    modules = imported_modules()
    assert {"click", "libvirt", "yaml"} <= modules
    missing = [m for m in sorted(modules) if not {normalised(d) for d in providers.get(m, [])} & named]
    assert missing == [], "not in pyproject.toml"


def test_every_tool_of_the_image_build_is_in_a_package_that_bootstrap_installs() -> None:
    told = subprocess.check_output(["bash", project.ROOT / "bootstrap", "packages"], text=True)
    packages = {line.split()[0] for line in told.splitlines()}
    assert set(build.TOOLS.values()) <= packages
