"""What may stand in a page, by the journal: the model that the checks rest on.

A write is [begun, ended): line numbers of the journal; it never ended if it failed or was cut off. Write `a` is older
than `b` for certain if a.ended < b.begun; otherwise they ran at the same time, and any order will do.

A write is *guaranteed* at a line if it ended before: for a look at what a reader saw, the line at which the read
began; after a node's crash, the line at which the last flush that returned began; after a worker's crash, the end.
A page may hold the content of any write that had begun, unless a guaranteed one is certainly newer. What the page held
at the beginning counts as a write that ended before everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tools.soaklib.journal import Line
from tools.soaklib.pages import PAGE

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
    """kind: w, r or f. floors: of a read, the newest certain write of each page when it began."""

    kind: str
    time_s: float
    begun: int
    space: int
    first: int = 0
    count: int = 0
    version: int = 0
    ended: float = math.inf
    floors: list[float] = field(default_factory=list)

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
        self.initial = initial or {}
        self.findings: list[Finding] = []
        self.writes = self.reads = self.flushes = self.errors = self.errors_after = 0
        self.pause_s = 0.0
        self.flushed: dict[int, float] = {}
        self.names: dict[int, list[str]] = {}
        self.hanging = 0
        self._pages: dict[Place, list[_Operation]] = {}
        self._newest: dict[Place, float] = {}
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
        return {*self._pages, *self.initial}

    def check(self, found: Mapping[Place, int], floors: Mapping[int, float] | float, when: str) -> list[Finding]:
        """Compare what stands in all pages now with what may. floors: the guaranteed line, by space or for all."""
        findings: list[Finding] = []
        for place in sorted({*found, *self.places()}):
            line = floors if isinstance(floors, float) else floors.get(place[0], -1.0)
            writes = self._pages.get(place, [])
            floor = max((write.begun for write in writes if write.ended < line), default=-1)
            finding = self._judge(place, found.get(place, 0), float(floor), math.inf, when)
            if finding and len(findings) < MOST_FINDINGS:
                findings.append(finding)
        return findings

    def _begin(self, number: int, line: Line) -> _Operation:
        operation = _Operation(line[1], float(line[0]), number, int(line[3]))
        if operation.kind != "f":
            operation.first, operation.count = int(line[4]) // PAGE, int(line[5]) // PAGE
        if operation.kind == "w":
            operation.version = int(line[6])
            for place in operation.places:
                self._pages.setdefault(place, []).append(operation)
        elif operation.kind == "r":
            operation.floors = [self._newest.get(place, -1.0) for place in operation.places]
        return operation

    def _end(self, operation: _Operation, number: int, line: Line) -> None:
        if not self._marked:
            self.pause_s = max(self.pause_s, float(line[0]) - operation.time_s)
        if operation.kind == "w":
            self.writes += 1
            operation.ended = number
            for place in operation.places:
                if self._newest.get(place, -1.0) < operation.begun:
                    self._newest[place] = operation.begun
        elif operation.kind == "f":
            self.flushes += 1
            self.flushed[operation.space] = max(operation.begun, self.flushed.get(operation.space, -1))
        else:
            self.reads += 1
            if self._marked:
                return  # a node that was taken over may show what is not current any more
            found = map(int, line[3].split(","))
            for place, floor, version in zip(operation.places, operation.floors, found, strict=True):
                finding = self._judge(place, version, floor, number, f"read at line {operation.begun + 1}")
                if finding and len(self.findings) < MOST_FINDINGS:
                    self.findings.append(finding)

    def _judge(self, place: Place, version: int, floor: float, end: float, when: str) -> Finding | None:
        """floor: where the newest guaranteed write of the page began."""
        writes = [w for w in self._pages.get(place, ()) if w.version == version and w.begun < end]
        first = self.initial.get(place, 0) == version
        if any(write.ended > floor for write in writes) or (first and floor < 0):
            return None
        where = f"page {place[1]} of {place[0]} holds version {version} ({when})"
        if not writes and not first:
            return Finding("foreign", f"{where}, which was never written there")
        return Finding("lost", f"{where}, older than the write of line {int(floor) + 1}, which was guaranteed")
