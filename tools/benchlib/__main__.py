"""tools/bench: what a disk delivers and what it costs, beside its peers, in one run; as tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tools.benchlib import leftovers
from tools.benchlib.bench import Bench, Section
from tools.benchlib.figures import Report, report_from_json
from tools.benchlib.plan import FULL, QUICK
from tools.benchlib.sections import SECTIONS
from tools.benchlib.sections.earlier import PROGRAM
from tools.benchlib.supervise import supervised
from tools.benchlib.tables import markdown, skipped_table

__all__ = ["main"]

_QUIET = 0.5  # load average below which nobody else is at work


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, show."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for path in (options.json, options.markdown):
        if path is not None and not path.absolute().parent.is_dir():
            parser.error(f"{path}: there is no directory {path.parent}")
    if options.show:
        try:
            report = report_from_json(json.loads(options.show.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            parser.error(f"{options.show} is no file that --json wrote: {error}")
        _write(report, options)
        return 0
    if options.earlier and not (options.earlier / PROGRAM).is_file():
        parser.error(f"{options.earlier} has no {PROGRAM}: run tools/setup there")
    if os.geteuid() != 0:
        parser.error("it attaches devices, which takes root")
    return supervised(lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    names = [section.name for section in SECTIONS]
    parser = argparse.ArgumentParser(
        prog="tools/bench",
        description=(__doc__ or "").splitlines()[0],
        epilog=f"Sections: {', '.join(names)}. Peers that are missing are named and left out; tools/setup --bench "
        "installs them. Without --quick it takes about 25 minutes. Nothing else should run meanwhile.",
    )
    parser.add_argument("--quick", action="store_true", help="a first look, in about two minutes")
    parser.add_argument(
        "--only", action="append", choices=names, metavar="SECTION", help="measure this section; may be repeated"
    )
    parser.add_argument(
        "--depths", type=_depths, metavar="N,N", help="of random I/O, instead of the plan's; for example 1,32,128"
    )
    parser.add_argument(
        "--earlier", type=Path, metavar="DIR", help="a checkout of another version, set up, to be measured beside this"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing; make tables of what --json wrote")
    return parser


def _depths(text: str) -> tuple[int, ...]:
    depths = tuple(int(word) for word in text.split(","))
    if min(depths) < 1:
        raise ValueError(text)
    return depths


def _run(options: argparse.Namespace) -> int:
    """Measure the sections; whatever happens, what was found so far is written."""
    for name in leftovers.of_killed_runs():
        print(f"Took down what a killed run left in {name}.")
    plan = QUICK if options.quick else FULL
    if options.depths:
        plan = replace(plan, depths=tuple((service_ms, options.depths) for service_ms, _ in plan.depths))
    bench = Bench(plan, options.earlier and options.earlier.absolute(), say=lambda line: print(line, flush=True))
    report, start = bench.report, time.monotonic()
    load = os.getloadavg()[0]
    report.machine |= {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "plan": bench.plan.name,
        "date": time.strftime("%Y-%m-%d"),
        "load_before": load,
    }
    if load > _QUIET:
        print(f"This machine is busy (load {load:.1f}): the figures will be worse than they could be.")
    try:
        for section in _chosen(options.only):
            bench.run(section)
    finally:
        report.machine["minutes"] = (time.monotonic() - start) / 60
        _write(report, options)
    return 1 if any(skipped.what == "the rest of this section" for skipped in report.skipped) else 0


def _chosen(only: Sequence[str] | None) -> list[Section]:
    return [section for section in SECTIONS if not only or section.name in only]


def _write(report: Report, options: argparse.Namespace) -> None:
    """What is asked for into files, the figures first; what was left out onto the terminal."""
    if options.json:
        options.json.write_text(json.dumps(report.to_json(), indent=1) + "\n")
    if text := skipped_table(report):
        print(f"\nLeft out\n\n{text}", flush=True)
    if options.markdown:
        options.markdown.write_text(
            markdown(report, [(section.name, section.title, section.columns) for section in SECTIONS])
        )


if __name__ == "__main__":
    sys.exit(main())
