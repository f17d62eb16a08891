"""How long the service takes: a fixed time or a distribution, drawn with a seed so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["parse_latency"]


def parse_latency(text: str, generator: random.Random) -> Callable[[], float]:
    """A function that draws seconds. `2` or `fixed:2`, `normal:MEAN,SD`, `lognormal:MEDIAN,SIGMA`; milliseconds.

    Raises ValueError when malformed. Timers of the event loop have a resolution of about 1 ms.
    """
    kind, _, numbers = text.rpartition(":")
    values = [float(number) for number in numbers.split(",")]
    if any(value < 0 for value in values):
        raise ValueError(f"latency {text!r} is negative")
    if kind in ("", "fixed") and len(values) == 1:
        seconds = values[0] / 1000
        return lambda: seconds
    if kind == "normal" and len(values) == 2:
        mean, deviation = values[0] / 1000, values[1] / 1000
        return lambda: max(0.0, generator.gauss(mean, deviation))
    if kind == "lognormal" and len(values) == 2 and values[0] > 0:
        median, sigma = values[0] / 1000, values[1]
        return lambda: median * generator.lognormvariate(0.0, sigma)
    raise ValueError(f"latency {text!r} is none of MS, fixed:MS, normal:MEAN,SD, lognormal:MEDIAN,SIGMA")
