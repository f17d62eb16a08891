"""What the plots show, out of a report: lines over queue depth, groups of bars, with their titles and labels."""

from __future__ import annotations

from dataclasses import dataclass, field

from tools.benchlib.figures import Figure, Report

__all__ = ["Bars", "Lines", "all_plots"]

_OURS = "blobfuse-dysk"
_CEILING = "wrk (ceiling of the server)"
_CACHES = {"none": "cache=none", "readwrite": "cache=readwrite (default)"}


@dataclass(frozen=True, slots=True)
class Lines:
    """IOPS over queue depth: {label: {depth: IOPS}}. ceiling: the label that is no competitor but a limit."""

    title: str
    lines: dict[str, dict[int, float]]
    ceiling: str = _CEILING


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars: {label: a value for each group, None where there is no figure}.

    notes: {label: what to write above its bars, in place of the values}. line: a mark across all. muted: so many of the
    first groups are others' figures, there for comparison.
    """

    title: str
    unit: str
    groups: list[str]
    bars: dict[str, list[float | None]]
    notes: dict[str, list[str]] = field(default_factory=dict)
    line: float | None = None
    muted: int = 0


def all_plots(report: Report) -> dict[str, list[Lines | Bars]]:
    """{file name without its suffix: panels}; no panels where the report has no figures for them."""
    return {
        "random": [*_random(report)],
        "tiers": [*_tiers(report)],
        "p20": [*_known(report)],
        "commits": [*_commits(report)],
        "streams": [*_streams(report)],
    }


def _random(report: Report) -> list[Lines]:
    figures = [figure for figure in report.section("random") if figure.setting["block"] == "4k"]
    services = sorted({figure.setting["service_ms"] for figure in figures}, key=float)
    panels = []
    for load, title in {"randread": "read", "randwrite": "write"}.items():
        for service in services:
            lines: dict[str, dict[int, float]] = {}
            for figure in figures:
                if (figure.setting["load"], figure.setting["service_ms"]) == (load, service):
                    points = lines.setdefault(_label(figure, load), {})
                    points[int(figure.setting["depth"])] = figure.values["iops"]
            panels.append(Lines(f"random 4 KiB {title}, service time {service:g} ms", lines))
    return panels


def _label(figure: Figure, load: str) -> str:
    cache = figure.setting.get("cache")
    if load == "randwrite" and cache:
        return f"{figure.what}, {_CACHES[str(cache)]}"
    return f"{figure.what}, {_CACHES['readwrite']}" if figure.what == _OURS else figure.what


def _tiers(report: Report) -> list[Bars]:
    figures = report.section("tiers")
    tiers = list(dict.fromkeys(str(figure.setting["tier"]) for figure in figures))
    if not tiers:
        return []
    loads = {
        "random 4 KiB read": ("randread", "readwrite"),
        "random 4 KiB write, cache=none": ("randwrite", "none"),
        "random 4 KiB write, cache=readwrite": ("randwrite", "readwrite"),
        "sequential 1 MiB read": ("read", "readwrite"),
        "sequential 1 MiB write, cache=none": ("write", "none"),
        "sequential 1 MiB write, cache=readwrite": ("write", "readwrite"),
    }
    bars: dict[str, list[float | None]] = {}
    for label, (load, cache) in loads.items():
        values = [report.value("tiers", _OURS, "of_limit", tier=tier, load=load, cache=cache) for tier in tiers]
        bars[label] = [None if value is None else value * 100 for value in values]
    limits = {"P10": "500 IOPS\n100 MB/s", "P20": "2,300 IOPS\n150 MB/s", "P30": "5,000 IOPS\n200 MB/s"}
    groups = [f"{tier}\n{limits.get(tier, '7,500 IOPS' + chr(10) + '250 MB/s')}" for tier in tiers]
    return [Bars("Share of what a tier sells, service time 2 ms", "% of the limit", groups, bars, line=100)]


def _known(report: Report) -> list[Bars]:
    """dysk's own table beside ours: numbers of its README, measured by its authors on Azure."""
    found = {
        key: report.find("tiers", _OURS, tier="P20", load=load, cache=cache)
        for key, load, cache in (
            ("random read", "randread", "readwrite"), ("random write", "randwrite", "none"),
            ("sequential read", "read", "readwrite"), ("sequential write", "write", "none"),
        )
    }  # fmt: skip
    if any(figure is None for figure in found.values()):
        return []
    panels = []
    for title, unit, known, key, line in (
        ("P20: IOPS, 4 KiB", "IOPS", (1954.0, 2356.0), "device_iops", 2300.0),
        ("P20: throughput", "MB/s", (21.44, 117.0), "device_mbps", 150.0),
    ):
        kind = "random" if unit == "IOPS" else "sequential"
        ours = [(name, figure) for name, figure in found.items() if name.startswith(kind) and figure]
        groups = ["Azure Disk,\nsmall VM", "dysk", *(f"blobfuse-dysk,\n{name.split()[1]}" for name, _ in ours)]
        values: list[float | None] = [*known, *(figure.values[key] for _, figure in ours)]
        panels.append(Bars(title, unit, groups, {unit: values}, line=line, muted=2))
    return [*panels]


