"""The command tools/model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.modellib.holder import Holder
from tools.modellib.sabotage import SABOTAGES
from tools.modellib.scenarios import SCENARIOS
from tools.modellib.search import Found, Result, search
from tools.modellib.settling import Settling
from tools.modellib.trace import told
from tools.modellib.world import World

ABOUT = """Searches all states of a model of the one-writer protocol (store/lease/, store/layers/fence.py).

Without options: all scenarios with deep bounds, then all sabotages, as markdown tables. The properties P1..P8 are in
tools/modellib/properties.py. A violation ends its search; its trace, as short as any, is printed."""
EPILOG = """A search is bounded by --max-states (memory: about 0.4 KiB for each) unless the scope has no more.
It is many times faster under pypy3 (apt-get install pypy3), which this command takes if it is installed."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/model", description=ABOUT, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), help="this one only")
    parser.add_argument("--sabotage", choices=sorted(SABOTAGES), help="this one only, in its own scope")
    parser.add_argument("--small", action="store_true", help="the bounds of the tests")
    parser.add_argument("--max-states", type=int, default=1000000, metavar="N", help="default: %(default)s")
    parser.add_argument("--settle-each", type=int, default=500, metavar="N", help="P7 is asked from every Nth state")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write traces there, not to standard output")
    options = parser.parse_args(arguments)
    failed = False
    traces: list[str] = []
    if options.sabotage is None:
        print("| scenario | nodes | lost | kills | states | transitions | all traces up to | seconds | found |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name, scenario in SCENARIOS.items():
            if options.scenario in (None, name):
                scope = scenario.small if options.small else scenario.deep
                world = World(scope)
                settles = Settling(world).fails
                result = search(world, max_states=options.max_states, settles=settles, settle_each=options.settle_each)
                _row(f"{name} | {scope.nodes} | {scope.faults} | {scope.kills}", result)
                failed |= result.found is not None
                traces += _lines(name, result.found, scope.nodes)
        if options.scenario is None:
            result = search(Holder())
            _row("the holder | - | - | 1", result)
            failed |= result.found is not None
    if options.scenario is None:
        print("\n| sabotage | what is wrong | breaks | steps | states | seconds |\n|---|---|---|---|---|---|")
        for name, sabotage in SABOTAGES.items():
            if options.sabotage in (None, name):
                scope = sabotage.scope._replace(wrong=sabotage.scope.wrong | {name})
                result = search(World(scope), max_states=options.max_states, only=sabotage.breaks)
                found = result.found
                steps = len(found.trace) if found else "-"
                breaks = found.violation[:2] if found else "**not found**"
                print(f"| {name} | {sabotage.means} | {breaks} | {steps} | {result.states} | {result.seconds:.1f} |")
                failed |= found is None
                if options.sabotage:
                    traces += _lines(name, found, scope.nodes)
    if options.trace:
        options.trace.write_text("\n".join(traces) + "\n")
    elif traces:
        print("\n" + "\n".join(traces))
    return 1 if failed else 0


def _row(start: str, result: Result) -> None:
    depth = "the end" if result.whole else f"{result.depth} steps"
    found = f"**{result.found.violation}**" if result.found else "nothing"
    print(
        f"| {start} | {result.states} | {result.transitions} | {depth} | {result.seconds:.0f} | {found} |", flush=True
    )


def _lines(name: str, found: Found | None, nodes: int) -> list[str]:
    if found is None:
        return []
    return [f"{name}: {line}" if i == 0 else line for i, line in enumerate(told(found, nodes))]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
