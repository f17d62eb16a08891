"""The server's latency distributions and a tier's limits, with a clock of the test's own."""

from __future__ import annotations

import random
import statistics

import pytest

from blobfuse_dysk.testing.server.answers import Refusal
from blobfuse_dysk.testing.server.latency import parse_latency
from blobfuse_dysk.testing.server.throttle import BURST_S, QUEUE_S, TIERS, Limiter, parse_tier


def test_a_fixed_latency_is_always_the_same() -> None:
    assert parse_latency("2", random.Random(1))() == 0.002
    assert parse_latency("fixed:2.5", random.Random(1))() == 0.0025


@pytest.mark.parametrize(("text", "centre"), [("normal:10,2", 0.010), ("lognormal:10,0.5", 0.010)])
def test_a_latency_that_is_drawn_has_the_median_asked_for(text: str, centre: float) -> None:
    draw = parse_latency(text, random.Random(1))
    drawn = [draw() for _ in range(2000)]
    assert statistics.median(drawn) == pytest.approx(centre, rel=0.05)
    assert len(set(drawn)) > 1900
    assert min(drawn) >= 0
    again = parse_latency(text, random.Random(1))
    assert [again() for _ in range(2000)] == drawn


@pytest.mark.parametrize("text", ["", "often", "-1", "normal:1", "lognormal:0,1", "uniform:1,2"])
def test_a_latency_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"latency|convert"):
        parse_latency(text, random.Random(1))


@pytest.mark.parametrize("name", TIERS)
@pytest.mark.parametrize("length", [4096, 262144, 4 << 20])
def test_a_greedy_client_gets_the_limit(name: str, length: int) -> None:
    """Asking every 50 microseconds, whatever the answer, gets what the tier sells in a second."""
    rates = parse_tier(name)
    limiter, done = Limiter(), 0
    for turn in range(20_000):
        try:
            limiter.admit(length, rates, 100 + turn * 5e-5, refuse=True)
            done += 1
        except Refusal as refused:
            assert refused.code == "ServerBusy"
    sold = min(rates[0] / -(-length // 262144), rates[1] / length)
    assert sold - 1 <= done <= sold * (1 + BURST_S + QUEUE_S) + 2


def test_delay_instead_of_refusal() -> None:
    limiter = Limiter()
    waits = [limiter.admit(4096, (100, 1e9), 50.0, refuse=False) for _ in range(50)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(49 / 100 - BURST_S)


def test_idle_time_is_not_saved_up() -> None:
    limiter = Limiter()
    limiter.admit(4096, (100, 1e9), 0.0, refuse=True)
    waits = [limiter.admit(4096, (100, 1e9), 1000.0, refuse=False) for _ in range(20)]
    assert waits[-1] == pytest.approx(19 / 100 - BURST_S)


@pytest.mark.parametrize("text", ["P99", "100", "0/1", "1/0", "a/b"])
def test_a_tier_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"tier|convert"):
        parse_tier(text)
