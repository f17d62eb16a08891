"""Who reads credential files for this process, and runs the programs that fetch a token: itself, or another process.

A worker that serves a disk has given its rights up before it hears from the network, so files of root are out of its
reach, and a program that it started would be as powerless. Another process does both for it (device/worker/monitor.py).
What a process may do is the same for all of it, so this is said once, before there is any other task or thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

__all__ = ["Delegate", "Output", "Signature", "delegate", "signature_of", "use"]

Signature = tuple[str, int, int, int]
"""Path, inode number, time of modification in ns and size: what changes when a file is replaced or written to."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a program left: its exit status, and what it wrote."""

    returncode: int
    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)


class Delegate(Protocol):
    """The other process, whose rights these are. All but `run` may wait for a moment, and are called from a thread."""

    def credential_text(self, path: Path) -> str:
        """The text of a credential file that is in order. Raises CredentialError."""

    def authorities(self, path: str) -> str:
        """The certificates in a PEM file. Raises OSError, and ssl.SSLError if there are none."""

    def signature(self, path: str) -> Signature | None:
        """Of a file; None if there is none."""

    async def run(self, command: tuple[str, ...]) -> Output:
        """Run a program of a credential file, or our own. Raises OSError. On cancellation the program is ended."""


_delegate: Delegate | None = None


def delegate() -> Delegate | None:
    """Whom to ask; None: do it yourself."""
    return _delegate


def use(other: Delegate | None) -> None:
    """From now on this one is asked."""
    global _delegate
    _delegate = other


def signature_of(path: str) -> Signature | None:
    """Of a file, by this process's own rights."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return path, status.st_ino, status.st_mtime_ns, status.st_size
