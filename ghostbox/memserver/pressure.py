# SPDX-License-Identifier: MIT
"""Read whether a donor is short of memory, from the kernel's pressure stall information (PSI, kernel: accounting/psi).

The line ``some avg10=12.50 avg60=3.10 …`` has the share of the last 10 and 60 s in which at least one task waited for
memory. A donor can be told to drain by itself above a limit (``memserver.drain_on_pressure``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import Refused

_SOME = re.compile(r"^some avg10=(?P<avg10>\d+\.\d+) avg60=(?P<avg60>\d+\.\d+) ", re.MULTILINE)


@dataclass(frozen=True)
class Pressure:
    """Holds shares of time, in percent."""

    avg10: float
    avg60: float


@dataclass(frozen=True)
class PressureLimit:
    """Is the limit at which to drain: when ``avg10`` of ``path`` reaches ``percent``."""

    percent: float
    path: Path

    def crossed(self, now: Pressure, *, draining: bool) -> bool:
        """Tell whether to drain.

        A drain ends only when the last 10 s are below half the limit and the last minute is below the limit: memory
        that was moved away must not come back in the next quiet moment.
        """
        if draining:
            return now.avg10 >= self.percent / 2 or now.avg60 >= self.percent
        return now.avg10 >= self.percent


def read_pressure(path: Path) -> Pressure:
    """Return the pressure in the file ``path``: ``/proc/pressure/memory``, or ``memory.pressure`` of a control group.

    Raises:
        Refused: there is no such file, or it has another format.
    """
    hint = "start the kernel with psi=1, choose another --pressure-file, or leave --drain-on-pressure out"
    try:
        text = path.read_text()
    except OSError as err:
        raise Refused(f"cannot read the memory pressure from {path}: {err.strerror}", hint=hint) from err
    found = _SOME.search(text)
    if found is None:
        raise Refused(
            f"cannot read the memory pressure from {path}: it has no line 'some avg10=… avg60=…'",
            hint=hint,
        )
    return Pressure(float(found["avg10"]), float(found["avg60"]))
