# SPDX-License-Identifier: MIT
"""In CI a test may be skipped only for something that the machine itself cannot do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ghostbox
from helpers import project

TESTS = """
import pytest

def test_tool():
    pytest.skip("fio is not installed")

@pytest.mark.skipif(True, reason="nbdkit is not installed")
def test_mark():
    pass

def test_machine():
    pytest.skip("cannot run here: no /dev/kvm")
"""


def run_pytest(place: Path, programs: dict[str, str], ci: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run test modules in a directory with this project's conftest.py."""
    shutil.copy(project.ROOT / "tests/conftest.py", place / "conftest.py")
    for name, text in programs.items():
        (place / name).write_text(text)
    env = {name: value for name, value in os.environ.items() if name not in {"CI", "GHOSTBOX_CI"}}
    env["PYTHONPATH"] = str(Path(ghostbox.__file__).resolve().parent.parent)
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take longer to import than the tests to run
    argv = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    return subprocess.run(argv, cwd=place, env={**env, **ci}, capture_output=True, text=True, check=False, timeout=60)


def outcome(tmp_path: Path, ci: dict[str, str]) -> tuple[int, str]:
    done = run_pytest(tmp_path, {"test_some.py": TESTS}, ci)
    return done.returncode, done.stdout


def test_a_skip_is_a_skip_on_a_developers_machine(tmp_path: Path) -> None:
    code, text = outcome(tmp_path, {})
    assert (code, "3 skipped" in text) == (0, True), text


@pytest.mark.parametrize("variable", ["CI", "GHOSTBOX_CI"])
def test_a_missing_tool_is_a_failure_in_ci(tmp_path: Path, variable: str) -> None:
    code, text = outcome(tmp_path, {variable: "true"})
    assert code == 1
    assert "1 failed, 1 skipped, 1 error" in text
    assert "skipped in CI: Skipped: fio is not installed" in text


def test_a_module_that_skips_itself_is_a_failure_in_ci(tmp_path: Path) -> None:
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    code, text = outcome(tmp_path, {"CI": "true"})
    assert code != 0
    assert "no_such_module" in text


@pytest.mark.parametrize(("ci", "code"), [({}, 0), ({"CI": "true"}, 1)], ids=["here", "ci"])
def test_a_run_that_leaves_files_in_the_work_tree_is_a_failure_in_ci(
    tmp_path: Path, ci: dict[str, str], code: int
) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "made-before").write_text("")
    (tmp_path / ".gitignore").write_text("__pycache__\n")
    program = "from pathlib import Path\ndef test_one():\n    Path('../left-behind').write_text('')\n"
    done = run_pytest(tests, {"test_some.py": program}, ci)
    assert done.returncode == code, done.stdout
    left = "the tests left files in the work tree: left-behind\n"
    assert (left in done.stderr) == bool(ci)
