"""A service that sells so many operations and bytes a second, in virtual time, and a load for it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import trio

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.contract import Buffer, Extent, Store
from blobfuse_dysk.store.layers.retry import Retry
from blobfuse_dysk.store.layers.throttle import Throttle
from blobfuse_dysk.store.parts.limiter import Limiter
from blobfuse_dysk.store.parts.pacer import Pacer, operations
from blobfuse_dysk.testing.server.answers import Refusal
from blobfuse_dysk.testing.server.throttle import Limiter as Tier
from blobfuse_dysk.testing.server.throttle import parse_tier

LATENCY_S = 0.002


class LimitedStore(Store):
    """Answers after about latency_s, as far as `tier` allows.

    how: "503" and "delay" are those of the page blob server (which lets requests queue for a while before it refuses);
    "strict" refuses as soon as a request would have to wait; "seconds" counts operations by the second.
    noise: the share of requests that is refused whatever their rate.
    """

    def __init__(
        self,
        tier: str,
        how: str,
        *,
        retry_after_s: float | None = None,
        noise: float = 0.0,
        latency_s: float = LATENCY_S,
    ) -> None:
        self.rates = parse_tier(tier)
        self.noise = noise
        self.done = self.bytes = self.refused = 0
        self._how = how
        self._retry_after_s = retry_after_s
        self._latency_s = latency_s
        self._tier = Tier()
        self._random = Random(5)
        self._noise_random = Random(7)  # of its own: whoever comes when noise begins, the same requests are refused
        self._second, self._left = -1, 0.0

    @property
    def size(self) -> int:
        return 8 << 40

    async def read(self, offset: int, length: int) -> Buffer:
        await self._serve(length)
        return b""

    async def write(self, offset: int, data: Buffer) -> None:
        await self._serve(len(data))

    async def zero(self, offset: int, length: int) -> None:
        await self._serve(0)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return []

    async def grow(self, size: int) -> None:
        await self._serve(0)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _serve(self, length: int) -> None:
        try:
            if self.noise and self._noise_random.random() < self.noise:
                raise Refusal("ServerBusy")
            wait_s = self._admit(length, trio.current_time())
        except Refusal:
            self.refused += 1
            await trio.sleep(self._latency_s)
            raise StoreError("busy", Kind.THROTTLED, retry_after_s=self._retry_after_s) from None
        await trio.sleep(wait_s + self._latency_s * self._random.uniform(0.8, 1.2))
        self.done += operations(length)
        self.bytes += length

    def _admit(self, length: int, now: float) -> float:
        if self._how == "seconds":
            if int(now) != self._second:
                self._second, self._left = int(now), self.rates[0]
            self._left -= 1
            if self._left < 0:
                raise Refusal("ServerBusy")
            return 0.0
        if self._how == "strict" and self._tier.admit(0, self.rates, now, False) > 0:
            raise Refusal("ServerBusy")
        return self._tier.admit(length, self.rates, now, self._how == "503")


@dataclass
class Seen:
    """What came of a load: operations and bytes per second as shares of what was sold, refusals as one of requests."""

    operations: float
    bytes: float
    refused: float

    @property
    def used(self) -> float:
        """The share of the limit that was reached first."""
        return max(self.operations, self.bytes)


class Client:
    """Retry over Throttle over a service."""

    def __init__(self, service: LimitedStore, pacer: Pacer | None = None) -> None:
        self.service = service
        self.limiter = Limiter(pacer=pacer)
        self.throttle = Throttle(service, limiter=self.limiter)
        self.store = Retry(self.throttle, io_timeout_s=None, random=Random(1))

    async def load(self, length: int, depth: int, seconds: float, *, write: bool = False) -> Seen:
        """Keep `depth` calls of `length` bytes going for so long."""
        service = self.service
        before = service.done, service.bytes, service.refused
        data = bytes(length) if write else b""

        async def one() -> None:
            while True:
                await (self.store.write(0, data) if write else self.store.read(0, length))

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(depth):
                    nursery.start_soon(one)
        done, size, refused = service.done - before[0], service.bytes - before[1], service.refused - before[2]
        requests = done / operations(length) + refused
        share = refused / requests if requests else 0.0
        return Seen(done / seconds / service.rates[0], size / seconds / service.rates[1], share)
