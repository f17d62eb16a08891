"""Figures as tables: on the terminal while they come in, and as Markdown for the README."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tools.benchlib.figures import Figure, Report

__all__ = ["Column", "column", "header", "markdown", "row", "skipped_table"]

# How a number is written, by unit.
_FORMATS: dict[str, Callable[[float], str]] = {
    "count": lambda value: f"{value:,.0f}",
    "one": lambda value: f"{value:,.1f}",
    "two": lambda value: f"{value:,.2f}",
    "ms": lambda value: f"{value * 1000:,.0f} ms",
    "s": lambda value: f"{value:,.2f} s",
    "us": lambda value: f"{value:,.0f} µs",
    "us as ms": lambda value: f"{value / 1000:,.2f} ms",
    "MB/s": lambda value: f"{value:,.1f}",
    "MiB": lambda value: f"{value:,.1f} MiB",
    "percent": lambda value: f"{value * 100:.1f} %",
    "given ms": lambda value: f"{value:g} ms",
    "plain": lambda value: f"{value:g}",
}


@dataclass(frozen=True, slots=True)
class Column:
    """key: of a setting or a value. unit: one of the formats above; text is shown as it is."""

    heading: str
    key: str
    unit: str


def column(heading: str, key: str, unit: str = "count") -> Column:
    """A column; a unit that nobody knows is a KeyError here, not in the middle of a run."""
    _FORMATS[unit]
    return Column(heading, key, unit)


def header(columns: Iterable[Column]) -> str:
    """The two lines above the rows."""
    headings = ["what", *(each.heading for each in columns)]
    return f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}"


def row(figure: Figure, columns: Iterable[Column]) -> str:
    """One line; a cell that the figure has nothing for is empty."""
    return f"| {' | '.join([figure.what, *(_cell(figure, each) for each in columns)])} |"


def _cell(figure: Figure, shown: Column) -> str:
    value = figure.cell(shown.key)
    if value is None:
        return ""
    return value if isinstance(value, str) else _FORMATS[shown.unit](value)


def skipped_table(report: Report) -> str:
    """What is missing, why, and how to get it; empty if nothing is."""
    if not report.skipped:
        return ""
    lines = ["| left out | section | why | what to do |", "|---|---|---|---|"]
    lines += [f"| {each.what} | {each.section} | {each.reason} | {each.remedy} |" for each in report.skipped]
    return "\n".join(lines)


def markdown(report: Report, sections: Iterable[tuple[str, str, tuple[Column, ...]]]) -> str:
    """The whole report. sections: (name, title, columns) of each; those without figures are left out."""
    machine = report.machine
    parts = [
        f"Linux {machine['kernel']}, {machine['cores']} cores, Python {machine['python']}, {machine['plan']} run of "
        f"{machine['minutes']:.0f} minutes, {machine['date']}; load average before it {machine['load_before']:.1f}.",
    ]
    for name, title, columns in sections:
        figures = report.section(name)
        if figures:
            lines = [header(columns), *(row(figure, columns) for figure in figures)]
            parts.append(f"### {title}\n\n" + "\n".join(lines))
    if skipped := skipped_table(report):
        parts.append(f"### Left out\n\n{skipped}")
    return "\n\n".join(parts) + "\n"
