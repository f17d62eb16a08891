"""Refusals that do not depend on the rate, over a grid of services and loads: what they cost, and for how long.

    python -m tests.simulation.sporadic [--jobs N]        all cells as a table, the worst ones last

A cell's cost is measured against a client that knows the service's rate, learns nothing and waits when it is told to,
under the same refusals: what is lost beyond the time waited. The same means the same requests, by their number from
the beginning of the refusals on: a minute of pauses has some forty refusals, and two draws of forty differ by a sixth.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from blobfuse_dysk.store.parts.pacer import Pacer
from tests.simulation.clocks import JumpingClock
from tests.simulation.limited import Client, LimitedStore

__all__ = ["GRID", "Cell", "Outcome", "run"]

WARM_UP_S = 12.0
REST_S = 5.0  # from the last refusal on; then it must be as before
LOOK_S = 4.0
REQUESTS = 12_000  # simulated in a cell at most, so that fast ones end


@dataclass(frozen=True, slots=True)
class Cell:
    """iops: what the service sells. latency_s: how long it takes for one request."""

    iops: float
    depth: int
    how: str
    retry_after_s: float | None
    latency_s: float = 0.002
    noise: float = 0.01
    length: int = 4096

    @property
    def rate(self) -> float:
        """Operations a second that this load gets without refusals."""
        return min(self.iops, self.depth / self.latency_s)

    @property
    def noisy_s(self) -> float:
        """How long requests are refused at random."""
        if self.retry_after_s is not None:
            return 60.0  # most of it paused
        return min(100.0, max(12.0, REQUESTS / self.rate))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Shares: of what one who knows the rate got under the same refusals; of what it was before, REST_S after them."""

    cell: Cell
    meanwhile: float
    afterwards: float
    refused_before: float


class _Knowing(Pacer):
    """Keeps a rate and the pauses, whatever is refused."""

    def refused(self, started: float, now: float, in_flight: tuple[int, int]) -> bool:
        return False


async def _measure(cell: Cell, pacer: Pacer | None) -> tuple[float, float, float, float]:
    """Operations a second before, under and after the refusals; share of requests refused before."""
    service = LimitedStore(f"{cell.iops}/1000", cell.how, retry_after_s=cell.retry_after_s, latency_s=cell.latency_s)
    client = Client(service, pacer)
    seen = []
    await client.load(cell.length, cell.depth, WARM_UP_S)
    seen.append(await client.load(cell.length, cell.depth, LOOK_S))
    service.noise = cell.noise
    seen.append(await client.load(cell.length, cell.depth, cell.noisy_s))
    service.noise = 0.0
    await client.load(cell.length, cell.depth, REST_S + (cell.retry_after_s or 0.0))
    seen.append(await client.load(cell.length, cell.depth, LOOK_S))
    before, under, after = (each.operations * cell.iops for each in seen)
    return before, under, after, seen[0].refused


def run(cell: Cell) -> Outcome:
    """Simulate it."""

    def measure(pacer: Pacer | None) -> tuple[float, float, float, float]:
        return trio.run(_measure, cell, pacer, clock=JumpingClock())

    before, under, after, refused = measure(None)
    possible = measure(_Knowing(round(before)))[1]
    return Outcome(cell, under / possible, after / max(before, 1e-9), refused)


def _grid() -> list[Cell]:
    cells = []
    for retry_after_s in (None, 1.0):
        for iops in (20.0, 50.0, 120.0, 500.0, 2300.0, 7500.0):
            for depth in (1, 4, 32, 128):
                if iops > depth / 0.002:
                    continue  # as with a service that sells no more than that
                cells += [Cell(iops, depth, how, retry_after_s) for how in ("503", "strict")]
        for depth, latency_s in ((1, 0.05), (1, 0.002), (8, 0.02), (32, 0.02), (128, 0.05)):
            cells.append(Cell(20_000.0, depth, "503", retry_after_s, latency_s))
    return cells


GRID = _grid()


def _line(outcome: Outcome) -> str:
    cell = outcome.cell
    asked = "-" if cell.retry_after_s is None else f"{cell.retry_after_s:g} s"
    return (
        f"{cell.iops:6g} {cell.depth:5d} {cell.latency_s * 1e3:6g} ms {cell.how:7} {asked:>5}"
        f" {outcome.meanwhile:9.3f} {outcome.afterwards:9.3f} {outcome.refused_before:8.4f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What refusals at random cost, over a grid.")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    jobs = parser.parse_args(arguments).jobs
    started = time.monotonic()
    print("  IOPS depth   latency service  wait meanwhile afterwards refused before")
    with multiprocessing.Pool(jobs) as pool:
        outcomes = []
        for outcome in pool.imap(run, GRID):
            print(_line(outcome), flush=True)
            outcomes.append(outcome)
    worst_under = min(outcomes, key=lambda outcome: outcome.meanwhile)
    worst_after = min(outcomes, key=lambda outcome: outcome.afterwards)
    print(f"{len(outcomes)} cells in {time.monotonic() - started:.0f} s")
    print(f"worst meanwhile:  {_line(worst_under)}")
    print(f"worst afterwards: {_line(worst_after)}")


if __name__ == "__main__":
    main()
