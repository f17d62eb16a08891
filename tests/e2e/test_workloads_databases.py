"""PostgreSQL and SQLite on mounted disks: they commit, crash, recover, move to another mount, and check themselves."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.e2e.kit import Node, node, service_node, until
from tests.e2e.loads import FSCK, call

__all__ = ["node", "service_node"]

SUMS = """SELECT (SELECT sum(delta) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts),
 (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(bbalance) FROM pgbench_branches),
 (SELECT count(*) FROM pgbench_history)"""


class Postgres:
    """A cluster of the test's own in a directory, without a network socket, run as the user postgres."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data = data
        self.sockets = sockets
        places = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_checksums"))
        need(places, "PostgreSQL is not installed")
        self.programs = places[-1].parent

    def call(self, program: str, *words: str) -> str:
        variables = ("env", "-i", "PATH=/usr/bin:/bin", "LC_ALL=C", f"PGHOST={self.sockets}")
        return call("runuser", "-u", "postgres", "--", *variables, str(self.programs / program), *words)

    def create(self) -> None:
        self.call("initdb", "--data-checksums", "--auth=peer", "--no-instructions", "-D", str(self.data))

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self.sockets} -c shared_buffers=16MB -c checkpoint_timeout=30s"
        self.call("pg_ctl", "start", "-w", "-D", str(self.data), "-l", str(self.sockets / "log"), "-o", options)

    def stop(self, mode: str) -> None:
        self.call("pg_ctl", "stop", "-w", "-m", mode, "-D", str(self.data))

    def sql(self, statement: str) -> str:
        return self.call("psql", "-X", "-At", "-d", "postgres", "-c", statement).strip()

    def check(self) -> int:
        """The books must balance and every index must agree with its table; returns the transactions."""
        history, accounts, tellers, branches, count = self.sql(SUMS).split("|")
        assert (history or "0") == accounts == tellers == branches
        self.call("pg_amcheck", "--database=postgres", "--heapallindexed", "--parent-check", "--install-missing")
        return int(count)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Ended at once if the test fails; else the test itself ends it."""
        self.start()
        try:
            yield
        finally:
            if (self.data / "postmaster.pid").exists():
                self.stop("immediate")


def test_a_postgresql_that_was_killed_has_all_it_committed(service_node: Node) -> None:
    node = service_node
    node.dirs.root.chmod(0o711)  # the user postgres has to come through
    sockets = node.dirs.root / "pg"
    sockets.mkdir()
    disk = node.create()
    assert node.mount(disk, "fstype=ext4").code == 0
    postgres = Postgres(node.mountpoint / "data", sockets)
    for path in (sockets, node.mountpoint):
        call("chown", "postgres", str(path))
    postgres.create()
    with postgres.running():
        postgres.call("pgbench", "-q", "-i", "-s", "1", "postgres")
        postgres.call("pgbench", "-n", "-c", "4", "-j", "2", "-t", "50", "postgres")
        assert postgres.check() == 200
        bench = subprocess.Popen(
            ["runuser", "-u", "postgres", "--", "env", f"PGHOST={sockets}", str(postgres.programs / "pgbench"),
             "-n", "-c", "4", "-T", "60", "postgres"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: int(postgres.sql("SELECT count(*) FROM pgbench_history")) > 300, "transactions")
        postgres.stop("immediate")  # a crash, with transactions in progress
        assert bench.wait(30) != 0
    with postgres.running():  # recovery from the log
        count = postgres.check()
        assert count > 300
        postgres.stop("fast")
    postgres.call("pg_checksums", "--check", "-D", str(postgres.data))
    assert node.umount().code == 0
    assert node.nothing_left()

    device = node.ok("attach", disk, "--read-only").strip()
    call(*FSCK["ext4"], device)
    node.ok("detach", disk)
    assert node.mount(disk).code == 0
    postgres.call("pg_checksums", "--check", "-D", str(postgres.data))
    with postgres.running():
        assert postgres.check() == count
        postgres.stop("fast")
    assert node.umount().code == 0
    assert node.nothing_left()


WRITER = """
import sqlite3, sys
path, mode, first = sys.argv[1], sys.argv[2], int(sys.argv[3])
database = sqlite3.connect(path, isolation_level=None)
database.execute(f"PRAGMA journal_mode={mode}")
database.execute("PRAGMA synchronous=FULL")
database.execute("CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, twice INTEGER, text TEXT)")
database.execute("CREATE INDEX IF NOT EXISTS twices ON entries (twice)")
for number in range(first, first + 100_000):
    database.execute("BEGIN")
    database.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, 2 * number, "x" * (number % 3000)))
    database.execute("UPDATE entries SET text = 'y' || text WHERE number = ?", (number // 2,))
    database.execute("COMMIT")
    print(number, flush=True)
"""


def write_until_killed(path: Path, mode: str, first: int, commits: int) -> int:
    """Commit at least so many times, then SIGKILL; returns the last number that was said to be committed."""
    words = [sys.executable, "-c", WRITER, str(path), mode, str(first)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(commits)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout if line.endswith("\n")]
    return told[-1]


def look(path: Path, last: int) -> int:
    """All that was committed is there, and at most the one commit that was not told of; returns the last number."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        numbers = [int(number) for (number,) in database.execute("SELECT number FROM entries ORDER BY number")]
        wrong = database.execute("SELECT count(*) FROM entries WHERE twice != 2 * number").fetchone()
    assert numbers[: last + 1] == list(range(last + 1))
    assert len(numbers) - (last + 1) in (0, 1)
    assert wrong == (0,)
    return int(numbers[-1])


@pytest.mark.parametrize("mode", ["WAL", "DELETE", "TRUNCATE"])
def test_an_sqlite_that_was_killed_has_all_it_committed(node: Node, mode: str) -> None:
    disk = node.create()
    path = node.mountpoint / "entries.db"
    last = -1
    assert node.mount(disk, "fstype=xfs" if mode == "WAL" else "fstype=ext4").code == 0
    for _ in range(3):
        last = look(path, write_until_killed(path, mode, last + 1, 40))
        copy = path.with_name("copy.db")
        copy.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("VACUUM INTO ?", (str(copy),))
        look(copy, last)
    assert node.umount().code == 0
    assert node.mount(disk).code == 0
    look(path, last)
    look(path.with_name("copy.db"), last)
    assert node.umount().code == 0
    assert node.nothing_left()
