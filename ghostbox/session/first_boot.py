# SPDX-License-Identifier: MIT
"""Wait for the end of cloud-init in a guest, also if the user's cloud-init data makes the guest reboot meanwhile.

A user's ``runcmd`` may reboot the guest, and ``power_state`` reboots it after cloud-init has written its result. So the
guest is asked again and again, by short commands: a long command in the guest would not notice a reboot.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ghostbox.errors import DeadlineExceeded, GuestError

if TYPE_CHECKING:
    from ghostbox.system.ssh import Result

_LOG = "/var/log/cloud-init-output.log"
_LOOK_INSIDE = f"look inside: cloud-init status --long, {_LOG}"
_ASK_S = 30.0
_QUOTED_LINES = 5

# cloud-init writes result.json at its end (docs: reference/cli). Its child process that carries out power_state runs
# until systemd has the order. cloud-init's systemd generator writes the file "disabled". `cloud-init status` would
# start a Python each time, which takes seconds under emulation.
_ASK = r"""
cat /proc/sys/kernel/random/boot_id
n=0
while [ $n -lt 20 ]; do
    if [ -e /run/cloud-init/disabled ]; then echo '{}'; exit; fi
    if [ -e /run/cloud-init/result.json ] && ! pgrep -f '^[^ ]*python[^ ]* .*cloud-init' > /dev/null; then
        if [ "$(systemctl is-system-running 2> /dev/null)" = stopping ]; then echo stopping; exit; fi
        exec cat /run/cloud-init/result.json
    fi
    n=$((n + 1))
    sleep 0.2
done
echo busy
"""
_READ_LOG = f"sudo -n tail -n 200 {_LOG} 2> /dev/null || tail -n 200 {_LOG}"
# Lines that cloud-init itself writes: its log, tracebacks, banners. The other lines come from the user's programs.
_ITS_OWN = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ - |Cloud-init v\. |Traceback |  File |    |ci-info: ")

Say = Callable[[str], None]


class Guest(Protocol):
    """Describes the part of a connection to the guest (`ssh.GuestSsh`) that is used here."""

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Result:
        """Run a command in the guest."""

    def close(self) -> None:
        """End the connection."""

    def wait_ready(self, timeout_s: float, on_progress: Say = ..., *, alive: Callable[[], bool] = ...) -> None:
        """Wait until the guest takes a login."""


def wait_cloud_init(
    guest: Guest, timeout_s: float, say: Say = lambda _text: None, *, alive: Callable[[], bool] = lambda: True
) -> None:
    """Wait until cloud-init in the guest is done; if the guest stops answering, the whole time is granted again, once.

    Args:
        guest: a connection to the guest.
        timeout_s: the longest time to wait.
        say: receives what is being waited for.
        alive: tells whether the VM still runs.

    Raises:
        GuestError: cloud-init is not done within ``timeout_s``, the VM ended, or cloud-init reports errors.
    """
    say("waiting for cloud-init")
    deadline = time.monotonic() + timeout_s
    first_boot = ""
    again = False
    while True:
        boot, answer = _ask(guest, min(_ASK_S, timeout_s))
        first_boot = first_boot or boot
        if boot and boot != first_boot:
            first_boot = boot
            say("cloud-init has rebooted the guest; waiting for cloud-init again")
        if answer not in ("", "busy", "stopping"):
            _check(guest, answer)
            return
        if not alive():
            raise GuestError(
                "the VM ended before cloud-init in it was done", hint="power_state or runcmd may have ordered that"
            )
        if time.monotonic() > deadline:
            raise _late(timeout_s, answer)
        if answer == "stopping":
            say("cloud-init reboots the guest")
            time.sleep(1.0)
        if answer == "":
            if not again:
                again, deadline = True, time.monotonic() + timeout_s
            guest.close()
            say("the guest does not answer any more: it may be rebooting")
            guest.wait_ready(max(5.0, deadline - time.monotonic()), say, alive=alive)


def _ask(guest: Guest, patience_s: float) -> tuple[str, str]:
    """Return the guest's boot id and its answer about cloud-init; empty strings if the guest does not answer."""
    try:
        boot, _, answer = guest.run(_ASK, patience_s).stdout.strip().partition("\n")
    except (GuestError, DeadlineExceeded):
        return "", ""
    return boot, answer


def _late(timeout_s: float, answer: str) -> GuestError:
    why = {
        "busy": "SSH works, cloud-init is still busy",
        "stopping": "cloud-init has told the guest to reboot, and the guest does not shut down",
        "": "the guest does not answer any more",
    }[answer]
    return GuestError(f"cloud-init in the guest was not done within {timeout_s:.0f} s", why=why, hint=_LOOK_INSIDE)


def _check(guest: Guest, answer: str) -> None:
    try:
        errors = json.loads(answer).get("v1", {}).get("errors", [])
    except (ValueError, AttributeError) as err:
        raise GuestError("cloud-init in the guest left no readable result", why=answer[:200] or None) from err
    if not errors:
        return
    said = _last_words(guest)
    quoted = [f"the last lines in {_LOG}:", *(f"  {line}" for line in said)] if said else []
    raise GuestError(
        "cloud-init in the guest reports errors",
        why="\n".join([*map(str, errors), *quoted]),
        hint=_LOOK_INSIDE,
    )


def _last_words(guest: Guest) -> list[str]:
    """Return the last lines that the user's own commands wrote into cloud-init's log."""
    try:
        text = guest.run(_READ_LOG, _ASK_S).stdout
    except (GuestError, DeadlineExceeded):
        return []
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not _ITS_OWN.match(line)]
    return lines[-_QUOTED_LINES:]
