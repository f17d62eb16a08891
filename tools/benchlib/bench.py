"""One run: its plan, what it found so far, and the table that grows on the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.benchlib.figures import Figure, Report, Setting, Skipped
from tools.benchlib.peers.start import MissingPeerError
from tools.benchlib.plan import Plan
from tools.benchlib.tables import Column, header, row

__all__ = ["OURS", "Bench", "Section"]

OURS = "blobfuse-dysk"


@dataclass(slots=True)
class Bench:
    """What a section gets: it adds figures, and notes what it has to leave out."""

    plan: Plan
    earlier: Path | None = None  # a checkout to be measured beside this one
    report: Report = field(default_factory=Report)
    section: str = ""
    columns: tuple[Column, ...] = ()
    say: Callable[[str], None] = print

    def add(self, what: str, setting: Mapping[str, Setting], values: Mapping[str, float]) -> Figure:
        """A figure of the section that runs now; shown at once."""
        figure = Figure(self.section, what, dict(setting), dict(values))
        self.report.figures.append(figure)
        self.say(row(figure, self.columns))
        return figure

    @contextlib.contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Around the measurement of a peer: if it is missing or breaks, that is noted, and the run goes on."""
        try:
            yield
        except MissingPeerError as error:
            self._skip(what, error.reason, error.remedy)
        except Exception as error:
            self._skip(what, f"it failed: {error}", f"tools/bench --only {self.section} shows it alone")

    def run(self, section: Section) -> None:
        """Measure a section. One that fails is noted, and the run goes on."""
        self.section, self.columns = section.name, section.columns
        self.say(f"\n{section.title}\n\n{header(section.columns)}")
        try:
            section.measure(self)
        except Exception as error:
            self._skip("the rest of this section", f"{type(error).__name__}: {error}", f"--only {section.name}")

    def _skip(self, what: str, reason: str, remedy: str) -> None:
        reason = " ".join(reason.split())[:300]
        self.report.skipped.append(Skipped(self.section, what, reason, remedy))
        self.say(f"Left out: {what}: {reason}. {remedy}.")


@dataclass(frozen=True, slots=True)
class Section:
    """A table: what it is called on the command line, its title, its columns, and what fills it."""

    name: str
    title: str
    columns: tuple[Column, ...]
    measure: Callable[[Bench], None]
