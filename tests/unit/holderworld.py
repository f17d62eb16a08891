"""A world for the product's own holder, without root: a kernel with processes and descriptors, systemd's store, a loop
device, an attaching process, a clock.

All of device/holder runs over it as it is; only system calls are the world's. What a holder does to others is a step,
and it can be killed before each. What must hold at any time is looked at after each of them (`check`).
"""

from __future__ import annotations

import json
import os
import signal
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blobfuse_dysk.device.holder import holder as holder_module
from blobfuse_dysk.device.holder import keeper, reservation, systemd, workers
from blobfuse_dysk.device.holder.actions import Actions
from blobfuse_dysk.device.holder.holder import Holder
from blobfuse_dysk.device.holder.reservation import Reservation
from blobfuse_dysk.device.holder.sdnotify import Notify
from blobfuse_dysk.device.ipc import door, message, state
from blobfuse_dysk.device.ipc.messages import Begin
from blobfuse_dysk.device.kernel import fuse
from tests.unit.states import a_first_state

__all__ = ["DEVICE", "Process", "World"]

DEVICE = "/dev/loop0"
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

    def __init__(self, world: World, fd: int) -> None:
        self._world, self._fd = world, fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._world.close(self._fd)
        self._fd = -1


class Poll:
    """select.poll of a holder. What is ready is there at once; else the time passes that it has patience for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._fds: list[int] = []

    def register(self, what: Any, events: int) -> None:
        self._fds.append(what if isinstance(what, int) else what.fileno())

    def poll(self, patience_ms: float | None = None) -> list[tuple[int, int]]:
        ready = [(fd, 1) for fd in self._fds if self._world.is_ready(fd)]
        self._world.idle = not ready and patience_ms is None
        if not ready and patience_ms is not None:
            self._world.now += patience_ms / 1000
        return ready


class World:
    """kept: the holder is a service. Else all ends with it."""

    def __init__(self, *, kept: bool, can_resend: bool, io_timeout_s: float | None) -> None:
        self.service = kept
        self.can_resend = can_resend
        self.now = 1000.0
        self.fds: dict[int, Thing] = {}  # of the holder
        self.store: list[tuple[str, Thing, bool]] = []  # systemd's
        self.processes: dict[int, Process] = {}
        self.state: dict[str, Any] | None = None  # state.json
        self.full = False  # /run
        self.was_full = False
        self.device: str | None = None  # that has the file
        self.asked_to_let_go = False
        self.over = self.committed = False
        self.failed_on_purpose = False
        self.signalled = 0
        self.steps = 0
        self.kill_at: int | None = None
        self.answers: list[str] = []  # to the attaching process
        self.attacher = Thing("attacher")
        self.attacher_alive = True
        self.sending: Process | None = None
        self._next_fd = 10
        self.patch = pytest.MonkeyPatch()
        self._replace_system_calls()
        self.signals = Socket(self, self.open(Thing("signals")))
        attacher = Socket(self, self.open(self.attacher))
        command = {"worker": ["good"], "environment": {}}
        order = {"op": "begin", "name": "data", "run": "run", "dev": "dev", "log": "log"}
        self.attacher.inbox.append(({"op": "command", **command}, False))
        self.attacher.inbox.append(({**order, "state": a_first_state(io_timeout_s=io_timeout_s)}, True))
        first = holder_module.first_holder(cast(Any, attacher), self._keeper)
        assert first
        self.holder: Holder | None = first
        self.run(first._begin)

    def _keeper(self, order: Begin, place: Reservation) -> keeper.NoKeeper:
        return keeper.SystemdKeeper(cast(Notify, self), order, place) if self.service else keeper.NoKeeper()

    def _replace_system_calls(self) -> None:
        fake_os = _Over(os, self, "close", "memfd_create", "pipe2", "pidfd_open", "posix_spawn", "set_blocking")
        fake_os.add(self, "waitpid", "pwrite", "ftruncate", "pread", "fstat")
        fake_os.open = lambda path, flags: self.open(Thing("null"))
        fake_os.read = lambda fd, size: b""
        for module in (workers, reservation, keeper, systemd):
            self.patch.setattr(module, "os", fake_os)
        sockets = SimpleNamespace(socket=lambda fileno: Socket(self, fileno))
        for module in (reservation, systemd):
            self.patch.setattr(module, "socket", sockets)
        for module in (workers, systemd, holder_module):
            self.patch.setattr(module, "select", SimpleNamespace(poll=lambda: Poll(self), POLLIN=1))
        for module in (systemd, holder_module):
            self.patch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
            self.patch.setattr(module, "Log", lambda *arguments: lambda text, priority=0: None)
        self.patch.setattr(signal, "pidfd_send_signal", self.pidfd_send_signal)
        for name in ("channel", "send"):
            self.patch.setattr(message, name, getattr(self, name))
        self.patch.setattr(door, "receive", self.door_receive)
        for name in ("write", "read", "identity", "alive", "open_process"):
            self.patch.setattr(state, name, getattr(self, f"state_{name}"))
        self.patch.setattr(fuse, "can_resend", lambda init: self.can_resend)
        self.patch.setattr(fuse, "connection", lambda path: 1)
        self.patch.setattr(Reservation, "make", lambda place, mine: self.make(place, mine))
        self.patch.setattr(Reservation, "clear", lambda place: self.clear())
        self.patch.setattr(Reservation, "bound", lambda place, device=None: self.device)
        self.patch.setattr(Reservation, "let_go", lambda place, device: self.let_go())

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

    def owned(self, holder: Holder) -> set[int]:
        """The descriptors that the holder knows it has."""
        has: Actions = holder._has
        fds = {self.signals.fileno(), *(fd for fd in [has.place.fuse_fd] if fd >= 0)}
        if has.place.control:
            fds.add(has.place.control.fileno())
        fds |= {has.crew._config_fd, has.crew._ring_fd}
        if isinstance(has.keeper, keeper.SystemdKeeper):
            fds.add(has.keeper._life_fd)
        if has.attacher:
            fds.add(has.attacher.fileno())
        for process in (has.worker, has.new):
            if process:
                fds |= {process.channel.fileno(), process.stderr, process.pidfd}
        return fds

    # Processes.

    def posix_spawn(self, path: str, argv: list[str], environment: dict[str, str], **how: Any) -> int:
        self.step()
        if path == "missing":
            raise FileNotFoundError(2, "No such file or directory")
        process = Process(100 + len(self.processes), path)
        self.processes[process.pid] = process
        ends = {target: self.fds[fd] for _, fd, target in how["file_actions"]}
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

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        process = self.processes[pid]
        assert process.dying or not process.alive, "waited for a process that lives, for ever"
        assert not process.reaped
        process.alive, process.reaped = False, True
        return pid, 9

    # Messages.

    def send(self, channel: Socket, order: dict[str, Any], fds: Any = (), *, wait: bool = True) -> bool:
        self.step()
        order = json.loads(json.dumps(order))
        thing = self.fds[channel.fileno()]
        assert all(fd in self.fds for fd in fds)
        if thing is self.attacher:
            self.answers.append(order["event"])
            self.committed |= order["event"] == "committed"
            return self.attacher_alive
        process = thing.process
        assert process
        if not process.alive:
            return False
        process.orders.append(order)
        process.told |= order["op"] in ("start", "go")
        if order["op"] in ("start", "go"):
            self._check_told(process)
        self.check()
        return True

    def _check_told(self, process: Process) -> None:
        """Whoever serves is found by the next holder."""
        if not any(name == "life" for name, _, _ in self.store):
            return
        kept = {name for name, thing, _ in self.store if thing.process is process}
        assert kept == set(keeper.kept_names({"pid": process.pid, "start": 1})), "told before it was kept"
        named = self.state and self.state["worker"]
        assert self.was_full or (named and named["pid"] == process.pid), "told before it was named"

    def door_receive(self, channel: Socket, at: door.Door[Any], refuse: Callable[[str], None]) -> door.Received[Any]:
        thing = self.fds[channel.fileno()]
        if not thing.inbox:
            return at.admit(b"", [], refuse)
        event, with_fd = thing.inbox.popleft()
        with self.patch.context() as patch:
            patch.setattr(door, "os", SimpleNamespace(close=self.close))
            return at.admit(json.dumps(event).encode(), [self.open(Thing("config"))] if with_fd else [], refuse)

    # systemd.

    def keep(self, name: str, fd: int, *, watch: bool = False) -> None:
        self.step()
        if not any(thing is self.fds[fd] for _, thing, _ in self.store):  # it takes nothing twice
            self.store.append((name, self.fds[fd], watch))

    def forget(self, name: str) -> None:
        self.step()
        self.failed_on_purpose |= name == "fuse"
        self.store = [entry for entry in self.store if entry[0] != name]
        self.check()

    def next_holder(self) -> None:
        """systemd starts one."""
        dead = [thing for _, thing, watched in self.store if watched and not (thing.process and thing.process.alive)]
        self.store = [entry for entry in self.store if entry[1] not in dead]
        names = [name for name, _, _ in self.store]
        assert len(names) == len(set(names)), "two descriptors under one name: one of them would be lost"
        fds = {name: self.open(thing) for name, thing, _ in self.store}

        def start() -> None:
            if "life" in fds:
                self.holder = systemd.later_holder(cast(Notify, self), "run", "data", fds)
            if self.holder:
                self.holder._begin()

        self.signals = Socket(self, self.open(Thing("signals")))
        self.run(start)
        if self.holder is None and not self.died:
            self.end()
            cleared = self.state is None
            assert cleared or self.failed_on_purpose or "life" not in names, "an attachment was given up"

    def end(self) -> None:
        """Nobody comes after this holder. Whoever sees its channel end, ends."""
        self.over, self.holder = True, None
        self.fds, self.store = {}, []
        for process in self.processes.values():
            process.alive = False

    # state.json, and the place.

    def state_write(self, run: str, name: str, fields: dict[str, Any]) -> None:
        self.step()
        if self.full:
            raise OSError(28, "No space left on device")
        self.state = json.loads(json.dumps(fields))

    def state_read(self, run: str, name: str) -> dict[str, Any] | None:
        return cast("dict[str, Any] | None", json.loads(json.dumps(self.state)))

    def state_identity(self, pid: int) -> dict[str, int]:
        return {"pid": pid, "start": 1}

    def state_alive(self, process: dict[str, int]) -> bool:
        return self.processes[process["pid"]].alive

    def state_open_process(self, process: dict[str, int] | None) -> int | None:
        found = self.processes.get(process["pid"]) if process else None
        return self.open(Thing("pidfd", found)) if found and found.alive else None

    def make(self, place: Any, mine: dict[str, Any]) -> None:
        self.state_write("run", "data", mine)
        place.fuse_fd = self.open(Thing("fuse"))
        place.control = Socket(self, self.open(Thing("control")))

    def clear(self) -> None:
        self.step()
        assert self.device is None, "the place is cleared while the device has the file"
        self.state = None

    def let_go(self) -> None:
        self.step()
        self.asked_to_let_go = True

    # The holder's life.

    died = idle = False

    def step(self) -> None:
        if self.kill_at is not None and self.steps >= self.kill_at:
            raise Killed
        self.steps += 1

    def run(self, what: Callable[[], object]) -> None:
        """Let the holder do something, unless it is killed meanwhile."""
        self.died = False
        try:
            what()
        except Killed:
            self.died = True
            self.holder_dies()

    def holder_dies(self) -> None:
        """Its descriptors are closed. Workers that were not kept see that, and end."""
        self.kill_at, self.holder, self.fds = None, None, {}
        self.signalled = 0
        if self.attacher_alive:
            self.attacher_alive = False  # it sees the end of the channel, and reports that
        kept = {thing.process for name, thing, _ in self.store if name.startswith("channel-")}
        for process in self.processes.values():
            if process.alive and process not in kept:
                assert not process.told or not self.resumable, "who serves takes this for the end of the attachment"
                process.alive = False
        if not self.service:
            self.end()
        self.check()

    @property
    def resumable(self) -> bool:
        """Whether a next holder would find all it needs."""
        return self.state is not None and {name.partition("-")[0] for name, _, _ in self.store} >= set(keeper.PARTS)

    def turn(self) -> bool:
        """The holder looks at its device, then waits for the next thing and deals with it. False: it waits for ever."""
        holder = self.holder
        if holder is None:
            return False
        self.idle = False

        def live() -> None:
            if holder._done():
                holder._finish()
                self.end()
            else:
                holder._wait(cast(Any, SimpleNamespace(fileno=self.signals.fileno, recv=self._recv_signal)))

        self.run(live)
        self.check()
        return not self.idle

    def _recv_signal(self, size: int) -> bytes:
        self.signalled = 0
        return b"x"

    def check(self) -> None:
        """What must hold at any time."""
        serving = [process.pid for process in self.processes.values() if process.alive and process.told]
        assert len(serving) <= 1, f"two workers serve: {serving}"

    def check_holder(self) -> None:
        """What must hold whenever the holder waits."""
        self.check()
        holder = self.holder
        if holder is None:
            return
        owned = self.owned(holder)
        assert set(self.fds) == owned, (
            f"lost: {[self.fds[fd].kind for fd in set(self.fds) - owned]}, closed: {owned - set(self.fds)}"
        )
        life = holder._lifecycle
        assert (life._worker is None) is (holder._has.worker is None)
        assert (life.handover.new is None) is (holder._has.new is None)
        if life.phase in ("starting", "prepared", "attached", "ending", "withdrawn"):
            assert life._worker or life._restart_at is not None, f"{life.phase}, and nobody comes"


class _Over:
    """A module with some of its functions replaced."""

    def __init__(self, module: Any, world: World, *names: str) -> None:
        self._module = module
        self.open: Any = None
        self.read: Any = None
        self.add(world, *names)

    def add(self, world: World, *names: str) -> None:
        for name in names:
            setattr(self, name, getattr(world, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
