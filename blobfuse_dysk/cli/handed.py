"""Runs a command for the program in C that was started as dyskctl (native/dyskctl.c), in a fork of the template.

The process is as the one that an interpreter would have been executed in: arguments, environment, directory, mask of
files and the first three descriptors are the caller's, and all that is inherited beside them is the same
(device/template/commands.py). What of the environment has changed what an interpreter, or a library in it, does at its
start cannot be made up for, so with such variables it is not run here. Session and terminal are the template's: nothing
that is run here asks for them. Signals come to the caller, who hands on those that mean an end.

Nothing is done until the caller says `go`. He says it once he has seen that this process is ready, and waits for
nothing else by then; until then he may run the command himself, and closes the connection first. From `go` on his end
is that of this process, as if they were one: the kernel sends SIGIO when the connection is closed at his side, and its
default is to end. So what was begun is taken back as it is when dyskctl is killed.
Sources: fcntl(2), F_SETOWN, O_ASYNC; net/unix/af_unix.c, unix_release_sock(); signal(7).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import locale
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable

from blobfuse_dysk import environment
from blobfuse_dysk.cli.quick import understood
from blobfuse_dysk.device.attacher import launch
from blobfuse_dysk.device.kernel import commandline
from blobfuse_dysk.device.template.commands import CHANNEL_FD, DIRECTORY_FD

__all__ = ["main"]

_MOST_BYTES = 96 << 10  # of words, and of the environment; as in dyskctl.c
_WAIT_S = 5.0  # for the caller, until he says `go`
# What the commands load when they come to use it.
_LATER = (
    "blobfuse_dysk.cli.attaching",
    "blobfuse_dysk.attachment",
    "blobfuse_dysk.device.attacher.configuration",
    "blobfuse_dysk.device.attacher.setup",
    "blobfuse_dysk.device.attacher.teardown",
    "blobfuse_dysk.device.ipc.control",
    "blobfuse_dysk.ownlease",
)
for _name in _LATER:
    importlib.import_module(_name)


def main(mask: int) -> int:
    """Take the request from CHANNEL_FD and run it. Return the exit status."""
    with socket.socket(fileno=CHANNEL_FD) as caller:
        try:
            command = _command(caller, mask)
            if command is None or not _may_begin(caller):
                return 1
        except OSError:  # he has gone, or takes it upon himself by the end of the connection
            return 1
        status = 1
        try:
            status = command()
        except BaseException:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        caller.send(b"done %d" % status, socket.MSG_NOSIGNAL)
        return status


def _command(caller: socket.socket, mask: int) -> Callable[[], int] | None:
    """Be a process as he would have started; what it is to run, None if that is not for this one. Raises OSError."""
    caller.settimeout(_WAIT_S)
    native = environment.uses_native()
    launch.use_path(environment.started_with().get("PYTHONPATH", ""))
    words, variables = _strings(caller), _strings(caller)
    environment.replace(variables)
    if not _is_as_started(native):
        return None
    os.fchdir(DIRECTORY_FD)
    os.close(DIRECTORY_FD)
    os.umask(mask)
    time.tzset()
    _open_streams()
    sys.argv = ["dyskctl", *map(os.fsdecode, words)]
    commandline.show(sys.argv)
    return understood(sys.argv[1:])


def _strings(caller: socket.socket) -> list[bytes]:
    """A packet of them, each ended by a 0. Raises OSError."""
    data = caller.recv(_MOST_BYTES + 1)
    if not data.endswith(b"\0") or len(data) > _MOST_BYTES:
        raise ConnectionError("no strings")
    return data[:-1].split(b"\0")


def _is_as_started(native: bool) -> bool:
    """Whether an interpreter that was started with this environment would be as this one. native: what that loaded."""
    if environment.changes_interpreter() or environment.uses_native() != native:
        return False
    try:
        name = locale.setlocale(locale.LC_CTYPE, "")
    except locale.Error:
        name = "C"  # as an interpreter takes it
    return name in ("C", "POSIX") or locale.nl_langinfo(locale.CODESET) == "UTF-8"  # of the former it makes UTF-8


def _open_streams() -> None:
    """As an interpreter opens them."""
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    buffering = 1 if os.isatty(1) else -1
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="strict", buffering=buffering, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)


def _may_begin(caller: socket.socket) -> bool:
    """Whether he says so, and is there. His end is ours from now on."""
    fd = os.pidfd_open(os.getpid())
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
    caller.sendmsg([b"ready"], rights, socket.MSG_NOSIGNAL)
    os.close(fd)
    if caller.recv(8) != b"go":
        return False
    caller.settimeout(None)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(caller, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(caller, fcntl.F_SETFL, fcntl.fcntl(caller, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(caller, 0)
    return not poll.poll(0)  # he was there after the kernel was told, so it tells us
