"""tools/mutate: puts wrong lines into the source, one at a time, and looks whether the tests notice.

The wrong lines are in *.mutants.toml beside the source; CONTRIBUTING.md, "Mutants", has the format. Tests run in copies
of the tree, never in the tree itself. What was found is kept in .cache/mutate, so a run does only what changed since.

Exit status: 0 if all mutants that lose data are killed and 95 % of each file's; 1 if not; 2 for a list that is wrong or
tests that fail without a mutant; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.mutatelib.engine import BaselineError, Engine
from tools.mutatelib.mutants import Mutant, MutantError, load
from tools.mutatelib.results import Keys, Outcome, Results
from tools.mutatelib.tables import shortcomings, table

__all__ = ["main"]

_WRONG = 2
_INTERRUPTED = 130  # as a shell has it: 128 + SIGINT


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools/mutate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only look whether all lists are right")
    what.add_argument("--list", action="store_true", help="only list the mutants, and what is known of each")
    what.add_argument("--show", metavar="ID", help="only show what a mutant changes")
    what.add_argument("--table", action="store_true", help="only print what is known, by file, as Markdown")
    parser.add_argument("--file", metavar="PATH", action="append", help="mutants of this source file (or directory)")
    parser.add_argument("--id", metavar="ID", nargs="+", action="extend", help="these mutants")
    parser.add_argument("--all", action="store_true", help="also those of which the outcome is known")
    parser.add_argument("--workers", type=int, metavar="N", default=os.cpu_count(), help="at a time (default: CPUs)")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """See the module's text. words: the arguments; sys.argv's by default."""
    options = _arguments(words)
    root = options.root.resolve()
    try:
        mutants = load(root)
        chosen = _choose(root, mutants, options.file, options.id or ([options.show] if options.show else None))
    except MutantError as error:
        print(f"tools/mutate: {error}", file=sys.stderr)
        return _WRONG
    if options.check:
        print(f"{len(mutants)} mutants in {len({mutant.file for mutant in mutants})} files")
        return 0
    if options.show:
        print(_diff(chosen[0]))
        return 0
    keys = Keys(root)
    results = Results(root / ".cache" / "mutate" / "results.jsonl")
    if options.list:
        for mutant in chosen:
            print(f"{mutant.id}  {mutant.file}:{mutant.line}  {_known(mutant, keys, results)}  {mutant.means}")
        return 0
    if not options.table:
        todo = [
            mutant
            for mutant in chosen
            if mutant.equivalent is None and (options.all or results.outcome(keys.of_mutant(mutant)) is None)
        ]
        code = _run(Engine(root, keys, results, _say), todo, options.workers)
        if code:
            return code
    outcomes = {
        mutant.id: outcome for mutant in chosen if (outcome := results.outcome(keys.of_mutant(mutant))) is not None
    }
    print(table(chosen, outcomes))
    lacking = shortcomings(chosen, outcomes)
    if lacking:
        print("\nNot enough:\n")
        print("\n".join(f"- {line}" for line in lacking))
    return 1 if lacking else 0


def _run(engine: Engine, todo: list[Mutant], workers: int) -> int:
    if not todo:
        return 0
    if os.geteuid() != 0:
        print("tools/mutate: it mounts copies over the tree for the tests alone, which takes root", file=sys.stderr)
        return _WRONG
    try:
        engine.run(todo, workers)
    except BaselineError as error:
        print(f"tools/mutate: {error}", file=sys.stderr)
        return _WRONG
    except KeyboardInterrupt:
        print("tools/mutate: stopped; what was found is kept", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _choose(root: Path, mutants: list[Mutant], files: list[str] | None, ids: list[str] | None) -> list[Mutant]:
    known = {mutant.id for mutant in mutants}
    if unknown := [name for name in ids or () if name not in known]:
        raise MutantError(f"there is no mutant {unknown[0]}")
    paths = [Path(file).resolve() for file in files or ()]
    for path in paths:
        if not any((root / mutant.file).is_relative_to(path) for mutant in mutants):
            raise MutantError(f"there are no mutants of {path}")
    return [
        mutant
        for mutant in mutants
        if (ids is None or mutant.id in ids)
        and (files is None or any((root / mutant.file).is_relative_to(path) for path in paths))
    ]


def _known(mutant: Mutant, keys: Keys, results: Results) -> str:
    if mutant.equivalent is not None:
        return "equivalent"
    outcome: Outcome | None = results.outcome(keys.of_mutant(mutant))
    if outcome is None:
        return "not run"
    return "killed" if outcome.killed else "SURVIVED"


def _diff(mutant: Mutant) -> str:
    lines = difflib.unified_diff(
        mutant.text.splitlines(),
        mutant.mutated.splitlines(),
        mutant.file,
        f"{mutant.file} with {mutant.id}",
        lineterm="",
    )
    return "\n".join((f"# {mutant.means}", *lines))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
