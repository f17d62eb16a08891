"""A world for the product's own holder, without root: a kernel with processes and descriptors, systemd's store, a loop
device, an attaching process, a clock.

All of device/holder runs over it as it is; only system calls are the world's. What a holder does to others is a step,
and it can be killed before each. What must hold at any time is looked at after each of them (`check`).
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blobfuse_dysk.device.holder import holder as holder_module
from blobfuse_dysk.device.holder import keeper, program, reservation, systemd, workers
from blobfuse_dysk.device.holder.actions import Actions
from blobfuse_dysk.device.holder.holder import Holder
from blobfuse_dysk.device.holder.reservation import Reservation
from blobfuse_dysk.device.holder.sdnotify import Notify
from blobfuse_dysk.device.ipc import door, message, state
from blobfuse_dysk.device.ipc.messages import Begin
from blobfuse_dysk.device.kernel import fuse, programs
from tests.unit.holderkernel import Kernel, Killed, Over, Poll, Process, Socket, Thing
from tests.unit.states import a_first_state

__all__ = ["DEVICE", "World"]

DEVICE = "/dev/loop0"


class World(Kernel):
    """kept: the holder is a service. Else all ends with it."""

    def __init__(self, *, kept: bool, can_resend: bool, keeps: bool = True, io_timeout_s: float | None) -> None:
        """keeps: a holder makes memory for taken requests where the kernel cannot send them again."""
        super().__init__()
        self.service = kept
        self.can_resend = can_resend
        self.keeps = keeps
        self.store: list[tuple[str, Thing, bool]] = []  # systemd's
        self.state: dict[str, Any] | None = None  # state.json
        self.full = False  # /run
        self.was_full = False
        self.device: str | None = None  # that has the file
        self.asked_to_let_go = False
        self.over = self.committed = False
        self.failed_on_purpose = False
        self.answers: list[str] = []  # to the attaching process
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
        fake_os = Over(os, self, "close", "memfd_create", "pipe2", "pidfd_open", "set_blocking")
        fake_os.add(self, "waitpid", "pwrite", "ftruncate", "pread", "fstat")
        fake_os.open = lambda path, flags: self.open(Thing("null"))
        fake_os.read = lambda fd, size: b""
        for module in (holder_module, workers, reservation, keeper, systemd):
            self.patch.setattr(module, "os", fake_os)
        self.patch.setattr(programs, "start", self.start)
        sockets = SimpleNamespace(socket=lambda fileno: Socket(self, fileno))
        for module in (reservation, systemd):
            self.patch.setattr(module, "socket", sockets)
        for module in (state, holder_module):
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
        if not self.keeps:
            self.patch.setattr(workers.Crew, "keep_requests", lambda crew, always: None)
        self.patch.setattr(program, "check", lambda command, name: None)  # test_program.py
        self.patch.setattr(program, "has_same_variables", lambda before, after: True)
        self.patch.setattr(fuse, "connection", lambda path: 1)
        self.patch.setattr(Reservation, "make", lambda place, mine: self.make(place, mine))
        self.patch.setattr(Reservation, "clear", lambda place, mine: self.clear())
        self.patch.setattr(Reservation, "bound", lambda place, device=None: self.device)
        self.patch.setattr(Reservation, "let_go", lambda place, device: self.let_go())

    def owned(self, holder: Holder) -> set[int]:
        """The descriptors that the holder knows it has."""
        has: Actions = holder._has
        fds = {self.signals.fileno(), *(fd for fd in [has.place.fuse_fd] if fd >= 0)}
        if has.place.control:
            fds.add(has.place.control.fileno())
        fds |= {has.crew._config_fd, has.crew._ring_fd, *([has.crew._taken_fd] if has.crew._taken_fd else [])}
        if isinstance(has.keeper, keeper.SystemdKeeper):
            fds.add(has.keeper._life_fd)
        if has.attacher:
            fds.add(has.attacher.fileno())
        for process in (has.worker, has.new):
            if process:
                fds |= {process.channel.fileno(), process.stderr, process.pidfd}
        return fds

    # Messages.

    def send(self, channel: Socket, order: dict[str, Any], fds: Any = (), *, wait: bool = True) -> bool:
        self.step()
        order = json.loads(json.dumps(order))
        thing = self.fds[channel.fileno()]
        assert all(fd in self.fds for fd in fds)
        if order.get("op") in ("start", "standby"):
            kinds = [
                "config",
                "fuse",
                "control",
                "dysk-ring",
                *(["dysk-taken"] if self.keeps and not self.can_resend else []),
            ]
            assert [self.fds[fd].kind for fd in fds] == kinds
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

    died = False

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
        comes_again = self.can_resend or self.keeps
        assert not comes_again or "the requests that it had taken" not in str((self.state or {}).get("detail"))
        assert (life._worker is None) is (holder._has.worker is None)
        assert (life.handover.new is None) is (holder._has.new is None)
        if life.phase in ("starting", "prepared", "attached", "ending", "withdrawn"):
            assert life._worker or life._restart_at is not None, f"{life.phase}, and nobody comes"
