# SPDX-License-Identifier: MIT
"""What deploying changes, and whether it can be done at all, follows from the facts of a machine."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from ghostbox.deploy import facts, plan
from ghostbox.deploy.facts import Facts, Place, Sudo
from ghostbox.deploy.plan import Needs, Start
from ghostbox.errors import GhostboxError, NotFound, Refused
from ghostbox.units import GIB, MIB

SYSTEM = Place("/opt/ghostbox", 8 * GIB)
HOME = Place("/srv/ana/.local/lib/ghostbox", 8 * GIB)
NEEDS = Needs("0.3-abc", "x86_64", (2, 34), 20 * MIB, 60 * MIB)
FACTS = Facts(
    kernel="Linux",
    machine="x86_64",
    host="tower",
    user="ana",
    home="/srv/ana",
    libc="glibc 2.36",
    glibc=(2, 36),
    python=(3, 11, 2),
    python_path="/usr/bin/python3",
    python_lacks="",
    sudo=Sudo.FREE,
    systemd=True,
    user_systemd=False,
    system_place=SYSTEM,
    home_place=HOME,
)
DEPLOYED = Place(
    "/opt/ghostbox", 8 * GIB, True, True, "0.2-abc", ("0.2-abc", "0.1-abc"), ("attic", "--size", "8G"), unit=True
)


def made(place: Place = SYSTEM, needs: Needs = NEEDS, **changed: object) -> plan.Plan:
    found = replace(FACTS, **changed)  # type: ignore[arg-type]
    return plan.make(found, "tower", needs, place, as_root=True, name="attic", arguments=("--size", "8G"))


def test_this_machine_says_all_facts() -> None:
    done = subprocess.run(["sh", "-s"], input=facts.script(), capture_output=True, check=True)
    found = facts.read(done.stdout.decode(), "tower")
    assert found.kernel == "Linux"
    assert found.glibc is not None
    assert found.glibc > (2, 17)
    assert found.python is not None
    assert found.python_lacks == ""
    assert found.system_place.path == "/opt/ghostbox"
    assert found.home_place.path == f"{found.home}/.local/lib/ghostbox"
    assert found.home_place.free_bytes > 0


def test_what_a_login_says_besides_is_passed_over() -> None:
    done = subprocess.run(["sh", "-s"], input=facts.script(), capture_output=True, check=True)
    quiet = done.stdout.decode()
    assert facts.read(f"Welcome!\nLast login=today\n{quiet}", "tower") == facts.read(quiet, "tower")


def test_facts_that_are_cut_off_are_none() -> None:
    with pytest.raises(GhostboxError, match="tower does not say what it is"):
        facts.read("kernel=Linux\nmachine=x86_64\n", "tower")


def test_a_new_donor() -> None:
    assert made().start is Start.SERVICE
    assert made().changes == (
        "copy 20 MiB to /opt/ghostbox/versions/0.3-abc, as root",
        "let /opt/ghostbox/current be 0.3-abc",
        "link /usr/local/bin/ghostbox, unless something is there",
        "write and start ghostbox-donor.service: memserver --size 8G",
        "pair this host with donor 'attic', unless it is, and note it for `ghostbox up`",
    )


def test_an_upgrade_says_what_it_replaces_and_that_leases_stay() -> None:
    assert made(DEPLOYED).changes == (
        "copy 20 MiB to /opt/ghostbox/versions/0.3-abc, as root",
        "let /opt/ghostbox/current be 0.3-abc, instead of 0.2-abc",
        "write and start ghostbox-donor.service: memserver --size 8G; leases stay",
        "pair this host with donor 'attic', unless it is, and note it for `ghostbox up`",
    )


def test_a_version_that_is_there_is_not_copied_however_full_the_disk_is() -> None:
    place = replace(DEPLOYED, current="0.3-abc", versions=("0.3-abc",), free_bytes=0)
    assert made(place).is_there
    assert made(place).changes[0].startswith("write and start ghostbox-donor.service")


def test_each_user_has_a_systemd_of_its_own() -> None:
    assert made(HOME).start is Start.BACKGROUND
    assert made(HOME, user_systemd=True).start is Start.SERVICE
    assert made(SYSTEM, systemd=False, user_systemd=True).start is Start.BACKGROUND


@pytest.mark.parametrize(
    ("place", "changed", "text"),
    [
        (SYSTEM, {"glibc": (2, 31), "libc": "glibc 2.31"}, "the C library of tower is too old: glibc 2.31"),
        (
            replace(SYSTEM, free_bytes=100 * MIB),
            {},
            "the disk of tower is too full: 100 MiB are free for /opt/ghostbox",
        ),
        (
            replace(SYSTEM, exists=True),
            {},
            "/opt/ghostbox of tower exists, and `ghostbox donor deploy` has not made it",
        ),
        (replace(SYSTEM, unit=True), {}, "tower has a service ghostbox-donor already"),
        (
            replace(DEPLOYED, arguments=("shelf",)),
            {},
            "the donor on tower is called 'shelf', and its leases are that name",
        ),
    ],
)
def test_what_is_in_the_way_is_said(place: Place, changed: dict[str, object], text: str) -> None:
    with pytest.raises(Refused, match=text):
        made(place, NEEDS, **changed)


@pytest.mark.parametrize(
    ("libc", "glibc"),
    [
        ("glibc 2.36", (2, 36)),
        ("ldd (Debian GLIBC 2.41-12) 2.41", (2, 41)),
        ("ldd (GNU libc) 2.38", (2, 38)),
        ("musl libc (x86_64)", None),
        ("", None),
    ],
)
def test_c_libraries_are_told_apart(libc: str, glibc: tuple[int, ...] | None) -> None:
    assert facts.read(f"libc={libc}\nsudo=root\nend=yes\n", "tower").glibc == glibc


def test_rights() -> None:
    def chosen(sudo: Sudo, *, user: bool = False, may_ask: bool = False) -> tuple[Place, bool]:
        return plan.chosen(replace(FACTS, sudo=sudo), "tower", user=user, may_ask=may_ask)

    assert chosen(Sudo.ROOT) == (SYSTEM, False)
    assert chosen(Sudo.FREE) == (SYSTEM, True)
    assert chosen(Sudo.ASKS, may_ask=True) == (SYSTEM, True)
    assert chosen(Sudo.MISSING, user=True) == (HOME, False)
    with pytest.raises(Refused, match="ana may not install for all of tower"):
        chosen(Sudo.ASKS)
    with pytest.raises(Refused, match="ana may not install for all of tower"):
        chosen(Sudo.MISSING, may_ask=True)


def test_what_is_removed_is_what_was_deployed() -> None:
    with pytest.raises(NotFound, match="no donor was deployed on tower"):
        plan.removable(FACTS, "tower", user=False, may_ask=False)
    for_all = replace(FACTS, system_place=DEPLOYED)
    assert plan.removable(for_all, "tower", user=False, may_ask=False) == (DEPLOYED, True)
    with pytest.raises(NotFound, match="no donor was deployed on tower"):
        plan.removable(for_all, "tower", user=True, may_ask=False)
    of_ana = replace(FACTS, home_place=replace(HOME, exists=True, ours=True))
    assert plan.removable(of_ana, "tower", user=False, may_ask=False) == (of_ana.home_place, False)
