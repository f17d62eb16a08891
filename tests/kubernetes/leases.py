"""A node that has a volume: the block layer of a real attachment, in a thread, without a device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from random import Random

import trio

from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.kubernetes.volume import volume_address, with_secret
from blobfuse_dysk.store.open import open_stack
from blobfuse_dysk.store.stack import Stack, StackOptions

__all__ = ["Holder", "held_by", "written"]

_LIMIT_S = 30.0


class Holder:
    """It has the disk until the block ends."""

    def __init__(self, node: str, volume_id: str, secrets: Mapping[str, str]) -> None:
        self._node = node
        disk, options = with_secret(volume_address(volume_id), secrets)
        self._address, self._credential = resolve.resolve(disk, options)
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stack: Stack | None = None
        self._end = trio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def write(self, offset: int, data: bytes) -> None:
        """Write, and flush. Raises DyskError."""

        async def both() -> None:
            assert self._stack is not None
            await self._stack.store.write(offset, data)
            await self._stack.store.flush()

        trio.from_thread.run(both, trio_token=self._token)

    def read(self, offset: int, length: int) -> bytes:
        """What is there."""

        async def ask() -> bytes:
            assert self._stack is not None
            buffer = bytearray(length)
            got = await self._stack.store.read(offset, length)
            buffer[:] = got
            return bytes(buffer)

        return trio.from_thread.run(ask, trio_token=self._token)

    def __enter__(self) -> Holder:
        self._thread.start()
        assert self._ready.wait(_LIMIT_S)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join(_LIMIT_S)

    def _run(self) -> None:
        try:
            trio.run(self._hold)
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _hold(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        options = StackOptions(node=self._node, cache="none", io_timeout_s=5.0)
        with contextlib.suppress(DyskError):  # of its end, after it was fenced
            async with open_stack(self._address, self._credential, options, random=Random()) as stack:
                self._stack = stack
                fence = stack._fence
                assert fence is not None
                await fence._wait_for(lambda: fence._first is None)  # others read the name, which is written by then
                self._ready.set()
                await self._end.wait()
                await stack.release()


@contextlib.contextmanager
def held_by(node: str, volume_id: str, secrets: Mapping[str, str]) -> Iterator[Holder]:
    """Meanwhile the node has the volume attached."""
    with Holder(node, volume_id, secrets) as holder:
        yield holder


def written(volume_id: str, secrets: Mapping[str, str], *pieces: tuple[int, bytes]) -> None:
    """Write to a volume that nobody has."""
    with held_by("writer", volume_id, secrets) as holder:
        for offset, data in pieces:
            holder.write(offset, data)
