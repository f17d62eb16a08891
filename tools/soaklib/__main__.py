"""tools/soak: random workload, random faults, random kills, and a checker; seeded, and every round can be run again.

Modes: device (holder and worker are killed), worker (the worker alone is killed, or replaced as by an upgrade),
takeover (another node takes the disk), fs (as device, with a file system on it), fsx (one file against a model, under
kills of the worker), outage (the service is away for a while). A round draws its cache mode, faults of the service,
sizes and moments from SEED:ROUND; how threads interleave is not in the seed, so run a round that failed several times.

The summary has a line for each kind of fault: how often it was tried, and what the rounds that had it saw. The pause is
the longest that an operation took in rounds with no other kind of fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

from tools.soaklib import devicerounds, fsrounds, outagerounds
from tools.soaklib.place import Hang, Place, open_place
from tools.soaklib.report import MODES, SERVICE, Report, Round

__all__ = ["main"]

_ROUNDS = {
    "device": devicerounds.device_round,
    "worker": devicerounds.worker_round,
    "takeover": devicerounds.takeover_round,
    "fs": fsrounds.fs_round,
    "fsx": fsrounds.fsx_round,
    "outage": outagerounds.outage_round,
}


def run_round(place: Place, seed: str, number: int, mode: str, evidence: Path) -> Report:
    """One round, whatever becomes of it. If it finds something, its directory goes to `evidence`."""
    directory = Path(tempfile.mkdtemp(prefix="round-", dir=place.root))
    this = Round(mode, number, place, directory, Random(f"{seed}:{number}:{mode}"))
    this.count(f"rounds: {mode}")
    try:
        _ROUNDS[mode](this)
    except Hang as hang:
        this.found("hang", str(hang))
    except Exception:
        this.found("check", traceback.format_exc())
    stats = place.server.stats()
    for action, times in stats["faults"].items():
        this.count(f"{SERVICE}{action}", times)
    this.report.attribute()
    left = place.clear()
    if left and not this.report.findings:
        this.found("check", f"left attached or mounted: {left}")
    place.calm()
    place.server.remove("soak", this.name)
    if this.report.findings:
        evidence.mkdir(parents=True, exist_ok=True)
        kept = evidence / f"{mode}-{number}"
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(directory, kept)
        for node in place.nodes:
            log = node.root / "log" / f"{this.name}.log"
            if log.exists():
                shutil.copy(log, kept / f"{node.name}.log")
        facts = {"seed": seed, "round": number, "mode": mode, "parameters": this.parameters, "server": stats}
        (kept / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
        (kept / "findings").write_text("\n".join(map(str, this.report.findings)) + "\n")
    else:
        shutil.rmtree(directory)
    return this.report


class _Stopped(BaseException):
    pass


def _stop(number: int, frame: object) -> None:
    raise _Stopped


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tools/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="so many rounds (default 50)")
    parser.add_argument("--hours", type=float, metavar="H", help="for so long")
    parser.add_argument("--seed", default=None, help="default: the time")
    parser.add_argument("--only", choices=MODES, action="append", help="this mode only; may be given several times")
    parser.add_argument("--well", action="store_true", help="no faults of the service, to see what kills alone do")
    parser.add_argument("--replay", metavar="SEED:ROUND[:MODE]", help="one round again; with --rounds N, N times")
    parser.add_argument("--evidence", type=Path, metavar="DIR", help="where findings are kept")
    parser.add_argument("--stop", action="store_true", help="stop at the first round that finds something")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each round")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it attaches devices, which takes root")
    seed = options.seed or f"{int(time.time())}"
    evidence = options.evidence or Path(tempfile.gettempdir(), f"dysk-soak-{seed}-{os.getpid()}")
    modes = [mode for mode in MODES if not options.only or mode in options.only]
    first, rounds, again = 1, options.rounds, False
    if options.replay:
        seed, number, *given = options.replay.split(":")
        first, rounds, again = int(number), options.rounds or 1, True
        modes = given or modes
    elif rounds is None and options.hours is None:
        rounds = 50
    until = time.monotonic() + options.hours * 3600 if options.hours else float("inf")
    signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C: all is taken down, and the summary printed
    total = Report()
    done = 0
    with contextlib.suppress(KeyboardInterrupt, _Stopped), open_place(well=options.well) as place:
        number = first
        while (rounds is None or done < rounds) and time.monotonic() < until:
            mode = Random(f"{seed}:{number}").choice(modes)
            started = time.monotonic()
            report = run_round(place, seed, number, mode, evidence)
            total.add(report)
            done += 1
            if options.verbose or report.findings:
                print(f"{seed}:{number}:{mode}  {time.monotonic() - started:.1f} s  {len(report.findings)} findings")
            for finding in report.findings[:5]:
                print(f"  {finding}")
            sys.stdout.flush()
            if report.findings and options.stop:
                break
            number += not again
    print(f"\n| seed {seed}, {done} rounds | |\n|---|---|\n{total.text()}")
    if total.findings:
        print(f"\nThe evidence is in {evidence}; again: tools/soak --replay SEED:ROUND:MODE")
    return 1 if total.findings else 0


if __name__ == "__main__":
    sys.exit(main())
