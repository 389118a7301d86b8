# SPDX-License-Identifier: MIT
"""Define the fixtures that all tests share, and the rule that a skip is a failure in CI.

In CI (``GHOSTBOX_CI`` or ``CI`` set to true) a test may be skipped only because of the machine; such a reason starts
with ``cannot run here:``. A missing tool or package is a failure there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import ghostbox

# The tests run the command of the ghostbox package that they import (installed, or the working tree).
PACKAGE_PARENT = str(Path(ghostbox.__file__).resolve().parent.parent)
ROOT = Path(__file__).resolve().parent.parent
FILES_BEFORE = pytest.StashKey[set[str]]()
ALLOWED_SKIP = "cannot run here:"
GUEST_MODULES = {"test_bench_vm.py", "test_donor_loss.py", "test_shell_and_files.py", "test_up.py"}
# Units of work in this order: what takes long and begins late ends last, while the other workers have nothing to do. A
# module that is not here has short tests.
LONG_FIRST = (
    "guests", "tests/style/test_linters.py", "tests/vm/test_tiering.py", "tests/vm/test_day.py",
    "tests/vm/test_network_and_disks.py", "tests/vm/test_other_login.py", "tests/vm/test_demo.py", "tests/vm/",
    "tests/integration/", "tests/bench/", "tests/style",
)  # fmt: skip
CliRun = subprocess.CompletedProcess[str]


def in_ci() -> bool:
    """Tell whether a skip counts as a failure."""
    return "true" in (os.environ.get("GHOSTBOX_CI"), os.environ.get("CI"))


def pytest_configure() -> None:
    """Let signals reach the programs that the tests start.

    A shell's background job ignores SIGINT, a program under nohup ignores SIGHUP, and their children would inherit
    that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def untracked_files() -> set[str]:
    """Return the files in the work tree that git neither knows nor ignores; nothing without git."""
    argv = ["git", "-C", str(ROOT), "ls-files", "--others", "--exclude-standard"]
    try:
        return set(subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines())
    except FileNotFoundError:
        return set()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember which files were in the work tree."""
    if not hasattr(session.config, "workerinput"):  # the workers of pytest-xdist share one tree
        session.config.stash[FILES_BEFORE] = untracked_files()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, fail a run that left files in the work tree. Elsewhere an editor may have made them."""
    if FILES_BEFORE in session.config.stash and in_ci():
        before = session.config.stash[FILES_BEFORE]
        left = sorted(untracked_files() - before)
        if left:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            print(f"\nthe tests left files in the work tree: {', '.join(left)}", file=sys.stderr)


def scope_of(nodeid: str) -> str:
    """Return the name of the unit of work to which a test belongs; one worker does the whole unit.

    Each linter is a unit of its own, since it is a program that runs beside the tests; the other tests of style are
    one, since they share the syntax trees.
    """
    module = nodeid.partition("::")[0]
    if Path(module).name in GUEST_MODULES:
        return "guests"
    if module.startswith("tests/style/"):
        return nodeid if module.endswith("/test_linters.py") else "tests/style"
    return module


def is_of_guests(scope: str) -> bool:
    """Tell whether the tests of a unit boot a guest."""
    return scope == "guests" or scope.startswith("tests/vm/")


def rank(scope: str) -> int:
    """Return the place of a unit in the order of `LONG_FIRST`."""
    found = (place for place, start in enumerate(LONG_FIRST) if scope.startswith(start))
    return next(found, len(LONG_FIRST))


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give most tests that boot a whole guest to one worker, and the others to all workers, module by module.

    A guest takes two processors; the tests of a module share its fixtures. The tests of the image and the demo pass
    beside other guests, so a worker with nothing else to do may take them. The first worker begins with the guests,
    the others with what waits more than it computes; each takes the modules with long tests first.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            guests_first = node is self.nodes[0]
            chosen = min(self.workqueue, key=lambda scope: (is_of_guests(scope) != guests_first, rank(scope)))
            self.workqueue.move_to_end(chosen, last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turn a skip without a permitted reason into a failure in CI."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.skipped and not hasattr(report, "wasxfail") and in_ci():
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(ALLOWED_SKIP):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: skipped in CI: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Do the same for a whole module that skips itself (``pytest.importorskip``)."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.skipped and in_ci():
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(ALLOWED_SKIP):
            report.outcome = "failed"
            report.longrepr = f"{collector.nodeid}: skipped in CI: {reason}"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the caller's configuration and GHOSTBOX_ variables out of the tests."""
    kept = {"GHOSTBOX_CI", "GHOSTBOX_NATIVE_DIR", "GHOSTBOX_BUILD_DIR"}
    for name in list(os.environ):
        if name.startswith("GHOSTBOX_") and name not in kept and not name.startswith("GHOSTBOX_TEST_"):
            monkeypatch.delenv(name)
    empty = tmp_path_factory.getbasetemp() / "no-config"
    empty.mkdir(exist_ok=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(empty))
    monkeypatch.setenv("GHOSTBOX_SYSTEM_CONFIG", str(empty / "system.yaml"))


@pytest.fixture
def ghostbox_dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a state, runtime and cache directory of its own; return their parent."""
    for kind in ("STATE", "RUNTIME", "CACHE"):
        place = tmp_path / kind.lower()
        place.mkdir()
        monkeypatch.setenv(f"GHOSTBOX_{kind}_DIR", str(place))
    return tmp_path


@pytest.fixture
def quick_cli(ghostbox_dirs: Path) -> Callable[..., CliRun]:
    """Return `ghostbox_cli` by a fork of this process, for tests that run many commands."""
    from helpers import forked

    forked.load_commands()

    def run(*args: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> CliRun:
        return forked.run(*args, cwd=cwd or ghostbox_dirs, env=env)

    return run


@pytest.fixture
def ghostbox_cli(ghostbox_dirs: Path) -> Callable[..., CliRun]:
    """Return a function that runs the real command in a process of its own, with directories of its own.

    ``ghostbox_cli("config", "show", env={…}, cwd=…, input="…", timeout_s=60)``
    """

    def run(
        *args: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        input: str | None = None,
        timeout_s: float = 120.0,
    ) -> CliRun:
        return subprocess.run(
            [sys.executable, "-m", "ghostbox", *map(str, args)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": PACKAGE_PARENT, "NO_COLOR": "1", **(env or {})},
            cwd=cwd or ghostbox_dirs,
            input="" if input is None else input,
            timeout=timeout_s,
        )

    return run
