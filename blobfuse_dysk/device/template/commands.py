"""Where programs in C (cli/native/dyskctl.c) have a template run a command: cli/handed.py, in a fork of the template.

The socket's name has a checksum of the directory of the interpreter, where these programs are, too: they know nothing
else of who would run them. There may be several templates; the one that was started last has the name, and if it is not
there any more, the next that is asked for a holder takes it. Who asks is compared with what this process hands on
(kernel/inherited.py); if it is not the same, or anything else does not fit, the connection ends, and who asked runs the
command itself. He may end at any moment, and another process may get his number: then nothing is run, since the child
begins only when he says so.

What is asked comes in three packets. The first says that something is asked, and has the descriptors. Words and
environment, in which secrets may be, stay in the kernel until the child takes them: the template never has them.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import re
import socket
import sys
from collections.abc import Callable

from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.kernel import programs
from blobfuse_dysk.device.kernel.inherited import inherited
from blobfuse_dysk.errors import DeviceError

__all__ = ["CHANNEL_FD", "DIRECTORY_FD", "Commands", "key"]

CHANNEL_FD, DIRECTORY_FD = 3, 4  # of the child, beside 0, 1 and 2
_ORDER = re.compile(rb"run 1 ([0-7]{1,4})\Z")
_FDS = 4  # 0, 1, 2, the directory
_BACKLOG = 1024


def key() -> str:
    """What tells the sockets of several installations apart; connect_to_template() in dyskctl.c has the same."""
    directory = os.path.realpath(os.path.dirname(sys.executable))
    return f"{binascii.crc32(os.fsencode(directory)):08x}"


class Commands:
    """The socket in the run directory. run: what a child does, with the mask of files; returns the exit status."""

    def __init__(self, directory: str, run: Callable[[int], int]) -> None:
        self._directory = directory
        self._path = state.commands_path(directory, key())
        self._run = run
        self._listener: socket.socket | None = None
        self._inode: int | None = None

    def offer(self, *, replace: bool = False) -> None:
        """Have the socket there, if nobody else has, or `replace`. If it cannot be, commands are not run here."""
        if not replace and os.path.lexists(self._path):
            return
        self.close()
        with contextlib.suppress(DeviceError, OSError), state.lock(self._directory):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            mask = os.umask(0o177)
            try:
                self._listener.bind(self._path)
            finally:
                os.umask(mask)
            self._listener.listen(_BACKLOG)
            self._inode = os.stat(self._path).st_ino

    def fileno(self) -> int:
        """What to wait for; -1 if there is no socket."""
        return self._listener.fileno() if self._listener else -1

    def accept(self) -> socket.socket:
        """Who asks."""
        assert self._listener
        return self._listener.accept()[0]

    def hear(self, asker: socket.socket, pid: int) -> None:
        """Be what this asker wants, in a child that was forked for him, if he can have it. Raises OSError."""
        order, fds, whole = message.receive_packet(asker)
        match = _ORDER.match(order)
        if not match or not whole or len(fds) != _FDS or pid <= 0:
            return
        if inherited(leaves_cgroup=False) == inherited(leaves_cgroup=False, pid=pid):
            mask = int(match[1], 8)
            programs.become(lambda: self._run(mask), [*fds[:3], asker.fileno(), fds[3]])

    def close(self) -> None:
        """Take the socket away, if it is this one. Whoever has connected sees the end."""
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        self._listener.close()
        self._listener = None
