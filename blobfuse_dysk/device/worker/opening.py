"""How a worker opens the block layer of its disk: dirty ring and stack."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.device.ipc.config import Config
from blobfuse_dysk.device.kernel import hardening
from blobfuse_dysk.store.open import ResumeState, open_stack
from blobfuse_dysk.store.parts.ring import Ring
from blobfuse_dysk.store.stack import Stack, StackOptions

__all__ = ["OpenStack", "open_real_stack", "resume_state"]

OpenStack = Callable[
    [Config, Credential, ResumeState | None, int, Callable[[str], None]], AbstractAsyncContextManager[Stack]
]


@asynccontextmanager
async def open_real_stack(
    config: Config, credential: Credential, held: ResumeState | None, ring_fd: int, on_state: Callable[[str], None]
) -> AsyncIterator[Stack]:
    """Open the disk that the configuration names; see store/stack.py."""
    options = StackOptions.of(config.options, config.node)
    with hardening.when_touched():
        ring = Ring(ring_fd, config.options.write_cache_size) if options.writes_back else None
    try:
        async with open_stack(config.address, credential, options, resume=held, ring=ring, on_state=on_state) as stack:
            yield stack
    finally:
        if ring:
            ring.close()


def resume_state(lease: dict[str, Any] | None) -> ResumeState | None:
    """What state.json says of the lease that is to be taken up."""
    return ResumeState(lease["id"], lease["epoch"], lease["seconds"]) if lease else None
