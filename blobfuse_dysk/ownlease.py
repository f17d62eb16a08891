"""Attaching over a lease in this node's own name: what its last life left behind, which ends by itself.

After a power cut, a shutdown in which the service could not be reached, or the death of all its processes nobody
released it. It ends within its term, so whoever attaches waits that long, and says so. Another node's lease is an error
at once; so is one without end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from blobfuse_dysk import environment
from blobfuse_dysk.errors import LeasedError
from blobfuse_dysk.patience import telling

__all__ = ["wait_for_own_lease"]

_T = TypeVar("_T")

_log = logging.getLogger(__name__)
_TERM_S = 60.0  # the longest that a lease which ends has; source: Lease Blob, x-ms-lease-duration
_LONGEST_S = _TERM_S + 5.0
_PAUSE_S = 2.0


def wait_for_own_lease(attach: Callable[[], _T]) -> _T:
    """What `attach` returns; it is called again while the lease is held in this node's own name, for up to its term.

    Raises LeasedError if it is another node's, has no end, or is renewed by somebody after all.
    """
    try:
        return attach()
    except LeasedError as error:
        if error.holder != environment.node_name():
            raise
        if error.endless:
            raise LeasedError(
                f"{error}: left behind by this machine, and without end",
                holder=error.holder,
                since=error.since,
                endless=True,
                remedy="take it with --break-lease",
            ) from None
        free_at = time.monotonic() + _TERM_S
        _log.warning("%s: left behind by this machine, free in %.0f s at most: waiting", error, _TERM_S)
    with telling(lambda: f"waiting for the lease that this machine left behind, free in {_left_s(free_at)} s at most"):
        while True:
            time.sleep(_PAUSE_S)
            try:
                return attach()
            except LeasedError as error:
                if error.holder != environment.node_name():
                    raise
                if time.monotonic() > free_at - _TERM_S + _LONGEST_S:
                    raise LeasedError(
                        f"{error}, and still is after {_LONGEST_S:.0f} s: "
                        "another machine, or container, of this name has it",
                        holder=error.holder,
                        since=error.since,
                        remedy="give each its own name (DYSK_NODE); detach it there, or take it with --break-lease",
                    ) from None


def _left_s(free_at: float) -> int:
    return max(1, round(free_at - time.monotonic()))
