"""What the project set out to reach, checked against a report; and the table that users of the original dysk know.

Each goal looks only at figures of one run, so that ratios are of what shared the same machine at the same time. A goal
whose figures are not in the report is not judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tools.benchlib.figures import Figure, Report

__all__ = ["GOALS", "Goal", "KnownRow", "Outcome", "check", "known_rows"]

_OURS = "blobfuse-dysk"
_NBD = "nbdfuse + nbdkit curl"
_SDK = "azure-storage-blob"
_PROTOTYPE = "plain prototype"
_PROTOTYPE_US = 94  # its CPU time per I/O on the machine on which the goals were set
_SHARE = 0.97  # of a tier's limit


@dataclass(frozen=True, slots=True)
class Outcome:
    """measured: in words."""

    measured: str
    reached: bool


@dataclass(frozen=True, slots=True)
class Goal:
    """judge: returns None if the report has not what it takes; it may raise _MissingError, too."""

    what: str
    target: str
    judge: Callable[[Report], Outcome | None]


class _MissingError(Exception):
    """A figure that a goal needs is not in the report."""


def check(goal: Goal, report: Report) -> Outcome | None:
    """None: not measured in this run. A rate of zero, which something was to be compared with, is no measurement."""
    try:
        return goal.judge(report)
    except (_MissingError, ZeroDivisionError):
        return None


def _figure(report: Report, section: str, what: str, **setting: str | float) -> Figure:
    found = report.find(section, what, **setting)
    if found is None:
        raise _MissingError
    return found


def _random(report: Report, what: str, load: str, depth: int, service_ms: int, **more: str) -> Figure:
    return _figure(report, "random", what, load=load, block="4k", depth=depth, service_ms=service_ms, **more)


def _cpu(report: Report) -> Outcome:
    """Judged as it is; beside it what the prototype takes here, since this may be a faster or slower machine."""
    used = _figure(report, "beside", _OURS).values["cpu_us_per_io"]
    plain = _figure(report, "beside", _PROTOTYPE).values["cpu_us_per_io"]
    beside = (
        f"{used / plain:.2f} times the {_PROTOTYPE}, which takes {plain:.0f} here, and {_PROTOTYPE_US} when it was set"
    )
    return Outcome(f"{used:.0f} µs ({beside})", used < 70)


def _against_nbdfuse(report: Report) -> Outcome:
    ours = _figure(report, "beside", _OURS).values
    peer = _figure(report, "beside", _NBD).values
    ratio = ours["iops"] / peer["iops"]
    cpu = f"CPU per I/O {ours['cpu_us_per_io']:.0f} and {peer['cpu_us_per_io']:.0f} µs"
    return Outcome(f"{ratio:.2f} times ({ours['iops']:,.0f} and {peer['iops']:,.0f} IOPS; {cpu})", ratio >= 1)


def _against_sdk(report: Report) -> Outcome:
    """At the depth that suits the SDK best: more threads than one may well be slower."""
    ours = _random(report, _OURS, "randread", 32, 0).values["iops"]
    calls = [
        figure
        for figure in report.section("random")
        if figure.what == _SDK and (figure.setting["load"], figure.setting["service_ms"]) == ("randread", 0)
    ]
    if not calls:
        raise _MissingError
    best = max(calls, key=lambda figure: figure.values["iops"])
    peer = best.values["iops"]
    threads = f"{peer:,.0f} IOPS at depth {best.setting['depth']}"
    return Outcome(f"{ours / peer:.1f} times ({ours:,.0f} IOPS; the SDK {threads})", ours >= 10 * peer)


def _reads_2ms(report: Report) -> Outcome:
    iops = _random(report, _OURS, "randread", 64, 2).values["iops"]
    return Outcome(f"{iops:,.0f} IOPS", iops >= 6000)


def _uncached_writes(report: Report) -> Outcome:
    values = _random(report, _OURS, "randwrite", 32, 0, cache="none").values
    return Outcome(f"{values['iops']:,.0f} IOPS, CPU {values['cpu_us_per_io']:.0f} µs per I/O", values["iops"] >= 6000)


def _tier(report: Report, tier: str) -> dict[str, float]:
    """The share of the limit, by load. A write counts as it is without a cache and with one, whichever is less."""
    loads = {"read IOPS": "randread", "write IOPS": "randwrite", "read MB/s": "read", "write MB/s": "write"}
    found: dict[str, float] = {}
    for name, load in loads.items():
        caches = ("none", "readwrite") if "write" in load else ("readwrite",)
        each = [_figure(report, "tiers", _OURS, tier=tier, load=load, cache=cache) for cache in caches]
        found[name] = min(figure.values["of_limit"] for figure in each)
    return found


def _share(tier: str) -> Callable[[Report], Outcome]:
    def judge(report: Report) -> Outcome:
        found = _tier(report, tier)
        return Outcome(_percents(found), min(found.values()) >= _SHARE)

    return judge


def _p40(kind: str) -> Callable[[Report], Outcome]:
    def judge(report: Report) -> Outcome:
        found = {name: share for name, share in _tier(report, "P40").items() if name.endswith(kind)}
        figure = _figure(report, "tiers", _OURS, tier="P40", load="randread")
        spent = f"; worker at {figure.values['cpu_percent']:.0f} % of a core" if kind == "IOPS" else ""
        return Outcome(_percents(found) + spent, min(found.values()) >= _SHARE)

    return judge


def _percents(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {share * 100:.1f} %" for name, share in found.items())


def _refused(report: Report) -> Outcome | None:
    figures = report.section("tiers")
    if not figures:
        return None
    worst = max(figures, key=lambda figure: figure.values["busy_share"])
    share, setting = worst.values["busy_share"], worst.setting
    where = f"{setting['tier']} {setting['load']}, cache={setting['cache']}"
    return Outcome(f"{share * 100:.2f} % at most ({where})", share < 0.01)


def _stream(report: Report) -> Outcome:
    """As it is by default, with both kinds of read-ahead, against one round trip for each 128 KiB."""
    ours = _figure(report, "streams", _OURS, load="buffered read", read_ahead="kernel and worker").values["mbps"]
    without = _figure(report, "streams", _OURS, load="direct read", cache="none").values["mbps"]
    ratio = ours / without
    return Outcome(f"{ours:,.0f} MB/s, {ratio:.1f} times {without:,.0f} MB/s", ours >= 400 or ratio >= 10)


def _amplification(report: Report) -> Outcome:
    ratio = _figure(report, "streams", _OURS, load="direct randread").values["amplification"]
    return Outcome(f"{ratio:.3f}", ratio < 1.01)


def _fsync(report: Report) -> Outcome:
    cached, plain = (
        _figure(report, "fsync", _OURS, load="device, direct", fsync=32, cache=cache).values
        for cache in ("readwrite", "none")
    )
    ratio = cached["iops"] / plain["iops"]
    calls = f"Put Page per write {cached['requests_per_write']:.2f} and {plain['requests_per_write']:.2f}"
    return Outcome(f"{ratio:.1f} times ({cached['iops']:,.0f} and {plain['iops']:,.0f} writes/s; {calls})", ratio >= 10)


def _commits(engine: str, load: str) -> Callable[[Report], Outcome]:
    def judge(report: Report) -> Outcome:
        cached, plain = (
            _figure(report, "databases", _OURS, engine=engine, load=load, cache=cache).values
            for cache in ("readwrite", "none")
        )
        rates = f"{cached['commits_per_s']:,.0f} and {plain['commits_per_s']:,.0f} per second"
        calls = f"Put Page per commit {cached['requests_per_commit']:.1f} and {plain['requests_per_commit']:.1f}"
        return Outcome(f"{rates}; {calls}", cached["commits_per_s"] > plain["commits_per_s"])

    return judge


def _mkfs(report: Report) -> Outcome:
    found = _figure(report, "mkfs", _OURS, tib=1).values
    return Outcome(f"{found['seconds']:.1f} s, {found['requests']:,.0f} requests", found["seconds"] < 10)


def _extents(report: Report) -> Outcome:
    found = _figure(report, "attaching", _OURS, extents=100_000).values
    return Outcome(f"{found['attach_s']:.2f} s, {found['requests']:.0f} requests", found["attach_s"] < 0.5)


def _memory(report: Report) -> Outcome | None:
    """Bounded: what comes on top of the write cache grows neither with its size nor with the time."""
    figures = report.section("memory")
    if len(figures) < 2:
        return None
    over = {figure.setting["write_cache_mib"]: figure.values["over_mib"] for figure in figures}
    later = max(figure.values["max_rss_mib"] - figure.values["early_rss_mib"] for figure in figures)
    words = ", ".join(f"{each:+.0f} MiB with {mib}" for mib, each in over.items())
    spread = max(over.values()) - min(over.values())
    return Outcome(f"{words}; {later:.0f} MiB more when three times as long", spread < 48 and later < 48)


GOALS = (
    Goal("random 4 KiB read, depth 32, 0 ms: CPU of the worker per I/O", "under 70 µs", _cpu),
    Goal("the same: IOPS against nbdfuse + nbdkit curl", "not slower", _against_nbdfuse),
    Goal("the same: IOPS against the Azure SDK's calls", "10 times", _against_sdk),
    Goal("random 4 KiB read, depth 64, 2 ms", "6,000 IOPS", _reads_2ms),
    Goal("random 4 KiB write, depth 32, cache=none, 0 ms", "6,000 IOPS", _uncached_writes),
    *(Goal(f"{tier}, 2 ms: share of the limits", "97 % of each", _share(tier)) for tier in ("P10", "P20", "P30")),
    Goal("P40 to P60, 2 ms: MB/s", "97 %", _p40("MB/s")),
    Goal("P40 to P60, 2 ms: IOPS, one core for the worker", "97 % (a goal)", _p40("IOPS")),
    Goal("answers 503 under the limit of a tier", "under 1 %", _refused),
    Goal("sequential 128 KiB read, buffered, ext4, 2 ms", "400 MB/s, or 10 times no read-ahead", _stream),
    Goal("random 4 KiB reads: bytes sent / bytes read", "1.0", _amplification),
    Goal("sequential 4 KiB write, fsync every 32, 2 ms", "10 times cache=none", _fsync),
    Goal("SQLite commits, write-ahead log, 2 ms", "more than cache=none", _commits("SQLite", "WAL")),
    Goal("SQLite commits, rollback journal, 2 ms", "more than cache=none", _commits("SQLite", "DELETE")),
    Goal("pgbench -c 8, 2 ms", "more than cache=none", _commits("PostgreSQL", "pgbench -c 8")),
    Goal("mkfs.ext4 on a blank 1 TiB disk, 2 ms", "under 10 s", _mkfs),
    Goal("attach of an 8 TiB disk with 100,000 extents", "under 0.5 s", _extents),
    Goal(
        "writer faster than the service: memory above write cache and idle worker",
        "a constant",
        _memory,
    ),
)


@dataclass(frozen=True, slots=True)
class KnownRow:
    """One row of the table that dysk's users know, with numbers as they are shown."""

    what: str
    iops: str
    mbps: str


def known_rows(report: Report) -> list[KnownRow]:
    """dysk's own measurement beside ours on the server limited to P20; empty if that was not measured."""
    try:
        reads, writes, stream_in, stream_out = (
            _figure(report, "tiers", _OURS, tier="P20", load=load, cache=cache).values
            for load, cache in (
                ("randread", "readwrite"),
                ("randwrite", "none"),
                ("read", "readwrite"),
                ("write", "none"),
            )
        )
    except _MissingError:
        return []
    return [
        KnownRow("Azure Disk on a small VM (dysk's measurement)", "1,954", "21.44"),
        KnownRow("dysk (its own measurement)", "2,356", "117"),
        KnownRow(
            "blobfuse-dysk here, on a server with these limits",
            f"{reads['device_iops']:,.0f} read, {writes['device_iops']:,.0f} write",
            f"{stream_in['device_mbps']:,.1f} read, {stream_out['device_mbps']:,.1f} write",
        ),
    ]
