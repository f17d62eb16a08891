"""The plain lane itself: how a call goes through layers, and how it ends."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from blobfuse_dysk.store.passage import DONE, NO, UNDER_WAY, Lane, Passage, Rest, begin_of, launch


class Layers:
    """Three of them, and who calls; `said` has what happened."""

    def __init__(self, lowest: int = UNDER_WAY, middle: bool = True, *, left: bool = False) -> None:
        self.said: list[str] = []
        self.lowest, self.middle, self.left = lowest, middle, left
        low = Lane(self._begin_low, (lambda passage: self.said.append("low ended"),), (self._rest_of("low"),))
        between = low.under(self._begin_middle)
        self.lane = between.under(self._begin_top, lambda passage: self.said.append("top ended"), self._rest_of("top"))
        self._below_middle, self._below_top = begin_of(low), begin_of(between)

    def call(self) -> Passage:
        return Passage(self.lane, self, "tag", 512, 1024, None, 1.0)

    def ended(self, passage: Passage) -> None:
        self.said.append(f"owner: {passage.result!r} at {passage.ended}")

    def take_over(self, passage: Passage, rest: Rest) -> None:
        self.said.append("owner takes over")
        with pytest.raises(StopIteration) as done:
            rest.send(None)
        self.said.append(f"owner: {done.value.value!r}")

    def _begin_low(self, passage: Passage) -> int:
        if self.left:
            passage.rest = self._left()
        return self.lowest

    def _begin_middle(self, passage: Passage) -> int:
        return self._below_middle(passage) if self.middle else NO

    def _begin_top(self, passage: Passage) -> int:
        began = self._below_top(passage)
        if began:
            self.said.append("top noted")
        return began

    async def _left(self) -> bytes:
        return b"left"

    def _rest_of(self, name: str) -> Any:
        async def rest(call: Awaitable[bytes]) -> bytes:
            data = await call
            self.said.append(f"rest of {name}")
            return data

        return lambda passage, call: rest(call)


def test_the_expected_answer_ends_each_layer_the_lowest_first() -> None:
    layers = Layers()
    passage = layers.call()
    assert launch(passage) == UNDER_WAY
    assert layers.said == ["top noted"]
    passage.succeed(b"x", 2.0)
    assert layers.said == ["top noted", "low ended", "top ended", "owner: b'x' at 2.0"]


def test_all_else_is_the_rest_of_each_layer_the_lowest_first() -> None:
    layers = Layers()
    passage = layers.call()
    launch(passage)
    passage.hand_over(layers._left())
    assert layers.said == ["top noted", "owner takes over", "rest of low", "rest of top", "owner: b'left'"]


def test_what_has_to_go_on_at_once_does_so_when_all_have_noted_the_call() -> None:
    layers = Layers(left=True)
    passage = layers.call()
    assert launch(passage) == UNDER_WAY
    assert layers.said == ["top noted", "owner takes over", "rest of low", "rest of top", "owner: b'left'"]
    assert passage.rest is None


@pytest.mark.parametrize("layers", [Layers(NO), Layers(middle=False)], ids=["the lowest", "one in between"])
def test_after_a_no_nothing_happened(layers: Layers) -> None:
    assert launch(layers.call()) == NO
    assert layers.said == []


def test_what_is_done_is_for_the_caller_to_end() -> None:
    layers = Layers(DONE)
    assert launch(layers.call()) == DONE
    assert layers.said == ["top noted"]


def test_without_a_lane_there_is_no_way() -> None:
    assert begin_of(None)(Layers().call()) == NO
