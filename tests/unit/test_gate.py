"""Gate: pauses, and times without them."""

from __future__ import annotations

from math import inf

from blobfuse_dysk.store.parts.gate import Gate


def test_a_pause_is_no_open_time() -> None:
    gate = Gate()
    assert gate.open(10.0) == 10.0
    gate.close(10.0, 2.0)
    assert gate.closed_until == gate.resumed_at == 12.0
    assert gate.open(11.0) == gate.open(12.0) == 10.0
    assert gate.open(13.0) == 11.0


def test_pauses_that_overlap_count_once_and_a_shorter_one_opens_nothing() -> None:
    gate = Gate()
    gate.close(10.0, 2.0)
    gate.close(11.0, 3.0)
    assert gate.closed_until == 14.0
    gate.close(12.0, 1.0)
    assert gate.closed_until == gate.resumed_at == 14.0
    assert gate.open(15.0) == 11.0


def test_time_in_which_all_calls_wait_for_their_repeats_is_no_open_time() -> None:
    gate = Gate()
    gate.idle(5.0)
    gate.started(8.0)
    assert gate.idle_at == inf
    assert gate.resumed_at == 8.0
    assert gate.closed_until == -inf
    assert gate.open(9.0) == 6.0


def test_what_is_idle_in_a_pause_and_longer_counts_once() -> None:
    gate = Gate()
    gate.close(10.0, 2.0)
    gate.idle(10.0)
    gate.started(13.0)
    assert gate.open(14.0) == 11.0
    gate.close(20.0, 5.0)
    gate.idle(20.0)
    gate.started(25.0)
    assert gate.open(26.0) == 18.0
