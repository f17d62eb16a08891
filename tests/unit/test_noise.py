"""An experiment on whether refusals depend on the rate: Trial; and what is believed since: Noise.

Their use: tests/simulation/test_sporadic.py.
"""

from __future__ import annotations

from blobfuse_dysk.store.parts.noise import MOST_SHARE, SEEN, Noise, Trial


def trial(*, before: float = 0.0, certain: bool = False, borne: bool = False) -> Trial:
    return Trial(1000, (10.0, 10.0), (0, 0), 300.0, before=before, certain=certain, borne=borne)


def test_a_share_is_known_after_three_refusals() -> None:
    one = trial()
    seen = [one.share(1000 + 100 * (index + 1)) for index in range(SEEN)]
    assert seen == [None] * (SEEN - 1) + [0.01]


def test_where_a_limit_would_refuse_nothing_and_more_was_borne_the_first_refusal_ends_the_experiment() -> None:
    known = trial(before=0.02, certain=True, borne=True)
    share = known.share(1008)
    assert share is not None
    assert known.futile(share)
    unknown = trial(before=0.02, certain=True)
    assert unknown.share(1008) is None


def test_more_than_noise_can_be_is_a_limit_where_nothing_was_borne() -> None:
    one = trial(before=0.05, certain=True)
    assert one.futile(0.05)
    assert not one.futile(MOST_SHARE + 0.01)
    assert not one.futile(0.01)


def test_an_experiment_goes_on_until_so_many_requests_went_well() -> None:
    one = trial()
    assert one.holds(1299)
    one.share(1200)
    assert one.holds(1499)
    assert not one.holds(1500)


def refusals_explained(believed: float, share: float, most: int = 500) -> int:
    """How many refusals in a row, evenly `share` of the requests, are taken for noise."""
    noise = Noise()
    noise.believe(believed, 1000)
    return next((index for index in range(most) if not noise.explains(1000 + round((index + 1) / share))), most)


def test_the_share_that_is_believed_may_double_but_what_stays_at_more_is_something_else() -> None:
    assert refusals_explained(0.02, 0.02) == 500
    assert refusals_explained(0.02, 0.038) == 500
    assert refusals_explained(0.05, 0.06) == 500
    assert refusals_explained(0.05, 0.11) < 20  # as a limit refuses to one caller at twice its rate
    assert refusals_explained(0.02, 0.07) < 20
