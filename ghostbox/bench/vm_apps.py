# SPDX-License-Identifier: MIT
"""Measure programs that people use, in the guests: SQLite with a database larger than the local RAM, and Redis.

SQLite comes with the guest's Python. Redis has to be in the image, which the ordinary image does not have: it is built
with ``image.packages``, under another name, and chosen with ``--image``. Without Redis a note in its rows says so.
"""

from __future__ import annotations

import json

from ghostbox.bench import vm_guests, vm_reference
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source, at_least
from ghostbox.bench.vm_guests import Guest, Setup
from ghostbox.errors import GuestError

GHOSTBOX, SWAP = vm_guests.GHOSTBOX, vm_guests.SWAP
_TARGET = 2.0
_TIMEOUT_S = 900.0
# Redis is filled anew each time, key by key, in an emulated guest.
_FILL_TIMEOUT_S = 1800.0
_VALUE_BYTES = 1000
# The bytes that Redis takes for a key with such a value, by its own `used_memory` over many keys.
_KEY_BYTES = 1150
# The share of Redis's keys that are asked for; the other keys are idle.
_HOT_PART = 0.25
_REDIS_FACTOR = 1.2

# Rows are looked up by keys, spread over the file, of which a tenth gets 46 % of the look-ups (the cube of an even
# draw: 0.1 ^ (1/3) is 0.46). As in guest_load.c, the rate has settled when four windows are within 5 % of their mean.
_DATABASE = r"""
import json, random, sqlite3, sys, time
path, n_bytes, window_s, least_s, most_s = sys.argv[1], int(sys.argv[2]), *map(float, sys.argv[3:6])
ROW = 4000
n = n_bytes // (ROW + 30)
db = sqlite3.connect(path)
db.execute("pragma journal_mode=off"); db.execute("pragma synchronous=off"); db.execute("pragma mmap_size=0")
db.execute("create table if not exists t (id integer primary key, value blob)")
have = db.execute("select count(*) from t").fetchone()[0]
if have < n:
    draw = random.Random(1)
    db.executemany("insert into t values (?, ?)", ((i, draw.randbytes(ROW)) for i in range(have, n)))
    db.commit()
db.execute("pragma cache_size=-8192")
rates, began = [], time.monotonic()
while True:
    started, count = time.monotonic(), 0
    while time.monotonic() < started + window_s:
        for _ in range(16):
            key = int(n * random.random() ** 3) * 2654435761 % n
            if db.execute("select value from t where id = ?", (key,)).fetchone() is None:
                raise LookupError("a row is missing")
        count += 16
    rates.append(count / (time.monotonic() - started))
    last = rates[-4:]
    mean = sum(last) / len(last)
    passed = time.monotonic() - began
    agree = len(last) == 4 and all(abs(rate - mean) <= mean * 0.05 for rate in last)
    if len(last) == 4 and passed >= least_s and (agree or passed >= most_s):
        break
print(json.dumps({"per_s": mean, "settled": agree}))
"""

_REDIS = r"""
command -v redis-server redis-benchmark > /dev/null || exit 77
port=7379 directory=$(mktemp -d)
cd $directory
redis-server --port $port --save '' --appendonly no --daemonize yes --pidfile $directory/pid > /dev/null
ask() { redis-cli -p $port "$@"; }
trap 'ask shutdown nosave > /dev/null 2>&1; rm -rf $directory' EXIT
until ask ping > /dev/null 2>&1; do sleep 0.2; done
ask eval 'for i = 0, ARGV[1] - 1 do redis.call("set", string.format("key:%012d", i), string.rep("x", ARGV[2] - 12) ..
    string.format("%012d", i)) end return 1' 0 KEYS VALUE > /dev/null
i=0
while [ $i -lt WINDOWS ]; do
    i=$((i + 1))
    redis-benchmark -p $port -t get -r HOT -n REQUESTS -c 8 --csv | awk -F'"' '$2 == "GET" {print $4}'
done
"""


