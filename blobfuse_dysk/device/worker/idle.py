"""What a worker does once a load is over: it gives the memory back that the load took.

That of its heap a few times after each load (kernel/hardening.py), as it costs some milliseconds each time. Whenever
little is asked for, that of the dirty ring (store/parts/ring.py), as a trickle of writes goes all the way round it,
too, and the buffers that no request has (channel.py).
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from blobfuse_dysk.device.kernel import hardening

__all__ = ["give_memory_back"]

LOOK_S = 7.0
FEW = 30  # requests a second; a file system that nobody uses asks for less
ROUNDS = 3  # what the caches still keep goes in the first 15 s


async def give_memory_back(requests: Callable[[], int], spare: Callable[[], None]) -> None:
    """For ever: after each load, ROUNDS times. requests: how many there were up to now. spare: frees the rest."""
    before, left = requests(), 0
    while True:
        await trio.sleep(LOOK_S)
        now = requests()
        if now - before > FEW * LOOK_S:
            left = ROUNDS
        else:
            spare()
            if left:
                left -= 1
                hardening.give_memory_back()
        before = now
