"""What a worker does once a load is over: it gives the memory back that the load took. See kernel/hardening.py."""

from __future__ import annotations

from collections.abc import Callable

import trio

from blobfuse_dysk.device.kernel import hardening

__all__ = ["give_memory_back"]

LOOK_S = 7.0
FEW = 30  # requests a second; a file system that nobody uses asks for less
ROUNDS = 3  # what the caches still keep goes in the first 15 s


async def give_memory_back(requests: Callable[[], int], trim: Callable[[], object]) -> None:
    """For ever: after each load, ROUNDS times. requests: how many there were up to now. trim: frees what is spare."""
    before, left = requests(), 0
    while True:
        await trio.sleep(LOOK_S)
        now = requests()
        if now - before > FEW * LOOK_S:
            left = ROUNDS
        elif left:
            left -= 1
            trim()
            hardening.give_memory_back()
        before = now
