"""When a worker gives memory back: after a load, and not while there is one, nor for ever."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from blobfuse_dysk.device.kernel import hardening
from blobfuse_dysk.device.worker import idle


async def test_memory_is_given_back_after_each_load_a_few_times(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []
    rings: list[float] = []
    monkeypatch.setattr(hardening, "give_memory_back", lambda: given.append(trio.current_time()))
    counts = iter([0, 0, 90_000, 180_000, *range(180_000, 181_000, 100), *[400_000] * 9])
    begun = trio.current_time()
    with trio.move_on_after(idle.LOOK_S * 22.5):
        await idle.give_memory_back(lambda: next(counts), lambda: rings.append(trio.current_time()))
    rounds, quiet = ([round((at - begun) / idle.LOOK_S) for at in times] for times in (given, rings))
    assert rounds == [4, 5, 6, 15, 16, 17]  # the loads end with the third and the fourteenth look
    assert set(quiet) == set(range(1, 23)) - {2, 3, 14}  # that of the ring whenever there is no load
