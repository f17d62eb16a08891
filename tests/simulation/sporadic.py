"""Refusals that do not depend on the rate, over a grid of services and loads: what they cost, and for how long.

    python -m tests.simulation.sporadic [--jobs N]        all cells as a table, the worst ones last

A cell's cost is measured against a client that keeps the rate that was found before, learns nothing and repeats each
refused call when it is told to, under the same refusals: what is lost beyond the time waited. The same means the same
requests, by their number from the beginning of the refusals on: a minute of pauses has some forty refusals, and two
draws of forty differ by a sixth. That rate, as a share of what the service sells, is shown as well, so that a cell
cannot look good because less than the limit was found.
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

LEAST_S = 12.0  # of finding the limit, and of refusals
WARM_UP = 15_000  # requests, for finding the limit
MOST_WARM_UP_S = 40.0
LOOK_S = 4.0
LOOK = 400  # requests whose rate is compared with, or MOST_LOOK_S: of fewer, one refusal is a large share
MOST_LOOK_S = 20.0
REQUESTS = 12_000  # under the refusals, so that fast cells end
MOST_S = 100.0
MOST_PAUSING_S = 60.0  # where it is mostly pauses; longer would hide what learning costs
REST_S = 5.0  # from the last refusal on; then it must be as before


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
    def warm_up_s(self) -> float:
        """How long the limit is looked for, without refusals at random."""
        return min(MOST_WARM_UP_S, max(LEAST_S, WARM_UP / self.rate))

    @property
    def look_s(self) -> float:
        """How long is measured what was found, and what is there afterwards."""
        return min(MOST_LOOK_S, max(LOOK_S, LOOK / self.rate))

    @property
    def noisy_s(self) -> float:
        """How long requests are refused at random."""
        if self.retry_after_s is None:
            return min(MOST_S, max(LEAST_S, REQUESTS / self.rate))
        rate = min(self.iops, self.depth / (self.latency_s + self.noise * self.retry_after_s))
        return min(MOST_PAUSING_S, max(LEAST_S, REQUESTS / rate))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Shares: of what one who knows the rate got under the same refusals; of what it was before, REST_S after them.

    found: what it was before, as a share of what the service sells; refused_before: of the requests then.
    """

    cell: Cell
    meanwhile: float
    afterwards: float
    found: float
    refused_before: float


class _Knowing(Pacer):
    """Keeps its rate, whatever is refused."""

    def refused(self, started: float, now: float, in_flight: tuple[int, int]) -> bool:
        return False


def _client(cell: Cell, pacer: Pacer | None) -> Client:
    service = LimitedStore(f"{cell.iops}/1000", cell.how, retry_after_s=cell.retry_after_s, latency_s=cell.latency_s)
    return Client(service, pacer)


async def _noisy(cell: Cell, client: Client) -> float:
    """Operations a second under the refusals."""
    client.service.noise = cell.noise
    seen = await client.load(cell.length, cell.depth, cell.noisy_s)
    client.service.noise = 0.0
    return seen.operations * cell.iops


async def _learning(cell: Cell) -> tuple[float, float, float, float]:
    """Operations a second before, under and after the refusals; share of requests refused before."""
    client = _client(cell, None)
    await client.load(cell.length, cell.depth, cell.warm_up_s)
    before = await client.load(cell.length, cell.depth, cell.look_s)
    under = await _noisy(cell, client)
    await client.load(cell.length, cell.depth, REST_S + (cell.retry_after_s or 0.0))
    after = await client.load(cell.length, cell.depth, cell.look_s)
    return before.operations * cell.iops, under, after.operations * cell.iops, before.refused


async def _knowing(cell: Cell, rate: float) -> float:
    """Operations a second under the refusals, of one who keeps `rate`."""
    client = _client(cell, _Knowing(rate))
    await client.load(cell.length, cell.depth, LOOK_S)
    return await _noisy(cell, client)


def run(cell: Cell) -> Outcome:
    """Simulate it."""
    before, under, after, refused = trio.run(_learning, cell, clock=JumpingClock())
    possible = trio.run(_knowing, cell, before, clock=JumpingClock())
    return Outcome(cell, under / possible, after / max(before, 1e-9), before / cell.rate, refused)


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
        f" {outcome.meanwhile:9.3f} {outcome.afterwards:9.3f} {outcome.found:6.3f} {outcome.refused_before:8.4f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What refusals at random cost, over a grid.")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: 2)")
    jobs = parser.parse_args(arguments).jobs
    started = time.monotonic()
    print("  IOPS depth   latency service  wait meanwhile afterwards found refused before")
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
