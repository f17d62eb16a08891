"""What is borne is remembered and come back to: Rate and Pacer, with times given."""

from __future__ import annotations

from math import inf

import pytest

from blobfuse_dysk.store.parts.noise import MOST_CLEAR_WAITING, SEEN
from blobfuse_dysk.store.parts.pacer import CALM_S, MOST_CALM_S, Pacer
from blobfuse_dysk.store.parts.rate import SEARCH_S, SURE, Rate


def rate(learned: float, borne: float) -> Rate:
    made = Rate(inf, 16.0, 250.0)
    made.restore((learned, learned, False))
    made.borne = borne
    return made


class Driven:
    """A pacer whose requests all come back at once, `per_s` of them a second; more wait."""

    def __init__(self) -> None:
        self.pacer = Pacer()
        self.now = 0.0

    def run(self, seconds: float, per_s: float) -> None:
        for _ in range(round(seconds * per_s)):
            self.now += 1 / per_s
            self.pacer.succeeded(4096, self.now)
            self.pacer.held(self.now, True)

    def refuse(self) -> None:
        self.pacer.refused(self.now, self.now, (1, 4096))

    def lose(self, learned: float) -> None:
        """Single refusals have pulled the rate down."""
        self.pacer.operations.restore((learned, learned, False))


@pytest.fixture
def driven() -> Driven:
    """500 operations a second were borne, and then one was refused."""
    made = Driven()
    made.run(3, 500)
    made.refuse()
    made.lose(100.0)
    return made


def test_what_is_remembered_is_a_little_less_than_what_got_through_and_never_more_than_was_allowed() -> None:
    one = rate(400.0, 0.0)
    one.remember(300.0)
    assert one.borne == pytest.approx(SURE * 300)
    one.remember(600.0)
    assert one.borne == pytest.approx(SURE * 400)
    one.remember(100.0)
    assert one.borne == pytest.approx(SURE * 400)


def test_a_rate_comes_back_in_large_steps_and_stops_at_what_is_borne() -> None:
    one = rate(100.0, 300.0)
    assert one.behind
    one.catch_up(SEARCH_S / 2, 3.0)
    assert one.learned == pytest.approx(150)
    for _ in range(5):
        one.catch_up(SEARCH_S, 3.0)
    assert one.learned == 300
    assert not one.behind
    one.grow(0.01, 3.0, beyond=True)
    assert one.learned >= 300


@pytest.mark.parametrize(
    ("learned", "borne", "settled"), [(100, 200, 200), (300, 200, 200), (205, 200, 205), (300, 0, 300), (inf, 200, inf)]
)
def test_noise_leaves_the_rate_that_is_borne(learned: float, borne: float, settled: float) -> None:
    one = rate(learned, borne)
    one.settle()
    assert one.learned == settled


def test_once_nothing_is_refused_the_rate_is_back_within_seconds(driven: Driven) -> None:
    driven.run(CALM_S - 0.1, 100)
    assert driven.pacer.operations.learned < 110
    driven.run(1.5, 100)
    assert driven.pacer.operations.learned == pytest.approx(SURE * 500, rel=0.02)


def test_an_experiment_wants_its_requests_before(driven: Driven) -> None:
    for _ in range(8):
        driven.run(0.04, 100)
        driven.refuse()
    driven.lose(100.0)
    driven.run(4, 30)
    assert driven.pacer.operations.learned == 100
    driven.run(3, 30)
    assert driven.pacer.operations.learned > 200


def test_an_attempt_that_fails_is_made_later_the_next_time_and_cuts_nothing(driven: Driven) -> None:
    driven.run(CALM_S + 1, 100)
    before = driven.pacer.operations.learned
    driven.refuse()
    assert driven.pacer.operations.learned == before
    driven.lose(100.0)
    driven.run(CALM_S + 1, 100)
    assert driven.pacer.operations.learned < 110
    driven.run(CALM_S, 100)
    assert driven.pacer.operations.learned > 400


def test_what_fails_again_and_again_is_given_up(driven: Driven) -> None:
    wait_s = CALM_S
    while wait_s <= MOST_CALM_S:
        assert driven.pacer.operations.behind
        driven.run(wait_s - 1, 100)
        driven.lose(100.0)  # whatever it grew by itself meanwhile
        driven.run(1.5, 100)
        driven.refuse()
        driven.lose(100.0)
        wait_s *= 2
    assert not driven.pacer.operations.behind


def test_what_got_through_while_the_last_attempt_failed_is_the_limit(driven: Driven) -> None:
    wait_s = CALM_S
    while wait_s <= MOST_CALM_S:
        driven.run(wait_s - 1, 100)
        driven.lose(100.0)  # whatever it grew by itself meanwhile
        driven.run(1.5, 100)
        before = driven.pacer.operations.learned
        driven.refuse()
        wait_s *= 2
    assert before > 400
    assert driven.pacer.operations.learned == pytest.approx(100, rel=0.1)


def test_much_refused_is_the_limit(driven: Driven) -> None:
    driven.run(1, 100)
    for _ in range(100):
        driven.now += 0.01
        driven.refuse()
        driven.pacer.succeeded(4096, driven.now)
    assert driven.pacer.operations.borne == 0
    driven.lose(50.0)
    driven.run(CALM_S + 1, 50)
    assert driven.pacer.operations.learned < 60


def pausing(driven: Driven, times: int, requests: int = 5) -> None:
    """Each refusal stops the whole disk for a second, and so many requests get through between two of them."""
    for _ in range(times):
        driven.run(requests / 50, 50)
        driven.refuse()
        driven.pacer.asked(1.0, driven.now, much=False, last=True)
        driven.now += 1.0
        driven.pacer.charge(4096, driven.now)


def test_what_is_refused_right_after_a_cut_was_for_the_rate_before(driven: Driven) -> None:
    pausing(driven, 1)
    driven.run(0.1, 50)
    driven.refuse()
    cut = driven.pacer.operations.state
    for _ in range(SEEN - 1):
        driven.now += 0.001
        driven.refuse()
    driven.run(0.16, 200)
    driven.refuse()
    assert driven.pacer.operations.state == cut  # one refusal was heard of, which shows no share yet


def test_many_of_few_requests_refused_are_no_noise_whatever_was_borne(driven: Driven) -> None:
    pausing(driven, 4)
    assert driven.pacer.operations.borne > 0
    pausing(driven, 2)
    assert driven.pacer.operations.borne == 0


@pytest.mark.parametrize(("requests", "believed"), [(MOST_CLEAR_WAITING - 50, True), (MOST_CLEAR_WAITING + 1, False)])
def test_an_experiment_that_pauses_led_to_lasts_long_and_then_shows_that_a_limit_fell(
    driven: Driven, requests: int, believed: bool
) -> None:
    pausing(driven, 2 + SEEN, 20)  # the first two begin an experiment
    assert driven.pacer.operations.borne > 400
    driven.run(requests / 500, 500)
    driven.refuse()
    assert (driven.pacer.operations.borne > 400) is believed
