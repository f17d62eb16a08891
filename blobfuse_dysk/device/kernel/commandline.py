"""What /proc shows as the command line of this process. Standard library only, as the holder.

The kernel shows the memory in which it put the arguments at execve(2), and that may be written to. It has a place of
its own for nothing else without CAP_SYS_RESOURCE (PR_SET_MM(2const)), so what is to be shown must not be longer than
what was there. Source: proc_pid_stat(5), fields 48 and 49.
"""

from __future__ import annotations

import ctypes

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["mark", "own_stat", "show"]


def show(words: Sequence[str]) -> None:
    """Have these shown in place of what this process was started with; what does not fit is cut off."""
    start, end = own_stat(48), own_stat(49)
    if start < end:
        text = b"\0".join(word.encode(errors="surrogateescape") for word in words)
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text, min(len(text), end - start - 1))


def mark() -> None:
    """Make its first character an @; see hardening.py."""
    start = own_stat(48)
    if start:
        ctypes.memset(start, ord("@"), 1)


def own_stat(field: int) -> int:
    """A field of proc_pid_stat(5), by its number there."""
    with open("/proc/self/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[field - 3])
