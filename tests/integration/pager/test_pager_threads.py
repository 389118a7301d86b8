# SPDX-License-Identifier: MIT
"""A pager that says `ready` has all its threads; a pager that cannot start a thread names the thread and fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghostbox.system.processes import wait_until
from helpers.pager import (
    RunningMemserver,
    installed_build,
    pager_argv,
    preloadable,
    running_memserver,
    running_pager,
)

THREADS = 6  # main, fault, evict, lookup, key, control
MIB = 1 << 20


@dataclass(frozen=True)
class Start:
    """Hold what happened to a pager that was started with too little, or just enough, of a resource."""

    ready: bool
    threads: int
    status: int
    said: str


@pytest.fixture
def place(place: Path) -> Path:
    """Return a directory for sockets that any user may use."""
    place.chmod(0o777)
    return place


@pytest.fixture(scope="module")
def donor() -> Iterator[RunningMemserver]:
    with running_memserver(a="16M") as server:
        yield server


def vm_peak_bytes(pid: int) -> int:
    found = re.search(r"VmPeak:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def start(donor: RunningMemserver, place: Path, prefix: Sequence[str]) -> Start:
    """Start a pager, look at its threads if it says `ready`, and end it."""
    argv = [*prefix, *pager_argv(installed_build(), place, [donor.uri("a")], "2M", {})]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline() == "ready\n"
        threads = 0
        if ready:
            # An answer takes a file descriptor, and none may be left; the control thread runs all the same.
            threads = len(list(Path(f"/proc/{process.pid}/task").iterdir()))
            assert (place / "c").is_socket()
            process.terminate()
        _, said = process.communicate(timeout=30)
        found = Start(ready, threads, process.returncode, said)
        assert [each.name for each in place.iterdir() if each.is_socket()] == [], f"{prefix}: {found}"
        return found


def assert_whole_or_failed(found: Start, limit: str) -> None:
    if found.ready:
        assert (found.threads, found.status) == (THREADS, 0), f"{limit}: {found}"
    else:
        assert found.status != 0, f"{limit}: {found}"
        assert found.said.strip(), f"{limit}: {found}"


def as_nobody(n_threads: int) -> list[str]:
    """Return the prefix of a command that runs it as a user without processes, with a limit of this many threads."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("cannot run here: a limit of processes binds other users than root only, and it takes setpriv")
    user = ["setpriv", f"--reuid={nobody()}", "--clear-groups", "--inh-caps=-all,+dac_override"]
    return [*user, "--ambient-caps=+dac_override", "prlimit", f"--nproc={n_threads}", "--"]


def nobody() -> int:
    return 1_500_000_000 + os.getpid()


def test_a_pager_that_may_not_have_its_threads_does_not_say_that_it_is_ready(
    donor: RunningMemserver, place: Path
) -> None:
    expected = {
        1: "cannot start the fault thread: Resource temporarily unavailable",
        2: "cannot start the evict thread: Resource temporarily unavailable",
        3: "cannot start the lookup thread: Resource temporarily unavailable",
        4: "cannot start the key thread: Resource temporarily unavailable",
        5: f"cannot open the control socket {place / 'c'}: Resource temporarily unavailable",
    }
    for n_threads in range(1, THREADS + 1):
        found = start(donor, place, as_nobody(n_threads))
        assert_whole_or_failed(found, f"{n_threads} threads")
        assert found.ready == (n_threads == THREADS), found
        if not found.ready:
            assert found.status == 1
            assert expected[n_threads] in found.said


def test_a_pager_without_the_memory_for_its_threads_fails_and_says_so(donor: RunningMemserver, place: Path) -> None:
    argv = pager_argv(installed_build(), place, [donor.uri("a")], "2M", {})
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        enough = vm_peak_bytes(process.pid)
        process.terminate()
        process.communicate(timeout=30)
    said = ""
    for limit in range(enough + MIB, 4 * MIB, -MIB):
        found = start(donor, place, ["prlimit", f"--as={limit}", "--"])
        assert_whole_or_failed(found, f"{limit >> 20} MiB")
        said += found.said
        if "cannot open shared object" in found.said or "error while loading" in found.said:
            break
    assert "the fault thread cannot start: Cannot allocate memory" in said
    assert "the evict thread cannot start: Cannot allocate memory" in said


