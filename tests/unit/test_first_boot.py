# SPDX-License-Identifier: MIT
"""While GhostBox waits for cloud-init, a guest may start again, end, or report errors."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from ghostbox.errors import DeadlineExceeded, GuestError
from ghostbox.session import first_boot
from ghostbox.system.ssh import Result

DONE = json.dumps({"v1": {"datasource": "NoCloud", "errors": []}})
FAILED = json.dumps({"v1": {"errors": ["('scripts_user', RuntimeError('Runparts: 1 failures (runcmd)'))"]}})


@dataclass
class Guest:
    """Be a guest that gives these answers one after the other, and the last one for ever; None is no answer."""

    answers: list[str | None]
    log: str = ""
    logins: int = 0
    closed: int = 0
    asked: list[str] = field(default_factory=list)

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Result:
        del stdin
        self.asked.append(command)
        if "tail" in command:
            return Result(0, self.log, "")
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise DeadlineExceeded(f"no answer within {timeout_s}")
        return Result(0, answer, "")

    def close(self) -> None:
        self.closed += 1

    def wait_ready(
        self, timeout_s: float, on_progress: first_boot.Say = print, *, alive: Callable[[], bool] = lambda: True
    ) -> None:
        assert timeout_s > 0
        on_progress("ssh")
        if not alive():
            raise GuestError("the VM ended while it booted")
        self.logins += 1


def test_the_end_of_cloud_init_is_waited_for() -> None:
    guest = Guest(["boot-1\nbusy\n", "boot-1\nbusy\n", f"boot-1\n{DONE}\n"])
    first_boot.wait_cloud_init(guest, 60)
    assert (len(guest.asked), guest.logins) == (3, 0)


def test_guest_that_reboots_meanwhile_is_waited_for_again_and_that_is_said() -> None:
    """The guest's connection breaks or hangs; its next boot has another id."""
    guest = Guest(["boot-1\nbusy", None, "boot-2\nbusy", f"boot-2\n{DONE}"])
    said: list[str] = []
    first_boot.wait_cloud_init(guest, 60, said.append)
    assert (guest.logins, guest.closed) == (1, 1)
    assert "the guest does not answer any more: it may be rebooting" in said
    assert said[-1] == "cloud-init has rebooted the guest; waiting for cloud-init again"


def test_a_result_that_a_reboot_will_follow_is_not_the_end() -> None:
    guest = Guest(["boot-1\nstopping", None, f"boot-2\n{DONE}"])
    said: list[str] = []
    first_boot.wait_cloud_init(guest, 60, said.append)
    assert "cloud-init reboots the guest" in said
    assert guest.logins == 1


def test_guest_that_its_own_cloud_init_ends_is_said_to_have_ended() -> None:
    with pytest.raises(GuestError, match="the VM ended before cloud-init in it was done"):
        first_boot.wait_cloud_init(Guest([None]), 60, alive=lambda: False)


@pytest.mark.parametrize(
    ("answer", "why"), [("b\nbusy", "still busy"), ("b\nstopping", "the guest does not shut down")]
)
def test_cloud_init_that_takes_too_long_is_said_with_what_it_does(answer: str, why: str) -> None:
    with pytest.raises(GuestError, match="was not done within 0 s") as caught:
        first_boot.wait_cloud_init(Guest([answer]), 0)
    assert why in str(caught.value.why)


def test_errors_are_quoted_in_the_guests_own_words() -> None:
    log = """Cloud-init v. 25.1.4 running 'modules:final' at Sun, 29 Nov 2026. Up 30.1 seconds.
/var/lib/cloud/instance/scripts/runcmd: 3: instal-it: not found
2026-11-29 01:02:03,004 - cc_scripts_user.py[WARNING]: Failed to run module scripts_user
Traceback (most recent call last):
  File "/usr/lib/python3/dist-packages/cloudinit/util.py", line 1, in x
    raise RuntimeError
"""
    with pytest.raises(GuestError, match="cloud-init in the guest reports errors") as caught:
        first_boot.wait_cloud_init(Guest([f"b\n{FAILED}"], log), 60)
    assert caught.value.why == (
        "('scripts_user', RuntimeError('Runparts: 1 failures (runcmd)'))\n"
        "the last lines in /var/log/cloud-init-output.log:\n"
        "  /var/lib/cloud/instance/scripts/runcmd: 3: instal-it: not found"
    )


def test_what_is_asked_is_a_script_that_a_shell_takes() -> None:
    asking = Guest([f"b\n{DONE}"])
    first_boot.wait_cloud_init(asking, 60)
    subprocess.run(["sh", "-n", "-c", asking.asked[0]], check=True)
