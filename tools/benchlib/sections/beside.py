"""Random 4 KiB reads at depth 32 without service time, by contenders that take turns; medians over the rounds.

A virtual machine can be half as fast from one second to the next, as its neighbours come and go. Contenders that are
measured one after another for long have then been measured on different machines. Here all are there at once, on the
same blob of the same server, and each has a second in each round: this is where ratios and microseconds are taken from.
`least` and `most` are the slowest and fastest round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from tools.benchlib import fio
from tools.benchlib.bench import OURS, Bench, Section
from tools.benchlib.fio import Job
from tools.benchlib.meter import Meter
from tools.benchlib.peers import nbdfuse, prototype
from tools.benchlib.place import Place, open_place
from tools.benchlib.tables import column
from tools.benchlib.turns import medians, take_turns

__all__ = ["SECTION"]

_SIZE = 512 << 20  # bytes
_NAME = "beside"
_DEPTH = 32
_SECONDS = 1.0

Round = Callable[[], dict[str, float]]


def _measure(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(open_place(0))
        contenders = _contenders(bench, stack, place)
        for name, rounds in take_turns(contenders, bench.plan.rounds).items():
            bench.add(name, {"load": "randread", "block": "4k", "depth": _DEPTH}, medians(rounds, "iops"))


def _contenders(bench: Bench, stack: contextlib.ExitStack, place: Place) -> dict[str, Round]:
    """What each does in a round; those that are missing are noted and left out."""
    job = Job("randread", _DEPTH, min(_SECONDS, bench.plan.seconds), ramp_s=0.2)
    device = stack.enter_context(place.attached(place.make_disk(_NAME, _SIZE)))
    fio.fill(device)
    workers = place.meter(device)
    contenders: dict[str, Round] = {OURS: lambda: fio.run(device, job, workers)}
    url = place.url(_NAME)
    with bench.optional(nbdfuse.NAME):
        peer, processes = stack.enter_context(nbdfuse.nbdfuse_device(url, place.root))
        contenders[nbdfuse.NAME] = lambda: fio.run(peer, job, Meter(processes, place.server, peer))
    with bench.optional(prototype.NAME):
        plain, of_plain = stack.enter_context(prototype.prototype_device(url, _SIZE, place.root))
        contenders[prototype.NAME] = lambda: fio.run(plain, job, Meter(of_plain, place.server, plain))
    return contenders


SECTION = Section(
    _NAME,
    "Side by side: random 4 KiB reads, no service time, contenders in turns, medians",
    (
        column("depth", "depth"),
        column("rounds", "rounds"),
        column("IOPS", "iops"),
        column("least", "least"),
        column("most", "most"),
        column("mean latency", "mean_us", "us as ms"),
        column("CPU per I/O", "cpu_us_per_io", "us"),
        column("requests per I/O", "requests_per_io", "two"),
    ),
    _measure,
)