def test_a_pager_without_the_descriptors_for_its_threads_fails_and_says_so(
    donor: RunningMemserver, place: Path
) -> None:
    said = ""
    for limit in range(40, 3, -1):
        found = start(donor, place, ["prlimit", f"--nofile={limit}", "--"])
        assert_whole_or_failed(found, f"{limit} descriptors")
        said += found.said
    assert "the fault thread cannot start: Too many open files" in said
    assert "the evict thread cannot start: Too many open files" in said


def test_a_pager_that_could_not_start_leaves_no_page_map(donor: RunningMemserver, place: Path) -> None:
    argv = pager_argv(installed_build(), place, [donor.uri("a")], "2M", {"state": str(place / "state")})
    limited = ["prlimit", f"--nofile={_just_too_few(donor, place)}", "--", *argv]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "ready" not in done.stdout
    assert not (place / "state").exists(), "a page map that no pager has used"


def _just_too_few(donor: RunningMemserver, place: Path) -> int:
    """Return the largest limit of descriptors with which a pager does not start."""
    for limit in range(40, 3, -1):
        if not start(donor, place, ["prlimit", f"--nofile={limit}", "--"]).ready:
            return limit
    raise AssertionError("it starts with none")


def test_a_process_whose_shim_may_not_have_its_thread_gets_no_memory(donor: RunningMemserver) -> None:
    build = installed_build()
    with running_pager([donor.uri("a")], cache="2M", peer_uid=str(nobody())) as pager:
        preload = f"LD_PRELOAD={preloadable(build.shim)}"  # for the client, not for setpriv
        done = subprocess.run(
            [*as_nobody(1), "env", preload, str(build.client), "--bytes", "16M", "read"],
            env={**os.environ, "GHOSTBOX_PAGER_SOCKET": str(pager.listen)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode != 0, "the mapping fails"
        assert "ghostbox-shim: cannot start a thread: Resource temporarily unavailable" in done.stderr
        wait_until(lambda: pager.status()["regions"] == [], timeout_s=20, what="the pager letting go of it")


def test_a_memory_server_that_may_not_have_its_threads_does_not_say_that_it_listens(place: Path) -> None:
    expected = {
        1: "cannot start worker 0: Resource temporarily unavailable",
        2: "cannot start worker 1: Resource temporarily unavailable",
        3: f"cannot make the control socket {place / 'c'}: Resource temporarily unavailable",
    }
    argv = [str(installed_build().memserver), "--port", "0", "--size", "1M", "--threads", "2"]
    for n_threads in range(1, 5):
        limited = [*as_nobody(n_threads), *argv, "--control", str(place / "c")]
        found = start_memserver(limited)
        assert found.ready == (n_threads == 4), found
        assert found.status == (0 if found.ready else 1), found
        assert n_threads == 4 or expected[n_threads] in found.said


@pytest.mark.parametrize("limited", ["nofile", "as"])
def test_a_memory_server_without_what_its_threads_need_fails_and_says_so(place: Path, limited: str) -> None:
    argv = [str(installed_build().memserver), "--port", "0", "--size", "1M", "--threads", "2"]
    limits = range(24, 3, -1) if limited == "nofile" else range(200 * MIB, 4 * MIB, -4 * MIB)
    found = [
        start_memserver(["prlimit", f"--{limited}={n}", "--", *argv, "--control", str(place / "c")]) for n in limits
    ]
    assert {each.ready for each in found} == {True, False}
    for each in found:
        assert (each.threads, each.status) == (4, 0) if each.ready else each.status != 0, each
        assert each.ready or each.said.strip(), each


def start_memserver(argv: Sequence[str]) -> Start:
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline().startswith("listening on ")
        threads = len(list(Path(f"/proc/{process.pid}/task").iterdir())) if ready else 0
        process.terminate()
        _, said = process.communicate(timeout=30)
        return Start(ready, threads, process.returncode, said)
