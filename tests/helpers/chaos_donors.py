# SPDX-License-Identifier: MIT
"""Run donors that can be killed, stopped, cut off, slowed down and made to lie, each in a namespace of its own."""

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

from ghostbox.system import processes
from helpers import chaos_relay, gnutls
from helpers.nbd import system_python
from helpers.netns import Machine, machines
from helpers.pager import READY_TIMEOUT_S, _end, _read_line, installed_build, short_dir

NBD_PORT, RELAY_PORT = 10809, 10819
EXPORT = "x"
_KEY = "a1" * 32

_ROT = """
h.set_uri_allow_local_file(True)
h.connect_uri({uri!r})
for offset, mask in {masks!r}:
    h.pwrite(bytes([h.pread(1, offset)[0] ^ mask]), offset)
h.shutdown()
"""


@dataclass
class Donor:
    """Is a memory server in a namespace: ``argv`` is run there, at the start and after each kill.

    ``uri`` is the URI that the pager has, ``own_uri`` that of the server itself.
    """

    name: str
    machine: Machine
    argv: Sequence[str]
    uri: str
    own_uri: str
    export_bytes: int
    process: subprocess.Popen[str] = field(init=False)
    cuts: int = 0
    stopped: bool = False

    @property
    def reachable(self) -> bool:
        """Tell whether the donor could answer now."""
        return not self.cuts and not self.stopped and self.process.poll() is None

    def start(self) -> None:
        """Run the server, with empty memory."""
        self.process = subprocess.Popen([*self.machine.prefix, *self.argv], stdout=subprocess.PIPE, text=True)
        self.stopped = False
        assert _read_line(self.process, self.name).startswith("listening on ")

    def kill(self) -> None:
        """Kill the server (SIGKILL): its memory is gone."""
        self.process.kill()
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> None:
        """Stop the server (SIGSTOP)."""
        self.process.send_signal(signal.SIGSTOP)
        self.stopped = True

    def resume(self) -> None:
        """Resume the server (SIGCONT)."""
        self.process.send_signal(signal.SIGCONT)
        self.stopped = False

    def cut(self, *, far: bool) -> None:
        """Take the link down, at the host's end (connecting fails at once) or at the donor's (packets are lost)."""
        self.cuts += 1
        self._link("down", far)

    def heal(self, *, far: bool) -> None:
        """Take the link up again."""
        self.cuts -= 1
        self._link("up", far)

    def _link(self, state: str, far: bool) -> None:
        at = ["-n", self.machine.namespace, "link", "set", "eth0"] if far else ["link", "set", self.machine.cable]
        subprocess.run(["ip", *at, state], check=True, timeout=20)

    def rot(self, n: int, seed: int) -> None:
        """Change a bit in each of ``n`` places of the server's memory, without the knowledge of any program."""
        chance = random.Random(seed)
        masks = [(chance.randrange(self.export_bytes), 1 << chance.randrange(8)) for _ in range(n)]
        script = _ROT.format(uri=self.own_uri, masks=masks)
        subprocess.run(["nbdsh", "-c", script], env=system_python(), check=True, timeout=30)

    def end(self) -> None:
        """End the server in whatever state."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        _end(self.process)


class Relayed(Donor):
    """Is a memory server behind a relay that flips bits."""

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
        """Send the relay a command; return how much harm it has done so far."""
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
    """Is an nbdkit: slower than the other donors, with a rate limit and with errors on request.

    Its memory is a file, so the memory outlives the process: nbdkit 1.32 itself ends now and then, by an assertion on a
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
        """Let every third request fail, or none."""
        switch = self.place / "errors"
        if on:
            switch.touch()
        else:
            switch.unlink(missing_ok=True)

    def end(self) -> None:
        """Kill the server: SIGTERM would wait for clients whose link was cut when they left."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        super().end()

    def rate(self, bits_per_s: str) -> None:
        """Limit the server's rate."""
        fresh = self.place / "rate-new"
        fresh.write_text(bits_per_s)
        fresh.replace(self.place / "rate")


@dataclass
class Donors:
    """Holds all donors, by name."""

    plain: Donor
    relayed: Relayed
    filtered: Filtered
    spare: Donor

    def __getitem__(self, name: str) -> Donor:
        donor: Donor = getattr(self, name)
        return donor

    def all(self) -> list[Donor]:
        """Return the donors in order."""
        return [self.plain, self.relayed, self.filtered, self.spare]


def _memserver_argv(machine: Machine, size: str, keys: Path | None = None) -> list[str]:
    where = ["--bind", machine.address, "--port", str(NBD_PORT)]
    tls = ["--tls", "require", "--tls-psk", str(keys)] if keys else []
    return [str(installed_build().memserver), *where, "--size", "1G", "--export", f"{EXPORT}={size}", *tls]


def _nbdkit_argv(machine: Machine, size_bytes: int, place: Path, keys: Path | None) -> list[str]:
    # By the description the pager recognizes the server after a restart.
    filters = ["--filter=exportname", "--filter=error", "--filter=rate", "--filter=delay"]
    memory = place / "memory"
    (place / "rate").write_text("10G")
    memory.touch()
    os.truncate(memory, size_bytes)
    tuning = ["exportdesc=fixed:a file", f"rate-file={place / 'rate'}", "rdelay=1ms", "wdelay=1ms"]
    tuning += ["error-rate=33%", f"error-file={place / 'errors'}"]
    tls = ["--tls=require", f"--tls-psk={keys}"] if keys else []
    return ["nbdkit", "-f", "-i", machine.address, "-p", str(NBD_PORT), *tls, *filters, "file", str(memory), *tuning]


def _uri(machine: Machine, export: str, keys: Path | None) -> str:
    where = f"{machine.address}:{NBD_PORT}/{export}"
    return f"nbds://{EXPORT}@{where}?tls-psk-file={keys}" if keys else f"nbd://{where}"


@contextlib.contextmanager
def chaos_donors(size_mib: int, *, tls: bool = False) -> Iterator[Donors]:
    """Run the donors, each lending ``size_mib``, until the end of the block.

    With ``tls`` all donors but the relayed one demand TLS: the relay has to read the bytes that pass.
    """
    size, size_bytes = f"{size_mib}M", size_mib << 20
    with machines(4) as made, short_dir() as place, contextlib.ExitStack() as stack:
        keys = gnutls.key_file(place / "keys.psk", **{EXPORT: _KEY}) if tls else None
        sealed, spare = _uri(made[0], EXPORT, keys), _uri(made[3], EXPORT, keys)
        behind, kit = _uri(made[1], EXPORT, None), _uri(made[2], "", keys)
        relay = f"nbd://{made[1].address}:{RELAY_PORT}/{EXPORT}"
        kit_argv = _nbdkit_argv(made[2], size_bytes, place, keys)
        donors = Donors(
            plain=Donor("plain", made[0], _memserver_argv(made[0], size, keys), sealed, sealed, size_bytes),
            relayed=Relayed("relayed", made[1], _memserver_argv(made[1], size), relay, behind, size_bytes),
            filtered=Filtered("filtered", made[2], kit_argv, kit, kit, size_bytes),
            spare=Donor("spare", made[3], _memserver_argv(made[3], size, keys), spare, spare, size_bytes),
        )
        donors.filtered.place = place
        place.chmod(0o755)
        donors.relayed.start_relay()
        for donor in donors.all():
            donor.start()
            stack.callback(donor.end)
        yield donors
