"""Plots of a report, as PNG. Needs matplotlib (the extra `bench`), which nothing else here does.

What a plot shows is prepared in plotdata.py, without matplotlib; here it is drawn.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from tools.benchlib import plotdata
from tools.benchlib.figures import Report
from tools.benchlib.plotdata import Bars, Lines

__all__ = ["PlotsError", "check_plots", "write_plots"]

# Colours that people with any kind of colour vision tell apart. Source: Okabe and Ito, Color Universal Design.
_COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
_GREY = "#777777"
_MUTED = "#b0b0b0"
_DPI = 120


class PlotsError(Exception):
    """matplotlib is not here."""


def check_plots() -> None:
    """Raise PlotsError unless plots can be made."""
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise PlotsError("plots need matplotlib, which tools/setup --bench installs") from None


def write_plots(report: Report, directory: Path) -> list[Path]:
    """Write a file for each plot that the report has figures for; returns their paths."""
    check_plots()
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for name, panels in plotdata.all_plots(report).items():
        if panels:
            path = directory / f"{name}.png"
            _draw(pyplot, panels, path)
            made.append(path)
    return made


def _draw(pyplot: Any, panels: list[Lines | Bars], path: Path) -> None:
    """Panels side by side: lines in one row for reads and one for writes, bars in one row."""
    lines = any(isinstance(panel, Lines) for panel in panels)
    rows = 2 if lines else 1
    columns = -(-len(panels) // rows)
    width = 4.4 if lines else max(5.0, 13.0 / columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(width * columns, 3.6 * rows), squeeze=False)
    flat = [axis for line in axes for axis in line]
    labels = list(dict.fromkeys(label for panel in panels if isinstance(panel, Lines) for label in panel.lines))
    for axis, panel in zip(flat, panels, strict=False):
        if isinstance(panel, Lines):
            _lines(axis, panel, labels)
        else:
            _bars(axis, panel)
    for axis in flat[len(panels) :]:
        axis.remove()
    _legend(figure, flat[: len(panels)])
    figure.savefig(path, dpi=_DPI, bbox_inches="tight")
    pyplot.close(figure)


def _lines(axis: Any, panel: Lines, labels: list[str]) -> None:
    """labels: of all panels, so that one who competes has the same colour everywhere."""
    ticks: set[int] = set()
    for label, points in panel.lines.items():
        ticks |= points.keys()
        style = {"color": _COLOURS[labels.index(label) % len(_COLOURS)]}
        if label == panel.ceiling:
            style = {"color": _GREY, "linestyle": "--"}
        depths = sorted(points)
        axis.plot(depths, [points[depth] for depth in depths], marker="o", markersize=4, label=label, **style)
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_xlabel("queue depth")
    axis.set_ylabel("IOPS")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_title(panel.title, fontsize=10)


def _bars(axis: Any, panel: Bars) -> None:
    count = len(panel.bars)
    width = 0.8 / count
    if panel.line is not None:
        axis.axhline(panel.line, color=_GREY, linestyle="--", linewidth=1, zorder=0)
    for number, (label, values) in enumerate(panel.bars.items()):
        places = [index - 0.4 + width * (number + 0.5) for index in range(len(panel.groups))]
        colours = [_MUTED if index < panel.muted else _COLOURS[number % len(_COLOURS)] for index in range(len(values))]
        drawn = axis.bar(
            places,
            [value or 0 for value in values],
            width * 0.92,
            label=label if count > 1 else None,
            color=colours,
        )
        texts = panel.notes.get(label) or ["" if value is None else f"{value:,.0f}" for value in values]
        background = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        axis.bar_label(drawn, texts, padding=3, fontsize=7.5, bbox=background)
    axis.set_xticks(range(len(panel.groups)), panel.groups)
    axis.set_ylabel(panel.unit)
    axis.margins(y=0.15)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_title(panel.title, fontsize=10)


def _legend(figure: Any, axes: list[Any]) -> None:
    """One for all panels, below them; none where no bar needs a name."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.tight_layout(h_pad=2, w_pad=2)
    if found:
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "ncols": min(len(found), 3), "frameon": False}
        figure.legend(list(found.values()), list(found), **place)
