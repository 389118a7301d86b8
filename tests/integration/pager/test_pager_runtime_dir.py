# SPDX-License-Identifier: MIT
"""The pager's sockets and its page map are removed while it serves: it makes them anew, and no page is lost."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from ghostbox.system import processes
from ghostbox.system.processes import ControlError, wait_until
from helpers.pager import MemoryClient, memory_client, running_memserver
from helpers.takeover import PagerLine, pager_line

MIB = 1 << 20


def empty(place: Path) -> None:
    """Remove the directory with all its files, as a cleaner does, and make it again."""
    shutil.rmtree(place)
    place.mkdir()


def restore(line: PagerLine) -> None:
    line.process.send_signal(signal.SIGUSR1)
    files = (line.control, line.listen, line.state_file)
    wait_until(lambda: all(file.exists() for file in files), timeout_s=20, what="the pager's files")
    assert line.status()["pid"] == line.process.pid


def check_takeover(line: PagerLine, client: MemoryClient) -> None:
    """Kill the pager: the next pager must know each page from the file that was made anew."""
    line.kill()
    line.resume()
    line.wait_served(client)
    client.command("verify", seed=1)


def test_sockets_and_page_map_are_made_anew_and_another_pager_can_follow() -> None:
    with (
        running_memserver(a="32M") as donor,
        pager_line([donor.uri("a")]) as line,
        memory_client("16M", line.listen) as client,
    ):
        client.command("fill", seed=1)
        empty(line.place)
        with pytest.raises(ControlError, match="No such file"):
            line.status()
        client.command("verify", seed=1)
        restore(line)
        client.command("verify", seed=1)
        with memory_client("1M", line.listen) as other:
            other.command("fill", seed=2)
        assert [path.name for path in line.place.glob("*.new")] == []
        check_takeover(line, client)


def test_page_map_is_copied_whole_while_pages_move() -> None:
    with (
        running_memserver(a="16M", b="16M") as donor,
        pager_line([donor.uri("a")]) as line,
        memory_client("16M", line.listen) as client,
    ):
        client.command("fill", seed=1)
        client.start("stress", threads=4, seconds=600, discards=50, fresh=0)
        for _ in range(10):
            line.state_file.unlink()
            restore(line)
        line.command("add-donor", uri=donor.uri("b"))
        line.kill()
        line.resume()
        line.wait_served(client)
        client.command("stress-stop")
        assert client.result("stress")["ok"]
        assert [each["uri"] for each in line.status()["donors"]] == [donor.uri("a"), donor.uri("b")]


def test_existing_files_and_connections_are_kept() -> None:
    with (
        running_memserver(a="16M") as donor,
        pager_line([donor.uri("a")]) as line,
        memory_client("16M", line.listen) as client,
    ):
        client.command("fill", seed=1)
        before = [file.stat().st_ino for file in (line.control, line.listen, line.state_file)]
        restore(line)
        client.command("verify", seed=1)
        assert [file.stat().st_ino for file in (line.control, line.listen, line.state_file)] == before
        assert "made anew" not in line.log()


def test_directory_that_is_not_there_is_said_and_tried_again() -> None:
    with (
        running_memserver(a="16M") as donor,
        pager_line([donor.uri("a")]) as line,
        memory_client("16M", line.listen) as client,
    ):
        client.command("fill", seed=1)
        elsewhere = line.place.with_name(f"{line.place.name}-log")
        line.log_path.rename(elsewhere)
        try:
            shutil.rmtree(line.place)
            line.process.send_signal(signal.SIGUSR1)
            texts = ("cannot make the control socket", "cannot listen on", "cannot make the state file")
            wait_until(lambda: all(text in elsewhere.read_text() for text in texts), timeout_s=20, what="three words")
            client.command("verify", seed=1)
            line.place.mkdir()
            restore(line)
            check_takeover(line, client)
        finally:
            elsewhere.unlink()


def test_memory_server_makes_its_control_socket_anew() -> None:
    with running_memserver(a="1M") as donor:
        donor.control.unlink()
        donor.process.send_signal(signal.SIGUSR1)
        wait_until(donor.control.exists, timeout_s=20, what="the control socket")
        assert donor.status()["pid"] == donor.process.pid
        assert donor.control.stat().st_mode & 0o777 == 0o600
        processes.run(["nbdinfo", "--size", donor.uri("a")])
        before = donor.control.stat().st_ino
        donor.process.send_signal(signal.SIGUSR1)
        assert donor.status()["pid"] == donor.process.pid
        assert donor.control.stat().st_ino == before
        donor.process.terminate()
        assert donor.process.wait(20) == 0
        assert not donor.control.exists()
