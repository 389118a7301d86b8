# SPDX-License-Identifier: MIT
"""A later pager reads the state file; donors and processes that the file names may be gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox import pager
from ghostbox.errors import ProgramError
from ghostbox.system.processes import ControlError, wait_until
from helpers import limits
from helpers.pager import (
    MemoryClient,
    installed_build,
    memory_client,
    nbdkit_memory,
    running_memserver,
    running_pager,
)
from helpers.takeover import PagerLine, other_format, pager_line

PAGES = 16 * 256
MIB = 1 << 20


@contextlib.contextmanager
def filled(donors: list[str], *, cache: str = "2M", **options: Any) -> Iterator[tuple[PagerLine, MemoryClient]]:
    """Yield a pager with a state file, and a client with 16 MiB in it, most of it on the donors."""
    with pager_line(donors, cache=cache, **options) as line, memory_client("16M", line.listen) as client:
        client.command("fill", seed=1)
        yield line, client


def starts_not(place: Path, *options: str) -> str:
    """Return the output of a pager that does not start."""
    argv = [str(installed_build().pager), "--listen", str(place / "p2"), "--control", str(place / "c2"), *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done
    return done.stderr


def test_memory_is_served_again_with_its_contents() -> None:
    with running_memserver(a="16M") as donor, filled([donor.uri("a")]) as (line, client):
        line.kill()
        client.start("verify", seed=1)
        assert client.answers_nothing("verify", for_s=0.5)
        line.resume()
        assert client.result("verify")["ok"]
        status = line.status()
        assert status["pages"]["present"] <= 512
        assert status["pages"]["on_donor"] >= PAGES - 512
        client.command("fill", seed=2)
        client.command("verify", seed=2)


def test_a_page_that_was_clean_is_not_written_again() -> None:
    with running_memserver(a="16M") as donor, filled([donor.uri("a")]) as (line, client):
        client.command("verify", seed=1)
        line.kill()
        line.resume()
        client.command("verify", seed=1)
        assert line.status()["evictions"]["clean"] > PAGES // 2
        assert sum(each["written_bytes"] for each in line.status()["donors"]) < 4 * MIB


def test_handing_over_waits_for_writes_and_loses_nothing() -> None:
    with running_memserver(a="16M") as donor, filled([donor.uri("a")]) as (line, client):
        client.start("stress", threads=8, seconds=600, discards=100, fresh=0)
        for _ in range(5):
            assert client.answers_nothing("stress", for_s=0.3)
            assert line.command("hand-over") is None
            assert line.process.wait(10) == 0
            line.resume()
            line.wait_served(client)
        client.command("stress-stop")
        assert client.result("stress")["ok"]
        assert line.log().count("handed over: 0 writes are left to the next pager") == 5


def test_a_pager_without_a_state_file_hands_nothing_over() -> None:
    with running_memserver(a="16M") as donor, running_pager([donor.uri("a")]) as alone:
        with pytest.raises(ControlError, match="keeps no page map that another could go on with") as refused:
            alone.command("hand-over")
        assert refused.value.code == "no-state"
        assert alone.status()["state_file"] is None


def test_the_size_of_the_cache_stays_as_it_was_set() -> None:
    with running_memserver(a="16M") as donor, filled([donor.uri("a")]) as (line, client):
        line.command("set-cache", cache_bytes=3 * MIB)
        line.kill()
        line.resume()
        line.wait_served(client)
        assert line.status()["cache_bytes"] == 3 * MIB


def test_a_process_that_ended_meanwhile_leaves_nothing_behind() -> None:
    with running_memserver(a="32M") as donor, filled([donor.uri("a")]) as (line, client):
        with memory_client("16M", line.listen) as other:
            other.command("fill", seed=9)
            assert donor.resident_bytes("a") > 20 * MIB
            line.kill()
        line.resume()
        wait_until(lambda: len(line.status()["regions"]) == 1, timeout_s=20, what="the end of the other's memory")
        client.command("verify", seed=1)
        wait_until(lambda: donor.resident_bytes("a") <= 16 * MIB, timeout_s=20, what="the donor to give it back")
        with memory_client("16M", line.listen) as third:
            third.command("fill", seed=4)
            third.command("verify", seed=4)


def test_without_its_process_a_pager_that_took_over_ends_and_removes_the_file() -> None:
    with running_memserver(a="16M") as donor, filled([donor.uri("a")]) as (line, client):
        line.kill()
        client.kill()
        assert line.state_file.exists()
        line.resume("--exit-with-client")
        assert line.process.wait(20) == 0
        assert not line.state_file.exists()
        assert donor.resident_bytes("a") == 0


def test_a_donor_that_is_away_holds_up_nobody_else() -> None:
    with (
        running_memserver(a="16M") as one,
        running_memserver(b="16M") as two,
        filled([one.uri("a"), two.uri("b")], extent="4M") as (line, client),
    ):
        line.kill()
        os.kill(two.process.pid, signal.SIGSTOP)
        try:
            line.resume()
            line.wait_served(client)
            client.command("verify", seed=1, first=0, n=1024)
            client.start("verify", seed=1, first=1024, n=1024)
            assert client.answers_nothing("verify", for_s=1.0)
        finally:
            os.kill(two.process.pid, signal.SIGCONT)
        assert client.result("verify")["ok"]
        client.command("verify", seed=1)


def test_a_donor_that_lost_its_memory_meanwhile_is_poison_not_zeroes() -> None:
    with contextlib.ExitStack() as stack:
        donor = stack.enter_context(running_memserver(a="16M"))
        line, client = stack.enter_context(filled([donor.uri("a")]))
        port = donor.address.rpartition(":")[2]
        line.kill()
        donor.process.kill()
        donor.process.wait(10)
        stack.enter_context(running_memserver(a="16M", options=["--port", port]))
        line.resume()
        answer = client.attempt("verify", seed=1, first=0, n=16)
        assert answer["error"] == "SIGBUS"
        assert "cannot show that it still holds our pages" in line.log()


def test_another_donor_at_the_address_says_nothing_about_the_memory_of_the_first() -> None:
    """The other donor's export has the same name and size.

    The earlier pager knew the identity of the first donor, and the next pager knows it from the state file.
    """

    def noticed(who: str) -> bool:
        donor = line.status()["donors"][0]
        return (donor["state"], donor["why"]) == ("down", f"another server answers there: {who} instead of donor first")

    with contextlib.ExitStack() as stack:
        donor = stack.enter_context(running_memserver(a="16M", options=["--donor-id", "first"]))
        line, client = stack.enter_context(filled([donor.uri("a")]))
        port = ["--port", donor.address.rpartition(":")[2]]
        for takeover in (False, True):
            donor.process.kill()
            donor.process.wait(10)
            if takeover:
                line.kill()
            with running_memserver(a="16M", options=[*port, "--donor-id", "second"]):
                if takeover:
                    line.resume()
                wait_until(lambda: noticed("donor second"), timeout_s=20, what="it is noticed")
                client.command("verify", seed=1, first=PAGES - 1, n=1)
        with running_memserver(a="16M", options=port):
            wait_until(lambda: noticed("a server without a donor's id"), timeout_s=20, what="it is noticed")
        assert "the pages that it held are lost" not in line.log()
        stack.enter_context(running_memserver(a="16M", options=[*port, "--donor-id", "first"]))
        wait_until(lambda: line.status()["donors"][0]["state"] == "lost", timeout_s=20, what="the loss")
        assert client.attempt("verify", seed=1, first=0, n=16)["error"] == "SIGBUS"


def test_donors_without_identity_are_trusted_page_by_page() -> None:
    with nbdkit_memory("16M") as uri, filled([uri]) as (line, client):
        line.kill()
        line.resume()
        client.command("verify", seed=1)
        client.command("fill", seed=2)
        client.command("verify", seed=2)
        assert line.status()["donors"][0]["identity"] == ""


def test_kept_contents_stay_kept() -> None:
    with running_memserver(a="16M") as donor:
        with running_pager([donor.uri("a")]) as first, memory_client("16M", first) as client:
            client.command("fill", seed=5)
        with (
            nbdkit_memory("16M") as uri,
            pager_line([uri], contents="keep") as line,
            memory_client("16M", line.listen) as client,
        ):
            client.command("fill", seed=6, first=0, n=2048)
            client.command("discard", first=100, n=10)
            line.kill()
            line.resume()
            client.command("verify", seed=6, first=0, n=100)
            assert client.command("read", first=105)["value"] == 0
            assert line.status()["pages"]["on_donor"] == PAGES - 10


def test_the_file_of_a_process_that_runs_is_not_overwritten() -> None:
    with running_memserver(a="16M") as donor, filled([donor.uri("a")]) as (line, client):
        options = ["--state", str(line.state_file), "--cache", "2M", "--donor", donor.uri("a")]
        assert f"the state file {line.state_file} is in use by another pager" in starts_not(line.place, *options)
        line.kill()
        said = starts_not(line.place, *options)
        assert f"knows the memory of process {client.pid} (memory-client), which still runs" in said
        assert "go on with it (--resume) or end that process" in said
        line.resume()
        client.command("verify", seed=1)


def test_a_file_that_nobody_wrote_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state"
    options = ["--resume", "--state", str(file)]
    assert f"cannot open the state file {file}: No such file or directory" in starts_not(tmp_path, *options)
    file.write_bytes(os.urandom(1 << 20))
    message = f"the state file {file} is not one that this version of the pager wrote"
    assert message in starts_not(tmp_path, *options)
    file.write_bytes(b"")
    assert message in starts_not(tmp_path, *options)


def test_whether_another_version_can_go_on_is_asked_before_the_pager_ends(tmp_path: Path) -> None:
    with running_memserver(a="16M") as donor, filled([donor.uri("a")]) as (line, client):
        files = pager.PagerFiles(line.listen, line.control, line.log_path, line.state_file)
        program = installed_build().pager
        pager.check_resume(program, files)
        with other_format(line.state_file), pytest.raises(ProgramError) as refused:
            pager.check_resume(program, files)
        assert str(refused.value.why).startswith(
            f"the state file {line.state_file} is not one that this version of the pager wrote:"
            " it has format 9, this pager reads format "
        )
        older = tmp_path / "older"
        older.write_text("#!/bin/sh\necho '{\"usable\": true}'\n")
        older.chmod(0o755)
        with pytest.raises(ProgramError) as refused:
            pager.check_resume(older, files)
        assert refused.value.why == f"{older} is too old to say whether it can read {line.state_file}"
        client.command("verify", seed=1)
        line.command("hand-over")
        line.process.wait(10)
        line.resume()
        client.command("verify", seed=1)


def test_a_file_that_was_cut_is_refused() -> None:
    with running_memserver(a="16M") as donor, filled([donor.uri("a")]) as (line, client):
        line.kill()
        client.kill()
        os.truncate(line.state_file, line.state_file.stat().st_size - 4096)
        said = starts_not(line.place, "--resume", "--state", str(line.state_file))
        assert "is not one that this version of the pager wrote" in said


def test_a_feature_that_is_no_longer_there_is_named() -> None:
    with running_memserver(a="16M") as donor, filled([donor.uri("a")]) as (line, client):
        line.kill()
        options = ["--resume", "--state", str(line.state_file), "--hide-features", "wp_unpopulated"]
        said = starts_not(line.place, *options)
        assert "the earlier pager used userfaultfd's wp_unpopulated, which is not there now" in said
        client.kill()


@pytest.fixture
def small_tmpfs() -> Iterator[Path]:
    """Yield a tmpfs of 64 KiB."""
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp") as place, limits.tmpfs(Path(place), "size=64k"):
        yield Path(place)


def test_a_full_file_system_is_an_error_at_the_start(small_tmpfs: Path, place: Path) -> None:
    file = small_tmpfs / "state"
    with running_memserver(a="64M") as donor:
        said = starts_not(place, "--state", str(file), "--cache", "2M", "--donor", donor.uri("a"))
    assert f"no room for the state file {file} (" in said
    assert "No space left on device" in said
    assert not file.exists()
