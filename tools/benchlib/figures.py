"""What a run found: figures, what had to be left out and why, and the machine. Everything shown is made from these.

A figure belongs to a section, says who did it (`what`) and under which setting, and holds plain numbers. Keys of
settings: load (randread, write, commit, ...), service_ms, tier, depth, block, cache, and what else a section varies.
Keys of values: iops, mbps (10^6 bytes), mean_us, p99_us, cpu_us_per_io, ..._s, ..._mib; sections/ has the meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Figure", "Report", "Setting", "Skipped", "report_from_json"]

Setting = str | int | float


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of a table."""

    section: str
    what: str
    setting: Mapping[str, Setting]
    values: Mapping[str, float]

    def cell(self, key: str) -> Setting | None:
        """A setting or a value, whichever has this name; None if neither has."""
        return self.setting.get(key, self.values.get(key))


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was not measured, and what to do so that it will be."""

    section: str
    what: str
    reason: str
    remedy: str


@dataclass(slots=True)
class Report:
    """All of one run, in the order in which it was found."""

    machine: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def find(self, section: str, what: str, **setting: Setting) -> Figure | None:
        """The last figure with at least this setting."""
        for figure in reversed(self.figures):
            if figure.section == section and figure.what == what and setting.items() <= dict(figure.setting).items():
                return figure
        return None

    def value(self, section: str, what: str, key: str, **setting: Setting) -> float | None:
        """One number of the figure that `find` finds; None if there is none."""
        figure = self.find(section, what, **setting)
        return None if figure is None else figure.values.get(key)

    def section(self, name: str) -> list[Figure]:
        """The figures of a section."""
        return [figure for figure in self.figures if figure.section == name]

    def to_json(self) -> dict[str, Any]:
        """JSON-able, and what report_from_json reads."""
        return asdict(self)


def report_from_json(given: Mapping[str, Any]) -> Report:
    """The report that `to_json` gave."""
    return Report(
        machine=dict(given["machine"]),
        figures=[Figure(**each) for each in given["figures"]],
        skipped=[Skipped(**each) for each in given["skipped"]],
    )