def scenarios(setup: Setup) -> list[Scenario]:
    """Return the scenarios."""
    n_times = f"{setup.scale.database:g} × local RAM"
    return [
        _scenario("database", f"SQLite: look-ups in a database of {n_times}", setup),
        _scenario("redis", f"Redis: reads of a part of its keys, {_REDIS_FACTOR:g} × local RAM", setup),
    ]


def _scenario(name: str, what: str, setup: Setup) -> Scenario:
    run = {"database": _database, "redis": _redis}[name]
    contenders = (
        Contender(GHOSTBOX, lambda: run(setup, GHOSTBOX), ours=name == "database"),
        Contender(SWAP, lambda: run(setup, SWAP), vm_reference.missing()),
        Contender(vm_guests.LOCAL, lambda: run(setup, vm_guests.LOCAL)),
    )
    notes = {
        SWAP: "the other guest has it on a disk over NBD (nbdkit memory)"
        if name == "database"
        else "it swaps over NBD",
        vm_guests.LOCAL: "a guest that has all of its memory on this machine",
    }
    targets = {SWAP: at_least(_TARGET), vm_guests.LOCAL: None}
    rows = tuple(
        RowSpec(what, "/s", Source(GHOSTBOX, "per_s"), (Source(who, "per_s"),), targets[who], notes[who])
        for who in (SWAP, vm_guests.LOCAL)
    )
    return Scenario(name, what, contenders, rows)


def _database(setup: Setup, name: str) -> Outcome:
    """Look up rows in a database that is made at the first run."""
    guest, scale = _guest(setup, name), setup.scale
    path = "/mnt/ghostbox-database" if name == SWAP else "/var/tmp/ghostbox-database"  # noqa: S108 - one user
    seconds = " ".join(f"{ms / 1000:g}" for ms in (scale.window_ms, scale.least_ms, scale.most_ms))
    words = f"python3 - {path} {scale.times_local(scale.database)} {seconds}"
    before = guest.counters()
    found = json.loads(_run(guest, words, _DATABASE, _TIMEOUT_S))
    counters = vm_guests.went(before, guest.counters())
    guest.forget_files()
    return Outcome({"per_s": float(found["per_s"]), "settled": float(found["settled"]), **counters})


def _redis(setup: Setup, name: str) -> Outcome:
    """Fill Redis with more than the local RAM and read a part of its keys again and again; the last windows count."""
    guest, scale = _guest(setup, name), setup.scale
    n_keys = scale.times_local(_REDIS_FACTOR) // _KEY_BYTES
    values = {
        "KEYS": n_keys,
        "VALUE": _VALUE_BYTES,
        "HOT": int(n_keys * _HOT_PART),
        "REQUESTS": n_keys // 8,
        "WINDOWS": 8,
    }
    script = _REDIS
    for word, value in values.items():
        script = script.replace(word, str(value))
    guest.settle()
    before = guest.counters()
    rates = [float(line) for line in _run(guest, "sh -s", script, _FILL_TIMEOUT_S).split()]
    last = rates[-4:]
    return Outcome({"per_s": sum(last) / len(last), **vm_guests.went(before, guest.counters())})


def _run(guest: Guest, words: str, script: str, timeout_s: float) -> str:
    done = guest.run(words, timeout_s, script)
    if done.status == 77:
        raise GuestError(
            "redis-server and redis-tools are not in the guest's image",
            why="for an image that has them, which --image redis then chooses:"
            " GHOSTBOX_IMAGE_PACKAGES=redis-server,redis-tools ghostbox image build --name redis",
        )
    if done.status != 0:
        why = done.stderr.strip() or None
        raise GuestError(f"a program in guest '{guest.name}' failed (status {done.status})", why=why)
    return done.stdout


def _guest(setup: Setup, name: str) -> Guest:
    found = vm_guests.kept(setup)[name]
    if name == GHOSTBOX:
        found.set_tiering("auto")
    return found
