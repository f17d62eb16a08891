"""What the rounds found and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tools.soaklib.history import Finding, History
from tools.soaklib.place import Place

__all__ = ["MODES", "Report", "Round"]

MODES = ("device", "worker", "takeover", "fs", "fsx")


@dataclass(slots=True)
class Report:
    """Of one round, or of all. counts: by what was counted (rounds, kills, I/O errors...)."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    pause_s: float = 0.0

    def add(self, other: Report) -> None:
        self.counts += other.counts
        self.findings += other.findings
        self.pause_s = max(self.pause_s, other.pause_s)

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
        return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


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
