"""A kernel for the product's own holder, without root: processes, descriptors, channels. See holderworld.py.

What a holder does to others is a step, and it can be killed before each.
"""

from __future__ import annotations

import signal
from collections import deque
from types import SimpleNamespace
from typing import Any

__all__ = ["READY", "Kernel", "Killed", "Over", "Poll", "Process", "Socket", "Thing"]

READY = {"event": "ready", "size": 512, "blob_size": 512, "vhd": False, "worker_version": "1"}


class Killed(BaseException):
    """The holder was killed here."""


class Thing:
    """What a descriptor stands for."""

    def __init__(self, kind: str, process: Process | None = None) -> None:
        self.kind = kind
        self.process = process
        self.data = b""
        self.inbox: deque[tuple[dict[str, Any], bool]] = deque()  # to the holder; with a descriptor or without


class Process:
    """A worker. It serves from when it is told to until it is dead. program: good, or bad at a certain order."""

    def __init__(self, pid: int, program: str) -> None:
        self.pid = pid
        self.program = program
        self.alive = True
        self.dying = False  # was sent SIGKILL
        self.told = self.ready = self.reaped = False
        self.stuck = False  # answers neither standby nor drain
        self.held = False  # takes no requests, as it is to drain
        self.channel = Thing("channel", self)
        self.orders: deque[dict[str, Any]] = deque()

    def says(self, event: dict[str, Any], *, fd: bool = False) -> None:
        self.channel.inbox.append((event, fd))

    def goes_on(self) -> bool:
        """Do what comes next, as a worker does; False if there is nothing to do."""
        if not self.alive or not (self.dying or self.orders):
            return False
        if self.dying:
            self.alive = False
            return True
        order = self.orders.popleft()
        op = order["op"]
        self.held = op == "drain" or (self.held and op != "resume")
        if self.program == op or (op in ("start", "go") and self.program == "serve"):
            self.says({"event": "error", "error": {"type": "DeviceError", "message": "no", "remedy": None}})
            self.alive = False
        elif op == "standby" and not self.stuck:
            self.says({"event": "standing-by"})
        elif op in ("start", "go") and not self.ready:
            self.ready = True
            self.says(READY)
            self.says({"event": "state", "state": "attached", "detail": None})
        elif op == "drain" and not self.stuck:
            self.says({"event": "drain", "id": order["id"], "drained": True})
        elif op == "end":
            self.says({"event": "ended", "aborted": False})
            self.alive = False
        return True


class Socket:
    """The holder's end of a channel, or its control socket."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self._kernel, self._fd = kernel, fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._kernel.close(self._fd)
        self._fd = -1


class Poll:
    """select.poll of a holder. What is ready is there at once; else the time passes that it has patience for."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._fds: list[int] = []

    def register(self, what: Any, events: int) -> None:
        self._fds.append(what if isinstance(what, int) else what.fileno())

    def _ready(self) -> list[tuple[int, int]]:
        return [(fd, 1) for fd in self._fds if self._kernel.is_ready(fd)]

    def poll(self, patience_ms: float | None = None) -> list[tuple[int, int]]:
        ready = self._ready()
        if not ready and patience_ms is None:
            self._kernel.let_die(self._fds)
            ready = self._ready()
        self._kernel.idle = not ready and patience_ms is None
        if not ready and patience_ms is not None:
            self._kernel.now += patience_ms / 1000
        return ready


class Kernel:
    """now: its clock. fds: what the holder has open. processes: by id."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.fds: dict[int, Thing] = {}
        self.processes: dict[int, Process] = {}
        self.attacher = Thing("attacher")
        self.attacher_alive = True
        self.signalled = 0
        self.idle = False  # the holder waited for ever
        self.steps = 0
        self.kill_at: int | None = None
        self._next_fd = 10

    def step(self) -> None:
        if self.kill_at is not None and self.steps >= self.kill_at:
            raise Killed
        self.steps += 1

    # Descriptors.

    def open(self, thing: Thing) -> int:
        self._next_fd += 1
        self.fds[self._next_fd] = thing
        return self._next_fd

    def close(self, fd: int) -> None:
        assert fd in self.fds, "a descriptor is closed twice"
        del self.fds[fd]

    def memfd_create(self, name: str) -> int:
        return self.open(Thing(name))

    def pipe2(self, flags: int) -> tuple[int, int]:
        thing = Thing("stderr")
        return self.open(thing), self.open(thing)

    def set_blocking(self, fd: int, blocking: bool) -> None:
        assert fd in self.fds

    def channel(self) -> tuple[Socket, Socket]:
        thing = Thing("channel")
        return Socket(self, self.open(thing)), Socket(self, self.open(thing))

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        self.step()
        self.fds[fd].data = data + self.fds[fd].data[len(data) :]

    def ftruncate(self, fd: int, size: int) -> None:
        self.step()
        self.fds[fd].data = self.fds[fd].data[:size]

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return self.fds[fd].data

    def fstat(self, fd: int) -> SimpleNamespace:
        return SimpleNamespace(st_size=len(self.fds[fd].data))

    def is_ready(self, fd: int) -> bool:
        thing = self.fds[fd]
        if thing.kind == "signals":
            return self.signalled > 0
        if thing is self.attacher:
            return bool(thing.inbox) or not self.attacher_alive
        assert thing.process, thing.kind
        if thing.kind == "channel":
            return bool(thing.inbox) or not thing.process.alive
        return not thing.process.alive

    # Processes.

    def start(self, argv: list[str], environment: dict[str, str], stdio: tuple[int, int, int]) -> int:
        self.step()
        if argv[0] == "missing":
            raise FileNotFoundError(2, "No such file or directory")
        process = Process(100 + len(self.processes), argv[0])
        self.processes[process.pid] = process
        ends = [self.fds[fd] for fd in stdio]
        process.channel = ends[0]
        ends[0].process = ends[2].process = process
        return process.pid

    def pidfd_open(self, pid: int) -> int:
        return self.open(Thing("pidfd", self.processes[pid]))

    def pidfd_send_signal(self, pidfd: int, number: int) -> None:
        self.step()
        assert number == signal.SIGKILL
        process = self.fds[pidfd].process
        assert process
        process.dying = process.alive

    def let_die(self, fds: list[int]) -> None:
        """Somebody waits for ever: whoever was killed of these is dead before that."""
        for fd in fds:
            process = self.fds[fd].process
            if process and process.dying:
                process.alive = False

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        process = self.processes[pid]
        assert process.dying or not process.alive, "waited for a process that lives, for ever"
        assert not process.reaped
        process.alive, process.reaped = False, True
        return pid, 9


class Over:
    """A module with some of its functions replaced."""

    def __init__(self, module: Any, kernel: Kernel, *names: str) -> None:
        self._module = module
        self.open: Any = None
        self.read: Any = None
        self.add(kernel, *names)

    def add(self, kernel: Kernel, *names: str) -> None:
        for name in names:
            setattr(self, name, getattr(kernel, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
