"""Databases on ext4: SQLite commits, and PostgreSQL under pgbench with 8 clients. 2 ms of service time.

SQLite: one row of 100 bytes a transaction, synchronous=FULL, with the write-ahead log and with the rollback journal.
PostgreSQL: a cluster of its own, pgbench's TPC-B-like transactions. `requests_per_commit` is the number of Put Page
calls for each transaction, checkpoints and the file system's journal included. The cache modes take turns, and a figure
is of all rounds together: a virtual machine is not equally fast all the time.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from tools.benchlib import ext4
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.figures import Setting
from tools.benchlib.meter import counted
from tools.benchlib.place import Place, open_place
from tools.benchlib.postgres import Postgres
from tools.benchlib.tables import column

__all__ = ["SECTION", "SERVICE_MS", "commit_for"]

SERVICE_MS = 2.0
_SIZE = 2 << 30  # bytes of the disk
_CLIENTS = 8
_CACHES = ("none", "readwrite")


def _measure(bench: Bench) -> None:
    with open_place(0) as place:
        disk = place.make_disk("databases", _SIZE)
        with place.attached(disk) as device:
            ext4.make(device)
        place.server.configure(latency_ms=SERVICE_MS)
        for mode in ("WAL", "DELETE"):
            found = {cache: _Sum() for cache in _CACHES}
            for number in range(bench.plan.database_rounds):
                for cache, figures in found.items():
                    _sqlite(bench, place, disk, mode, cache, number, figures)
            _add(bench, "SQLite", mode, found, 1)
        with bench.optional("PostgreSQL"):
            _postgres(bench, place, disk)


@dataclass(slots=True)
class _Sum:
    """Of the rounds of one cache mode."""

    commits: int = 0
    seconds: float = 0.0
    requests: int = 0

    def add(self, commits: int, seconds: float, count: counted) -> None:
        self.commits += commits
        self.seconds += seconds
        self.requests += count.requests("put_page", "clear_page")


def _sqlite(bench: Bench, place: Place, disk: str, mode: str, cache: str, number: int, figures: _Sum) -> None:
    with place.attached(disk, "--cache", cache) as device, ext4.mounted(device, place.root) as point:
        path = point / f"{mode}-{cache}-{number}.db"
        with counted(place.meter()) as count:
            commits = commit_for(path, mode, bench.plan.database_s)
    figures.add(commits, count.seconds, count)


def commit_for(path: Path, mode: str, seconds: float) -> int:
    """Commit transactions of one row for so many seconds; returns how many."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode={mode}")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE entries (number INTEGER PRIMARY KEY, content BLOB)")
        deadline = time.monotonic() + seconds
        commits = 0
        while time.monotonic() < deadline:
            database.execute("INSERT INTO entries (content) VALUES (?)", (bytes(100),))
            commits += 1
    return commits


def _postgres(bench: Bench, place: Place, disk: str) -> None:
    """The cluster is made once, with no service time; each cache mode then finds the same data."""
    plan = bench.plan
    postgres = Postgres(place.root / "mnt" / "data", place.root / "pg")
    place.server.configure(latency_ms=0)
    with place.attached(disk) as device, ext4.mounted(device, place.root):
        postgres.create()
        with postgres.running():
            postgres.call("pgbench", "-q", "-i", "-s", str(plan.pgbench_scale), "postgres")
    place.server.configure(latency_ms=SERVICE_MS)
    sums = {cache: _Sum() for cache in _CACHES}
    for _ in range(plan.database_rounds):
        for cache, figures in sums.items():
            with place.attached(disk, "--cache", cache) as device, ext4.mounted(device, place.root), postgres.running():
                postgres.call("psql", "-X", "-q", "-d", "postgres", "-c", "CHECKPOINT")
                with counted(place.meter()) as count:
                    found = postgres.bench(_CLIENTS, plan.database_s)
            figures.add(found.transactions, found.transactions / max(found.tps, 1e-9), count)
    _add(bench, "PostgreSQL", f"pgbench -c {_CLIENTS}", sums, _CLIENTS)


def _add(bench: Bench, engine: str, load: str, found: dict[str, _Sum], clients: int) -> None:
    for cache, figures in found.items():
        rate = figures.commits / max(figures.seconds, 1e-9)
        values = {
            "commits_per_s": rate,
            "mean_ms": clients / max(rate, 1e-9) * 1000,
            "requests_per_commit": figures.requests / max(figures.commits, 1),
        }
        setting: dict[str, Setting] = {
            "engine": engine,
            "load": load,
            "cache": cache,
            "service_ms": SERVICE_MS,
            "clients": clients,
        }
        bench.add(OURS, setting, values)


SECTION = Section(
    "databases",
    f"Databases on ext4, {SERVICE_MS:g} ms of service time",
    (
        column("engine", "engine"),
        column("load", "load"),
        column("cache", "cache"),
        column("commits/s", "commits_per_s"),
        column("ms per commit and client", "mean_ms", "one"),
        column("Put Page per commit", "requests_per_commit", "one"),
    ),
    _measure,
)
