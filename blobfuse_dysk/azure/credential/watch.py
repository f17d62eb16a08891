"""Keeps an eye on a credential in use: a file that was replaced is read again, an end that comes near is warned of.

A refusal by the service has the file read again, too (Credential.renew_refused); with the watch a rotation needs no
refused request, and a file that cannot be taken is in the log before the old credential ends. That one is looked at
again and again: a network that failed comes back, a new role takes minutes, a key may be rotated after it is written.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time

import trio

from blobfuse_dysk.azure.credential import access
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.errors import CredentialError

__all__ = ["watch"]

LOOK_S = 5.0  # between looks at the file and the clock
AGAIN_S = 30.0  # between tries of a new credential that could not be taken
_NEVER = ("", 0, 0, 0)
_WARN_S = (86400.0, 3600.0, 600.0, 60.0, 0.0)  # of what is left
_log = logging.getLogger(__name__)


async def watch(credential: Credential) -> None:
    """Run until cancelled."""
    # A worker begins with what the one before it used, which may not be what the file has. A token is always new.
    seen = await _signature(credential.file) if credential.kind == "token" or not credential.file else _NEVER
    warned = _stage(credential)  # the client, when it was made, warned of the stage that the credential is in now
    again_at = math.inf
    while True:
        await trio.sleep(LOOK_S)
        now = await _signature(credential.file)
        if credential.problem is None or not credential.file:
            again_at = math.inf
        elif again_at == math.inf:
            again_at = trio.current_time() + AGAIN_S
        if now != seen or trio.current_time() >= again_at:
            seen, again_at = now, math.inf
            with contextlib.suppress(CredentialError):  # it is in the log, once
                if await credential.reload():
                    _log.info("the credential was read again: %s", credential.describe())
        stage = _stage(credential)
        if stage < warned:
            credential.warn()
        warned = stage


async def _signature(path: str) -> access.Signature | None:
    """What changes when a file is replaced or written to; None if there is none."""
    delegate = access.delegate()
    if delegate is None:
        return access.signature_of(path)
    return await trio.to_thread.run_sync(delegate.signature, path, abandon_on_cancel=True)


def _stage(credential: Credential) -> float:
    """The nearest of _WARN_S that is not over yet; inf while there is more time."""
    if credential.expires_at is None:
        return math.inf
    left_s = credential.expires_at - time.time()
    return min((limit for limit in _WARN_S if left_s <= limit), default=math.inf)
