# SPDX-License-Identifier: MIT
"""Donors that can be killed, stopped, cut off, slowed down and made to lie, each in a namespace of its own."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ghostbox import processes
from helpers import chaos_relay
from helpers.nbd import system_python
from helpers.netns import Machine, machines
from helpers.pager import READY_TIMEOUT_S, _end, _read_line, installed_build, short_dir

NBD_PORT, RELAY_PORT = 10809, 10819
EXPORT = "x"

_ROT = """
h.connect_uri({uri!r})
for offset, mask in {masks!r}:
    h.pwrite(bytes([h.pread(1, offset)[0] ^ mask]), offset)
h.shutdown()
"""


@dataclass
class Donor:
    """A memory server in a namespace: ``argv`` is run there, now and after each kill."""

    name: str
    machine: Machine
    argv: Sequence[str]
    uri: str
    export_bytes: int
    process: subprocess.Popen[str] = field(init=False)
    cuts: int = 0
    stopped: bool = False

    @property
    def reachable(self) -> bool:
        """Tell whether it could answer now."""
        return not self.cuts and not self.stopped and self.process.poll() is None

    def start(self) -> None:
        """Run it, with empty memory."""
        self.process = subprocess.Popen([*self.machine.prefix, *self.argv], stdout=subprocess.PIPE, text=True)
        self.stopped = False
        assert _read_line(self.process, self.name).startswith("listening on ")

    def kill(self) -> None:
        """SIGKILL: its memory is gone."""
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> None:
        """SIGSTOP."""
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    def cut(self, *, far: bool) -> None:
        """Take the link down, at our end (connecting fails at once) or at its own (packets go nowhere)."""
        self.cuts += 1
        self._link("down", far)

    def heal(self, *, far: bool) -> None:
        """Take it up again."""
        self.cuts -= 1
        self._link("up", far)

    def _link(self, state: str, far: bool) -> None:
        at = ["-n", self.machine.namespace, "link", "set", "eth0"] if far else ["link", "set", self.machine.cable]
        subprocess.run(["ip", *at, state], check=True, timeout=20)

    def rot(self, n: int, seed: int) -> None:
        """Change a bit in each of ``n`` places of its memory, behind the back of all."""
        chance = random.Random(seed)
        masks = [(chance.randrange(self.export_bytes), 1 << chance.randrange(8)) for _ in range(n)]
        script = _ROT.format(uri=f"nbd://{self.machine.address}:{NBD_PORT}/{EXPORT}", masks=masks)
        subprocess.run(["nbdsh", "-c", script], env=system_python(), check=True, timeout=30)

    def end(self) -> None:
        """End it, however it is."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        _end(self.process)


class Relayed(Donor):
    """A memory server behind a relay that flips bits."""

    relay: subprocess.Popen[str]

    def start_relay(self) -> None:
        """Run the relay, once: it outlives the server."""
        address = self.machine.address
        argv = [sys.executable, chaos_relay.__file__, f"{address}:{RELAY_PORT}", f"{address}:{NBD_PORT}"]
        self.relay = subprocess.Popen(
            [*self.machine.prefix, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert _read_line(self.relay, "the relay") == "ready"

    def harm(self, *words: str) -> dict[str, int]:
        """Give the relay a command; return how much harm it has done so far."""
        assert self.relay.stdin is not None
        assert self.relay.stdout is not None
        self.relay.stdin.write(" ".join(words) + "\n")
        self.relay.stdin.flush()
        counts: dict[str, int] = json.loads(self.relay.stdout.readline())
        return counts

    def end(self) -> None:
        assert self.relay.stdin is not None
        self.relay.stdin.close()
        _end(self.relay)
        super().end()


class Filtered(Donor):
    """nbdkit: slower than the others, with a rate and with errors on request.

    Its memory is a file, so it outlives the process: nbdkit 1.32 itself ends now and then, by an assertion about a
    delayed request whose connection was closed.
    """

    place: Path

    def start(self) -> None:
        pid_file = self.place / "pid"
        pid_file.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [*self.machine.prefix, *self.argv, "-P", str(pid_file)], stdout=subprocess.PIPE, text=True
        )
        processes.wait_until(
            lambda: pid_file.exists() or self.process.poll() is not None, timeout_s=READY_TIMEOUT_S, what="nbdkit"
        )
        assert self.process.poll() is None, "nbdkit ended"

    def errors(self, on: bool) -> None:
        """Every third request fails, or none."""
        switch = self.place / "errors"
        if on:
            switch.touch()
        else:
            switch.unlink(missing_ok=True)

    def end(self) -> None:
        """Kill it: asked to end it waits for clients whose link was cut when they left."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        super().end()

    def rate(self, bits_per_s: str) -> None:
        """Limit what goes through it."""
        fresh = self.place / "rate-new"
        fresh.write_text(bits_per_s)
        fresh.replace(self.place / "rate")


@dataclass
class Donors:
    """All of them, by name."""

    plain: Donor
    relayed: Relayed
    filtered: Filtered
    spare: Donor

    def __getitem__(self, name: str) -> Donor:
        donor: Donor = getattr(self, name)
        return donor

    def all(self) -> list[Donor]:
        """Return them in order."""
        return [self.plain, self.relayed, self.filtered, self.spare]


def _memserver_argv(machine: Machine, size: str) -> list[str]:
    where = ["--bind", machine.address, "--port", str(NBD_PORT)]
    return [str(installed_build().memserver), *where, "--size", "1G", "--export", f"{EXPORT}={size}"]


def _nbdkit_argv(machine: Machine, size_bytes: int, place: Path) -> list[str]:
    # Without a description it could not show that it is the same again.
    filters = ["--filter=exportname", "--filter=error", "--filter=rate", "--filter=delay"]
    memory = place / "memory"
    (place / "rate").write_text("10G")
    memory.touch()
    os.truncate(memory, size_bytes)
    tuning = ["exportdesc=fixed:a file", f"rate-file={place / 'rate'}", "rdelay=1ms", "wdelay=1ms"]
    tuning += ["error-rate=33%", f"error-file={place / 'errors'}"]
    return ["nbdkit", "-f", "-i", machine.address, "-p", str(NBD_PORT), *filters, "file", str(memory), *tuning]


@contextlib.contextmanager
def chaos_donors(size_mib: int) -> Iterator[Donors]:
    """Run the donors, each lending ``size_mib``, until the end of the block."""
    size, size_bytes = f"{size_mib}M", size_mib << 20
    with machines(4) as made, short_dir() as place, contextlib.ExitStack() as stack:
        uris = [f"nbd://{machine.address}:{NBD_PORT}/{EXPORT}" for machine in made]
        uris[1] = f"nbd://{made[1].address}:{RELAY_PORT}/{EXPORT}"
        uris[2] = f"nbd://{made[2].address}:{NBD_PORT}"
        donors = Donors(
            plain=Donor("plain", made[0], _memserver_argv(made[0], size), uris[0], size_bytes),
            relayed=Relayed("relayed", made[1], _memserver_argv(made[1], size), uris[1], size_bytes),
            filtered=Filtered("filtered", made[2], _nbdkit_argv(made[2], size_bytes, place), uris[2], size_bytes),
            spare=Donor("spare", made[3], _memserver_argv(made[3], size), uris[3], size_bytes),
        )
        donors.filtered.place = place
        place.chmod(0o755)
        donors.relayed.start_relay()
        for donor in donors.all():
            donor.start()
            stack.callback(donor.end)
        yield donors
