"""Attaching to a simulated blob: what the tests of the stack share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import cast

import pytest

from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.store.open import ResumeState, open_stack
from blobfuse_dysk.store.parts.ring import Ring
from blobfuse_dysk.store.stack import Stack, StackOptions
from blobfuse_dysk.testing import SimClient

ADDRESS = DiskAddress.parse("account/container/disk.img")
NOBODY = cast(Credential, None)  # simulated clients sign nothing
SIZE = 1 << 20
LEASE = "1" * 8 + "-1111-1111-1111-" + "1" * 12
DATA = b"x" * 512
Node = Callable[..., SimClient]
"""See conftest.node."""


@asynccontextmanager
async def attached(
    client: SimClient,
    *,
    address: DiskAddress = ADDRESS,
    resume: ResumeState | None = None,
    ring: Ring | None = None,
    states: list[str] | None = None,
    seed: int = 0,
    named: bool = True,
    **options: object,
) -> AsyncIterator[Stack]:
    """named: not before the name is on the blob, as far as that can be, and writes pass."""
    async with open_stack(
        address,
        NOBODY,
        StackOptions(**{"node": "here", **options}),  # type: ignore[arg-type]
        resume=resume,
        ring=ring,
        on_state=(states if states is not None else []).append,
        client=client,
        random=Random(seed),
    ) as stack:
        fence = stack._fence
        if named and fence is not None:
            await fence._wait_for(lambda: fence._first is None)
        yield stack


async def refused(client: SimClient, kind: type[DyskError], **options: object) -> DyskError:
    with pytest.raises(kind) as caught:
        async with attached(client, **options):  # type: ignore[arg-type]
            raise AssertionError("attached")
    return caught.value


def held(stack: Stack) -> ResumeState:
    """What the next worker of that attachment is told."""
    assert stack.lease_id is not None
    assert stack.epoch is not None
    return ResumeState(stack.lease_id, stack.epoch, stack.lease_s)
