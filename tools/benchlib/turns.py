"""Contenders that take turns, so that each is measured on the same machine within seconds, and their medians."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median

__all__ = ["medians", "take_turns"]

Values = dict[str, float]


def take_turns(contenders: Mapping[str, Callable[[], Values]], rounds: int) -> dict[str, list[Values]]:
    """What each has found in each round. Each is the first of a round equally often."""
    names = [*contenders]
    found: dict[str, list[Values]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(contenders[name]())
    return found


def medians(rounds: list[Values], rate: str) -> Values:
    """Of each value; `least` and `most` are the slowest and the fastest round by that rate."""
    rates = [each[rate] for each in rounds]
    values = {key: median(each[key] for each in rounds) for key in rounds[0]}
    return values | {"rounds": len(rounds), "least": min(rates), "most": max(rates)}
