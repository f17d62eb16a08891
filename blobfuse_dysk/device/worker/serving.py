"""Only one worker of an attachment serves at a time: the kernel sees to it, whatever happened to their holders.

A worker that is to serve first takes a lock of the attachment's dirty ring, on a descriptor of its own making, and has
it until it has ended. All that it does to the FUSE connection, the ring and the lease, it does with the lock, the last
flush and the release of the lease included. So the next one, whoever started it and whatever that one knew of this
one, begins when nothing of this process can do anything any more: the kernel takes the lock back when the last of its
threads has ended.

Source: flock(2). The lock belongs to what open(2) made, not to the file: copies of the holder's descriptor, which all
workers and the service manager have, are one and the same for it, so each worker opens the file again.
"""

from __future__ import annotations

import fcntl
import os

__all__ = ["await_turn"]


def await_turn(ring_fd: int) -> int:
    """Wait until no other worker of the attachment serves. It is this one's turn while the descriptor is open.

    Returns the descriptor, which is not to be closed: the end of the process does that. Raises OSError without /proc.
    """
    turn = os.open(f"/proc/self/fd/{ring_fd}", os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(turn, fcntl.LOCK_EX)
    return turn
