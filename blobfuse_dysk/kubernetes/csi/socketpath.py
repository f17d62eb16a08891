"""The Unix socket of the driver: whose it is, and what may be replaced.

gRPC takes over a path in silence on which another server listens, and removes whatever is there when it stops. So one
holds a lock on a file beside the socket for as long as it serves, and nothing is replaced that answers: what is found
there is removed only if it is a socket that nobody listens on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from blobfuse_dysk.errors import DeviceError, UsageError

__all__ = ["claimed", "parse_endpoint"]

MOST_PATH = 107  # bytes: sun_path without its zero byte; source: unix(7)
_ANSWER_S = 2.0


def parse_endpoint(text: str) -> Path:
    """The path of `unix:///PATH`, `unix:/PATH` or `/PATH`. Raises UsageError."""
    scheme, colon, rest = text.partition(":")
    path = rest if colon and scheme == "unix" else text
    if path.startswith("//"):
        path = path[2:]
    if not path.startswith("/") or (colon and scheme != "unix" and "/" not in scheme):
        raise UsageError(f"endpoint {text!r} is no Unix socket's", remedy="write unix:///csi/csi.sock")
    if len(os.fsencode(path)) > MOST_PATH:
        raise UsageError(f"endpoint {text!r} is too long", remedy=f"a socket's path has at most {MOST_PATH} bytes")
    return Path(path)


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Own this path: nobody else of us serves there meanwhile, and nothing is there at first. Raises DyskError."""
    lock = path.with_name(f"{path.name}.lock")
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DeviceError(f"{lock} cannot be made: {error.strerror}", remedy="the directory must be there") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DeviceError(f"another dysk-csi serves {path}", remedy="stop it first, or use another path") from None
        _remove_stale(path)
        yield
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise UsageError(f"{path} is there and is no socket", remedy="remove it, or use another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(str(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:  # it may be that somebody has it who is slow to accept
                raise DeviceError(f"{path} cannot be looked at: {error}", remedy="see who has it: ss -lxp") from error
        else:
            raise DeviceError(f"somebody serves {path}", remedy="stop it first (ss -lxp), or use another path")
    path.unlink()