def _commits(report: Report) -> list[Bars]:
    panels = []
    writes = report.section("fsync")
    if writes:
        groups = [(load, every) for load in ("device, direct", "ext4, buffered") for every in (1, 32)]
        panels.append(
            _both(
                "4 KiB writes with fsync, 2 ms",
                "writes/s",
                [f"{load}\nfsync every {every}" for load, every in groups],
                {
                    cache: [report.find("fsync", _OURS, load=load, fsync=every, cache=cache) for load, every in groups]
                    for cache in _CACHES
                },
                ("iops", "requests_per_write"),
            )
        )
    engines = list(
        dict.fromkeys((figure.setting["engine"], figure.setting["load"]) for figure in report.section("databases"))
    )
    if engines:
        panels.append(
            _both(
                "Database commits, 2 ms",
                "commits/s",
                [f"{engine}\n{load}" for engine, load in engines],
                {
                    cache: [
                        report.find("databases", _OURS, engine=engine, load=load, cache=cache)
                        for engine, load in engines
                    ]
                    for cache in _CACHES
                },
                ("commits_per_s", "requests_per_commit"),
            )
        )
    return panels


def _both(
    title: str, unit: str, groups: list[str], found: dict[str, list[Figure | None]], keys: tuple[str, str]
) -> Bars:
    """Bars for both cache modes, with the number of Put Page calls for each unit of work above them."""
    rate, calls = keys
    bars = {_CACHES[cache]: [each.values[rate] if each else None for each in row] for cache, row in found.items()}
    notes = {
        _CACHES[cache]: [f"{each.values[rate]:,.0f}\n({each.values[calls]:.2g})" if each else "" for each in row]
        for cache, row in found.items()
    }
    return Bars(f"{title} (in brackets: Put Page for each)", unit, groups, bars, notes)


def _streams(report: Report) -> list[Bars]:
    values = [report.value("streams", _OURS, "mbps", load="direct read", cache="none")]
    values.append(report.value("streams", _OURS, "mbps", load="direct read", cache="readwrite"))
    for kind in ("kernel", "kernel and worker"):
        values.append(report.value("streams", _OURS, "mbps", load="buffered read", read_ahead=kind))
    if all(value is None for value in values):
        return []
    groups = [
        "nobody\n(direct, cache=none)",
        "the worker\n(direct)",
        "the kernel\n(cache=none)",
        "both\n(default)",
    ]
    return [
        Bars("Sequential 128 KiB reads of a file on ext4, 2 ms, by who reads ahead", "MB/s", groups, {"MB/s": values})
    ]
