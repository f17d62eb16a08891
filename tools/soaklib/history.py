"""A journal as a history of a disk: what its reads may have seen, what its pages may hold after a crash.

The rule is that of blobfuse_dysk/testing/pages.py; its moments are the line numbers of the journal. A write is
guaranteed, for a look at what a reader saw, at the line at which the read began; after a node's crash, at the line at
which the last flush that returned began; after a worker's crash, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from blobfuse_dysk.testing.pages import PAGE, PageModel, Write
from tools.soaklib.journal import Line

__all__ = ["Finding", "History", "Place"]

Place = tuple[int, int]  # space, number of the page in it
MOST_FINDINGS = 10  # in one check; more of the same tell nothing


@dataclass(frozen=True, slots=True)
class Finding:
    """kind: `foreign` (never written there), `lost` (older than guaranteed), `io-error`, `hang`, `check`..."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


@dataclass(slots=True)
class _Operation:
    """kind: w, r or f. write: what the model knows a write as."""

    kind: str
    time_s: float
    begun: int
    space: int
    first: int = 0
    count: int = 0
    write: Write[Place, int] | None = None

    @property
    def places(self) -> list[Place]:
        return [(self.space, page) for page in range(self.first, self.first + self.count)]


class History:
    """What a journal tells. initial: what pages held before; a page that is not in there held zeros.

    errors: before a kill or a takeover was marked, and errors_after. flushed: by space, the line at which the last
    flush that returned had begun. pause_s: the longest time that a successful operation before the mark took.
    names: by space, the name events in order.
    """

    def __init__(self, initial: Mapping[Place, int] | None = None) -> None:
        self._model = PageModel[Place, int](0, initial)
        self.findings: list[Finding] = []
        self.writes = self.reads = self.flushes = self.errors = self.errors_after = 0
        self.pause_s = 0.0
        self.flushed: dict[int, float] = {}
        self.names: dict[int, list[str]] = {}
        self.hanging = 0
        self._marked = False

    def follow(self, lines: Iterable[Line]) -> None:
        """Take a whole journal in, and check each of its reads."""
        running: dict[str, _Operation] = {}
        for number, line in enumerate(lines):
            kind, key = line[1], line[2]
            if kind in "wrf":
                running[key] = self._begin(number, line)
            elif kind == "+":
                self._end(running.pop(key), number, line)
            elif kind == "!":
                del running[key]
                self.errors += not self._marked
                self.errors_after += self._marked
            elif kind == "n":
                self.names.setdefault(int(line[3]), []).append(key)
            elif key in ("kill", "takeover"):
                self._marked = True
        self.hanging = len(running)

    def places(self) -> set[Place]:
        """Every page that was written to, or held something before."""
        return self._model.places()

    def check(self, found: Mapping[Place, int], floors: Mapping[int, float] | float, when: str) -> list[Finding]:
        """Compare what stands in all pages now with what may. floors: the guaranteed line, by space or for all."""
        findings: list[Finding] = []
        for place in sorted({*found, *self.places()}):
            line = floors if isinstance(floors, float) else floors.get(place[0], -1.0)
            self._judge(findings, place, found.get(place, 0), line, math.inf, when)
        return findings

    def _begin(self, number: int, line: Line) -> _Operation:
        operation = _Operation(line[1], float(line[0]), number, int(line[3]))
        if operation.kind != "f":
            operation.first, operation.count = int(line[4]) // PAGE, int(line[5]) // PAGE
        if operation.kind == "w":
            operation.write = self._model.begin(dict.fromkeys(operation.places, int(line[6])), at=number)
        return operation

    def _end(self, operation: _Operation, number: int, line: Line) -> None:
        if not self._marked:
            self.pause_s = max(self.pause_s, float(line[0]) - operation.time_s)
        if operation.write is not None:
            self.writes += 1
            self._model.end(operation.write, at=number)
        elif operation.kind == "f":
            self.flushes += 1
            self.flushed[operation.space] = max(operation.begun, self.flushed.get(operation.space, -1))
        else:
            self.reads += 1
            if self._marked:
                return  # a node that was taken over may show what is not current any more
            found = map(int, line[3].split(","))
            for place, version in zip(operation.places, found, strict=True):
                self._judge(
                    self.findings, place, version, operation.begun, number, f"read at line {operation.begun + 1}"
                )

    def _judge(
        self, findings: list[Finding], place: Place, version: int, since: float, until: float, when: str
    ) -> None:
        doubt = self._model.doubt(place, version, since, until)
        if doubt is None or len(findings) >= MOST_FINDINGS:
            return
        where = f"page {place[1]} of {place[0]} holds version {version} ({when})"
        if doubt.lost:
            text = f"{where}, older than the write of line {doubt.since + 1}, which was guaranteed"
            findings.append(Finding("lost", text))
        else:
            findings.append(Finding("foreign", f"{where}, which was never written there"))
