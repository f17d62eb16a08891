"""What became of all mutants, as Markdown, and whether that is enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.mutatelib.mutants import Mutant
from tools.mutatelib.results import Outcome

__all__ = ["GOAL", "Tally", "shortcomings", "table"]

GOAL = 0.95  # of a file's mutants; of those that lose data, all


@dataclass(frozen=True, slots=True)
class Tally:
    """Mutants by what became of them; those that are equivalent count in `total` and `equivalent` only."""

    total: int
    killed: int
    survived: int
    equivalent: int
    not_run: int
    data_killed: int
    data_total: int

    @property
    def score(self) -> float:
        """The part of those that a test can tell which a test did tell."""
        counted = self.total - self.equivalent
        return self.killed / counted if counted else 1.0


def tally(mutants: Sequence[Mutant], outcomes: Mapping[str, Outcome]) -> Tally:
    """Count them. outcomes: by id; what is not in it was not run."""
    counted = [mutant for mutant in mutants if mutant.equivalent is None]
    known = [outcomes[mutant.id] for mutant in counted if mutant.id in outcomes]
    killed = {outcome.id for outcome in known if outcome.killed}
    data = {mutant.id for mutant in counted if mutant.loses_data}
    return Tally(
        total=len(mutants),
        killed=len(killed),
        survived=len(known) - len(killed),
        equivalent=len(mutants) - len(counted),
        not_run=len(counted) - len(known),
        data_killed=len(data & killed),
        data_total=len(data),
    )


def table(mutants: Sequence[Mutant], outcomes: Mapping[str, Outcome]) -> str:
    """A table by file, then the survivors, the equivalent ones, and those that only a time limit noticed."""
    lines = [
        "| file | total | killed | survived | equivalent | not run | score | loses data: killed/total |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(file, tally(some, outcomes)) for file, some in _by_file(mutants).items()),
        _row("all", tally(mutants, outcomes)),
    ]
    counted = [mutant for mutant in mutants if mutant.equivalent is None]
    survived = [mutant for mutant in counted if mutant.id in outcomes and not outcomes[mutant.id].killed]
    slow = [mutant for mutant in counted if mutant.id in outcomes and outcomes[mutant.id].slow]
    lines += _section("Survived", [_line(mutant, mutant.means) for mutant in survived])
    lines += _section("Equivalent", [_line(mutant, mutant.equivalent) for mutant in mutants if mutant.equivalent])
    lines += _section("Killed by time", [_line(mutant, outcomes[mutant.id].by) for mutant in slow])
    return "\n".join(lines)


def shortcomings(mutants: Sequence[Mutant], outcomes: Mapping[str, Outcome]) -> list[str]:
    """What keeps these mutants from being good enough, a line each."""
    lines = []
    for file, some in _by_file(mutants).items():
        counts = tally(some, outcomes)
        if counts.data_killed < counts.data_total:
            missing = counts.data_total - counts.data_killed
            lines.append(f"{file}: {missing} that lose data are not killed")
        if counts.score < GOAL:
            lines.append(f"{file}: {counts.score:.0%} are killed, {GOAL:.0%} are needed")
    return lines


def _by_file(mutants: Sequence[Mutant]) -> dict[str, list[Mutant]]:
    files: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        files.setdefault(mutant.file, []).append(mutant)
    return files


def _row(name: str, counts: Tally) -> str:
    figures = (counts.total, counts.killed, counts.survived, counts.equivalent, counts.not_run)
    score = f"{int(counts.score * 100)} %"  # rounded down: 100 % is all of them
    return f"| {name} | {' | '.join(map(str, figures))} | {score} | {counts.data_killed}/{counts.data_total} |"


def _line(mutant: Mutant, text: str | None) -> str:
    mark = " (loses data)" if mutant.loses_data else ""
    return f"- {mutant.id} {mutant.file}:{mutant.line}{mark}: {text}"


def _section(title: str, lines: list[str]) -> list[str]:
    return ["", f"{title}:", "", *lines] if lines else []
