"""Forks holders: has loaded once what a holder, its worker and its monitor load, which takes longer than all else.

Started by device/attacher/template.py by way of template.py, with a listening socket. Each connection is one request
for a holder: its command line, its environment, what it is to inherit, and its standard input. A child is forked for
each, which hears what is wanted. If that is what it has anyway (kernel/programs.py, kernel/inherited.py), it says so
and is that holder from then on; else the connection ends, and who asked starts the holder as if there were no template.
Only root is heard.

So this process does nothing but accept and fork. Nobody waits for one who is slow to say what he wants, and it hardly
writes to its memory, of which each page that it writes to is shared with its next children only.

A program in C can have it run a command instead (commands.py).

It has no secret: those come to a worker in a memfd that goes from the attaching process to the holder. It knows nothing
of attachments, and its death harms none. It ends when none of its children is left and nobody has asked for IDLE_S;
when the socket in the run directory is not its own any more; and when it is not what is installed any more. Whoever has
connected meanwhile sees the connection end, and starts another one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable

from blobfuse_dysk import environment
from blobfuse_dysk.device.holder import holder
from blobfuse_dysk.device.ipc import door, message, state
from blobfuse_dysk.device.ipc.messages import Forked
from blobfuse_dysk.device.kernel import commandline, hardening, programs
from blobfuse_dysk.device.kernel.inherited import inherited
from blobfuse_dysk.device.monitor import monitor
from blobfuse_dysk.device.template import holes
from blobfuse_dysk.device.template.commands import Commands
from blobfuse_dysk.device.worker import worker
from blobfuse_dysk.errors import DeviceError

__all__ = ["IDLE_S", "Template", "serve"]

IDLE_S = 60.0
_REQUEST_S = 5.0  # for one who has connected to say what is wanted
_FLAGS = ("-S", "-P", "-s")
_LATER = ("encodings.idna", "blobfuse_dysk.device.native._channel")  # what a worker loads when it comes to use it
_COMMANDS = "blobfuse_dysk.cli.handed"  # what runs commands; nothing of it is known here


class Template:
    """On its socket. idle_s: how often it looks whether it is needed. run: a command, as of Commands; None for none."""

    def __init__(
        self, listener: socket.socket, idle_s: float = IDLE_S, run: Callable[[int], int] | None = None
    ) -> None:
        self._listener = listener
        self._idle_s = idle_s
        self._path: str = listener.getsockname()
        self._inode = self._present()
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._told_stale, self._tells_stale = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._commands = Commands(os.path.dirname(self._path), run) if run else None

    def serve(self) -> None:
        """Fork holders until there is a reason to end."""
        if self._commands:
            self._commands.offer(replace=True)
        while True:
            poll = self._poll()
            happened = {fd for fd, _ in poll.poll(self._idle_s * 1000)}
            if self._told_stale.fileno() in happened:
                return
            if self._listener.fileno() in happened:
                self._fork(self._listener.accept()[0], self._hear)
                if self._commands:
                    self._commands.offer()
            if self._commands and self._commands.fileno() in happened:
                self._fork(self._commands.accept(), self._commands.hear)
            if not happened and (self._present() != self._inode or (not _has_children() and self._retires(poll))):
                return

    def _poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._told_stale, select.POLLIN)
        if self._commands and self._commands.fileno() >= 0:
            poll.register(self._commands, select.POLLIN)
        return poll

    def _fork(self, asker: socket.socket, hear: Callable[[socket.socket, int], None]) -> None:
        """A child that hears this one."""
        with asker:
            programs.fork_child(lambda: self._serve(asker, hear))

    def _serve(self, asker: socket.socket, hear: Callable[[socket.socket, int], None]) -> None:
        """In a child: whoever it is that asks. Returns if he gets nothing."""
        asker.settimeout(_REQUEST_S)
        pid, uid, _ = _credentials(asker)
        if not programs.is_installed():
            self._leave()  # before who asked sees the end, and looks whether there is another
            self._tells_stale.send(b".")
        elif uid == 0:
            with contextlib.suppress(OSError):  # who asked may be gone
                hear(asker, pid)

    def _hear(self, asker: socket.socket, pid: int) -> None:
        """What is asked on the first of the sockets: a holder."""
        received = door.receive(asker, door.ATTACHER_TO_TEMPLATE, _nobody)
        order = received.message
        if order and order["inherited"] == inherited(leaves_cgroup="--leave-cgroup" in order["holder"]):
            program = programs.find(order["holder"], order["environment"])
            answer: Forked = {"event": "forked"}
            if program and message.send(asker, answer, wait=False):
                programs.become(program, (received.fds[0], self._null, self._null))

    def _retires(self, poll: select.poll) -> bool:
        """Take the socket away, unless somebody has come meanwhile. Under the lock nobody makes another."""
        try:
            with state.lock(os.path.dirname(self._path)):
                if poll.poll(0):
                    return False
                self._leave()
        except (DeviceError, OSError):
            return False
        return True

    def _leave(self) -> None:
        if self._commands:
            self._commands.close()
        if self._present() == self._inode:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _present(self) -> int | None:
        """What is at the socket's path, by its number."""
        try:
            return os.stat(self._path).st_ino
        except OSError:
            return None


def _has_children() -> bool:
    """Whether a holder that was forked here lives. Those that ended are nobody's to wait for (SIGCHLD is ignored)."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _nobody(line: str) -> None:
    """Hear why a request was refused: who asked starts the holder, and has nothing to be told."""


def _credentials(asker: socket.socket) -> tuple[int, int, int]:
    """Process, user and group id of who has connected."""
    found: tuple[int, int, int] = struct.unpack(
        "3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return found


def serve(listener: socket.socket, program: str, began_ns: int, *, leaves_cgroup: bool) -> None:
    """Load the rest, and fork until there is a reason to end.

    program, began_ns: what has begun to load this, and when. leaves_cgroup: its control group is the machine's.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for name in _LATER:
        with contextlib.suppress(ImportError):  # where what is in C was not built
            importlib.import_module(name)
    run = None if leaves_cgroup else importlib.import_module(_COMMANDS).main  # who asks has not left his own
    commandline.show([sys.executable, *_FLAGS, program])
    kept = {
        (sys.executable, "-I", "-S", holder.__file__): holder.hold,
        (sys.executable, *_FLAGS, worker.__file__): worker.main,
        (sys.executable, *_FLAGS, monitor.__file__): monitor.main,
    }
    programs.keep(kept, environment.started_with(), began_ns)
    hardening.stay()
    gc.collect()
    holes.fill()
    gc.freeze()  # a collection would write to all that children share
    Template(listener, run=run).serve()
