# SPDX-License-Identifier: MIT
"""The boot watchdog recognises the console of a kernel that lost its timer."""

from __future__ import annotations

from pathlib import Path

from ghostbox.session.boot_watchdog import hangs

BOOT = "[    0.000000] Linux version 6.12.0 (debian)\r\n"
STALL = "[  190.953341] rcu: rcu_preempt kthread timer wakeup didn't happen for 5250 jiffies! g-1143 f0x0\r\n"
LOGIN = "\r\nDebian GNU/Linux 12 testbox ttyS0\r\n\r\ntestbox login: "


def said(tmp_path: Path, text: str) -> bool:
    log = tmp_path / "console.log"
    log.write_text(text)
    return hangs(log)


def test_second_stall_of_one_boot_is_a_hang(tmp_path: Path) -> None:
    assert said(tmp_path, BOOT + STALL + STALL)


def test_one_stall_is_a_busy_host(tmp_path: Path) -> None:
    assert not said(tmp_path, BOOT + STALL)


def test_stalls_of_two_boots_are_not_added(tmp_path: Path) -> None:
    assert not said(tmp_path, BOOT + STALL + STALL + BOOT + STALL)


def test_guest_that_shows_a_login_prompt_is_left_alone(tmp_path: Path) -> None:
    assert not said(tmp_path, BOOT + STALL + LOGIN + STALL + STALL)
    assert said(tmp_path, BOOT + LOGIN + BOOT + STALL + STALL)


def test_console_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert not hangs(tmp_path / "none.log")
