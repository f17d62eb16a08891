"""How a worker opens the block layer of its disk: dirty ring and stack."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.device.ipc.config import Config
from blobfuse_dysk.device.kernel import hardening
from blobfuse_dysk.store.invariant import end_by
from blobfuse_dysk.store.open import ResumeState, open_stack
from blobfuse_dysk.store.parts.ring import Ring
from blobfuse_dysk.store.stack import Stack, StackOptions

__all__ = ["OpenStack", "leaves", "open_real_stack", "resume_state"]

BROKEN_STATUS = 70  # EX_SOFTWARE; the holder logs it
_log = logging.getLogger(__name__)
OpenStack = Callable[
    [Config, Credential, ResumeState | None, int, Callable[[str], None]], AbstractAsyncContextManager[Stack]
]


@asynccontextmanager
async def open_real_stack(
    config: Config, credential: Credential, held: ResumeState | None, ring_fd: int, on_state: Callable[[str], None]
) -> AsyncIterator[Stack]:
    """Open the disk that the configuration names; see store/stack.py. A broken invariant ends this process."""
    end_by(_die)
    options = StackOptions.of(config.options, config.node)
    with hardening.when_touched():
        ring = Ring(ring_fd, config.options.write_cache_size) if options.writes_back else None
    try:
        async with open_stack(config.address, credential, options, resume=held, ring=ring, on_state=on_state) as stack:
            yield stack
    finally:
        if ring:
            ring.close()


def _die(what: str) -> None:
    """Leave everything as it is to the next worker; no other task of this one gets another step."""
    _log.critical("this worker cannot be trusted any more and ends: %s", what, stack_info=True)
    os._exit(BROKEN_STATUS)


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions in a group and the groups in it: why an open block layer came to its end."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def resume_state(lease: dict[str, Any] | None) -> ResumeState | None:
    """What state.json says of the lease that is to be taken up."""
    return ResumeState(lease["id"], lease["epoch"], lease["seconds"]) if lease else None
