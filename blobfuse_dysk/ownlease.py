"""Attaching when the machine starts: a lease that this very node still holds is what its last life left behind.

After a power cut, or a shutdown in which the service could not be reached, nobody released it; it ends by itself within
its term. So whatever attaches at boot waits that long. Another node's lease is an error at once, as in any attach.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from blobfuse_dysk import environment
from blobfuse_dysk.errors import LeasedError

__all__ = ["wait_for_own_lease"]

_T = TypeVar("_T")

_log = logging.getLogger(__name__)
_LONGEST_S = 65.0  # the longest lease that ends is one of 60 s
_PAUSE_S = 2.0


def wait_for_own_lease(attach: Callable[[], _T]) -> _T:
    """What `attach` returns; it is called again while the lease is held in this node's own name, for up to its term."""
    deadline = time.monotonic() + _LONGEST_S
    said = False
    while True:
        try:
            return attach()
        except LeasedError as error:
            if error.holder != environment.node_name() or time.monotonic() > deadline:
                raise
            if not said:
                _log.warning("%s: most likely before this node was restarted; waiting for the lease to end", error)
            said = True
        time.sleep(_PAUSE_S)
