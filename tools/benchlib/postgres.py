"""A PostgreSQL cluster of the benchmark's own: no network socket, run as the user postgres, gone with its directory."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.benchlib.peers.start import MissingPeerError

__all__ = ["PgbenchResult", "Postgres", "parse_pgbench"]

_PLACES = Path("/usr/lib/postgresql")


@dataclass(frozen=True, slots=True)
class PgbenchResult:
    """What pgbench reported."""

    transactions: int
    tps: float


class Postgres:
    """data: the cluster's directory, on the disk. sockets: another one, for its socket and its log."""

    def __init__(self, data: Path, sockets: Path) -> None:
        places = sorted(_PLACES.glob("*/bin/initdb"))
        if not places:
            raise MissingPeerError("PostgreSQL is not installed", "tools/setup installs it")
        self._programs = places[-1].parent
        self._data = data
        self._sockets = sockets

    def call(self, program: str, *words: str) -> str:
        """Run one of PostgreSQL's programs to its end; RuntimeError with its own words if it fails."""
        variables = ["env", "-i", "PATH=/usr/bin:/bin", "LC_ALL=C", f"PGHOST={self._sockets}"]
        command = ["runuser", "-u", "postgres", "--", *variables, str(self._programs / program), *words]
        done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout

    def create(self) -> None:
        """Make the cluster; the directory above `data` becomes postgres's."""
        self._sockets.mkdir(exist_ok=True)
        for path in (self._sockets, self._data.parent):
            subprocess.run(["chown", "postgres", str(path)], check=True)
        self.call("initdb", "--auth=peer", "--no-instructions", "-D", str(self._data))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Started, and stopped with a checkpoint; after an error at once, without."""
        options = f"-c listen_addresses='' -k {self._sockets} -c shared_buffers=64MB"
        mode = "immediate"
        log = str(self._sockets / "log")
        try:
            self.call("pg_ctl", "start", "-w", "-s", "-D", str(self._data), "-l", log, "-o", options)
            yield
            mode = "fast"
        finally:
            if (self._data / "postmaster.pid").exists():
                self.call("pg_ctl", "stop", "-w", "-s", "-m", mode, "-D", str(self._data))

    def bench(self, clients: int, seconds: float) -> PgbenchResult:
        """pgbench's TPC-B-like load for so many (whole) seconds."""
        words = ["-n", "-c", str(clients), "-j", "2", "-T", str(max(1, round(seconds))), "postgres"]
        return parse_pgbench(self.call("pgbench", *words))


def parse_pgbench(output: str) -> PgbenchResult:
    """Raises RuntimeError if a transaction failed or a figure is missing."""
    done = re.search(r"number of transactions actually processed: (\d+)", output)
    tps = re.search(r"tps = ([\d.]+)", output)
    failed = re.search(r"number of failed transactions: (\d+)", output)
    if not done or not tps or (failed and int(failed[1])):
        raise RuntimeError(f"pgbench: {output.strip()[-300:]}")
    return PgbenchResult(int(done[1]), float(tps[1]))
