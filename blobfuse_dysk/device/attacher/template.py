"""Asks the template (device/template) for a holder, and starts one that is not there.

There is one for all who would hand on to a holder the same (kernel/inherited.py), of the same installation and in the
same environment: its socket's name has a checksum of all that, and the template compares it. The socket, of root's and
0600, is made under the lock of the run directory by whoever starts the template. If anything goes wrong here, there is
no holder, and the caller starts it.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence

from blobfuse_dysk.device.ipc import door, message, state
from blobfuse_dysk.device.ipc.messages import Fork
from blobfuse_dysk.device.kernel.inherited import inherited
from blobfuse_dysk.errors import DeviceError

__all__ = ["LEAVE_CGROUP", "TEMPLATE", "fork_holder"]

TEMPLATE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "template", "template.py")
LEAVE_CGROUP = "--leave-cgroup"
_LIMIT_S = 30.0  # for a template to load, and to fork those that were asked for before
_BACKLOG = 1024
_ROOM = " " * 128  # in its command line, which its children show theirs in: a name has 63 characters


def fork_holder(run: str, argv: Sequence[str], environment: Mapping[str, str], path: str, stdin: int) -> bool:
    """Have a template fork the holder that this command line would start; False if there is none.

    environment: the holder's. path: PYTHONPATH of its workers. stdin: the descriptor, which stays the caller's. If a
    template comes too late, its holder's standard input has ended, and so does it.
    """
    leaves = LEAVE_CGROUP in argv
    try:
        found = inherited(leaves_cgroup=leaves)
        order: Fork = {"op": "fork", "holder": [*argv], "environment": {**environment}, "inherited": found}
        everything = "\n".join((sys.executable, TEMPLATE, path, repr(sorted(environment.items())), found, str(leaves)))
        socket_path = state.template_path(run, f"{binascii.crc32(everything.encode(errors='surrogateescape')):08x}")
        asker = _connect(socket_path)
        if asker and _ask(asker, socket_path, order, stdin):
            return True
        asker = _start(run, socket_path, {**environment, "PYTHONPATH": path}, leaves)
        return bool(asker and _ask(asker, socket_path, order, stdin))
    except (DeviceError, OSError):
        return False


def _ask(asker: socket.socket, path: str, order: Fork, stdin: int) -> bool:
    with asker:
        asker.settimeout(_LIMIT_S)
        try:
            if not message.send(asker, order, [stdin]):
                return False
            return door.receive(asker, door.TEMPLATE_TO_ATTACHER, _unheard).message is not None
        except TimeoutError:  # nobody is to wait for it again
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise


def _unheard(line: str) -> None:
    """An answer that is none: there is no holder."""


def _connect(path: str) -> socket.socket | None:
    """To one that is there."""
    asker = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        asker.connect(path)
    except OSError:
        asker.close()
        return None
    return asker


def _start(run: str, path: str, environment: Mapping[str, str], leaves: bool) -> socket.socket | None:
    """Start one, unless somebody else has; then connect to that. Raises OSError, DeviceError."""
    state.make_run(run)
    with state.lock(run):
        if asker := _connect(path):
            return asker
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # of one that was killed
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            mask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            listener.listen(_BACKLOG)
            first = subprocess.Popen(
                [sys.executable, "-S", "-P", "-s", TEMPLATE, *([LEAVE_CGROUP] if leaves else []), _ROOM],
                stdin=listener.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment,
            )
            asker = _connect(path)
    try:
        first.wait(_LIMIT_S)  # it forks at once
    except subprocess.TimeoutExpired:
        first.kill()
        first.wait()
    return asker
