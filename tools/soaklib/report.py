"""What the rounds found and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tools.soaklib.history import Finding, History
from tools.soaklib.place import Place

__all__ = ["MODES", "FaultRow", "Report", "Round"]

MODES = ("device", "worker", "takeover", "fs", "fsx", "outage")
SERVICE = "service: "  # before the name of a fault of the page blob server
# What is counted, and is a fault that a round does to the disk.
_FAULTS = ("kills of ", "take-overs", "replacements of ", "outage: ", SERVICE)


@dataclass(slots=True)
class FaultRow:
    """What rounds with a certain fault saw. pause_s: the longest in those that had no other kind; None: there is none.

    I/O errors are those that nobody should see: before the node was killed, or the disk taken over.
    """

    tried: int = 0
    errors: int = 0
    mismatches: int = 0
    lost: int = 0
    pause_s: float | None = None

    def add(self, other: FaultRow) -> None:
        self.tried += other.tried
        self.errors += other.errors
        self.mismatches += other.mismatches
        self.lost += other.lost
        self.pause_s = max((p for p in (self.pause_s, other.pause_s) if p is not None), default=None)

    def text(self, name: str) -> str:
        pause = "" if self.pause_s is None else f"{self.pause_s:.2f} s"
        return f"| {name} | {self.tried:,} | {self.errors} | {self.mismatches} | {self.lost} | {pause} |"


@dataclass(slots=True)
class Report:
    """Of one round, or of all. counts: by what was counted (rounds, kills, I/O errors...)."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    pause_s: float = 0.0
    faults: dict[str, FaultRow] = field(default_factory=dict)

    def add(self, other: Report) -> None:
        self.counts += other.counts
        self.findings += other.findings
        self.pause_s = max(self.pause_s, other.pause_s)
        for name, row in other.faults.items():
            self.faults.setdefault(name, FaultRow()).add(row)

    def attribute(self) -> None:
        """At the end of a round: every fault that it had gets what it saw."""
        tried = {name: count for name, count in self.counts.items() if name.startswith(_FAULTS)}
        kinds = Counter(finding.kind for finding in self.findings)
        for name, count in tried.items():
            row = FaultRow(count, self.counts["I/O errors"], kinds["foreign"], kinds["lost"])
            row.pause_s = self.pause_s if len(tried) == 1 else None
            self.faults[name] = row

    def take(self, history: History, *, errors_allowed: bool = False) -> None:
        """Count what a journal tells; I/O errors before a kill are findings unless they are allowed."""
        self.counts.update(writes=history.writes, reads=history.reads, flushes=history.flushes)
        self.counts["I/O errors after kill or take-over"] += history.errors_after
        self.counts["I/O errors"] += history.errors
        self.findings += history.findings
        self.pause_s = max(self.pause_s, history.pause_s)
        if history.errors and not errors_allowed:
            self.findings.append(Finding("io-error", f"{history.errors} operations failed; see the journal"))

    def text(self) -> str:
        """A table, for people."""
        kinds = Counter(finding.kind for finding in self.findings)
        rows = {
            **{name: f"{count:,}" for name, count in sorted(self.counts.items())},
            "mismatches (never written there)": str(kinds["foreign"]),
            "lost writes (flushed, or acknowledged to a crashed worker)": str(kinds["lost"]),
            "other findings": str(len(self.findings) - kinds["foreign"] - kinds["lost"]),
            "longest pause of an operation": f"{self.pause_s:.2f} s",
        }
        table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
        head = "| fault | times tried | I/O errors seen | mismatches | lost flushed writes | longest pause, alone |"
        faults = [row.text(name) for name, row in sorted(self.faults.items())]
        return "\n".join([table, "", head, "|---|---|---|---|---|---|", *faults])


@dataclass(slots=True)
class Round:
    """One round as it runs. parameters: what was drawn, for the evidence."""

    mode: str
    number: int
    place: Place
    directory: Path
    random: Random
    parameters: dict[str, Any] = field(default_factory=dict)
    report: Report = field(default_factory=Report)

    @property
    def name(self) -> str:
        """Of the disk and of its attachments."""
        return f"soak-{self.mode}-{self.number}"

    def found(self, kind: str, text: str) -> None:
        self.report.findings.append(Finding(kind, text))

    def count(self, what: str, number: int = 1) -> None:
        self.report.counts[what] += number

    def draw(self, name: str, *choices: Any) -> Any:
        """One of the choices, kept among the parameters."""
        value = self.parameters[name] = self.random.choice(choices)
        return value
