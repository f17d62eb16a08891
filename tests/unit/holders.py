"""A machine made of values for the product's own holder: processes, systemd's store of descriptors, state.json.

Everything that a holder does to them is one step, and it can be killed before any of them.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from blobfuse_dysk.device.holder import actions, program, reservation, systemd, workers
from blobfuse_dysk.device.holder.actions import Actions
from blobfuse_dysk.device.holder.handover import Handover
from blobfuse_dysk.device.holder.holder import Holder
from blobfuse_dysk.device.holder.keeper import SystemdKeeper, read_life
from blobfuse_dysk.device.holder.lifecycle import Lifecycle
from blobfuse_dysk.device.holder.machine import Worker as Known
from blobfuse_dysk.device.holder.record import Record
from blobfuse_dysk.device.holder.reservation import Reservation
from blobfuse_dysk.device.holder.sdnotify import Notify
from blobfuse_dysk.device.ipc import door, message, state
from blobfuse_dysk.device.ipc.messages import Begin, Program
from blobfuse_dysk.device.kernel import fuse
from tests.unit.states import a_first_state

COMMAND: Program = {"worker": ["old"], "environment": {"PYTHONPATH": ""}}


class Killed(BaseException):
    """The holder was killed here."""


class Channel:
    """The holder's end of the channel to a worker."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def fileno(self) -> int:
        return self.worker.pid

    def close(self) -> None:
        """A holder that reaps a worker closes it."""


class Copies:
    """In the place of os and socket in systemd.py: what systemd gives back is not there for real."""

    close = staticmethod(lambda fd: None)
    socket = staticmethod(lambda fileno: Channel(Worker(fileno)))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


@dataclass(eq=False)
class Worker:
    """A process. It serves from the moment it is told to until its death."""

    pid: int
    alive: bool = True
    told: bool = False
    standby: bool = False
    orders: list[str] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)


class Process:
    """What a holder has of a worker, in the place of WorkerProcess."""

    machine: Machine

    def __init__(self, pid: int, pidfd: int, channel: Any, stderr: int, *, ours: bool = True) -> None:
        self.worker = self.machine.workers[pid]
        self.pid = self.pidfd = self.stderr = pid
        self.channel = Channel(self.worker)
        self.ours = ours
        self.listening = False
        self.reason: str | None = None
        self.machine.channels.add(pid)

    @classmethod
    def start(cls, command: dict[str, Any]) -> Process:
        cls.machine.commands.append(command)
        pid = cls.machine.spawn().pid
        return cls(pid, pid, None, pid)

    def kill(self) -> None:
        self.machine.step()
        self.worker.alive = False

    def reap(self) -> list[str]:
        assert not self.worker.alive
        return []

    def hang_up(self) -> None:
        self.listening = False

    def end_text(self) -> str:
        return "killed"


class Machine:
    """Processes, systemd's store of descriptors, state.json. `killed_at`: the step that the holder does not get to."""

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}
        self.kept: set[str] = set()
        self.state: dict[str, Any] = {}
        self.channels: set[int] = set()  # of the living holder
        self.steps = 0
        self.killed_at: int | None = None
        self.life = os.memfd_create("life")
        self.events: deque[dict[str, Any]] = deque()  # to the holder, from whoever it listens to next
        self.device: str | None = "/dev/loop0"  # that has the file
        self.fds: list[int] = []  # that come with them
        self.full_after_commit = False
        self.full = False  # /run/dysk
        self.resends = True  # the kernel
        self.let_go: list[str | None] = []
        self.lines: list[str] = []  # of the log
        self.commands: list[dict[str, Any]] = []  # of which workers were started

    def log(self, text: str, priority: int = 0) -> None:
        self.lines.append(text)

    def step(self) -> None:
        if self.steps == self.killed_at:
            raise Killed
        self.steps += 1

    def check(self) -> None:
        """What must hold after every step, whether or not the holder lives."""
        serving = [worker for worker in self.workers.values() if worker.alive and worker.told]
        assert len(serving) <= 1, "two workers serve"
        for worker in serving:
            kept = any(name.startswith(f"channel-{worker.pid}-") for name in self.kept)
            assert kept or worker.pid in self.channels, "one that serves takes this for the end of the attachment"

    def spawn(self) -> Worker:
        self.step()
        pid = 1000 + len(self.workers)
        self.workers[pid] = Worker(pid)
        return self.workers[pid]

    def send(self, channel: Channel, order: dict[str, Any], fds: tuple[int, ...] = (), *, wait: bool = True) -> bool:
        self.step()
        worker = channel.worker
        if worker.pid < 0:  # the attaching process
            worker.sent.append(order)
            return True
        worker.orders.append(order["op"])
        worker.sent.append(order)
        worker.standby |= order["op"] == "standby"
        worker.told |= order["op"] in ("start", "go")
        self.check()
        return worker.alive

    def keep(self, name: str, fd: int, *, watch: bool = False) -> None:
        self.step()
        self.kept.add(name)

    def forget(self, name: str) -> None:
        self.step()
        self.kept.discard(name)
        self.check()

    def write(self, run: str, name: str, fields: dict[str, Any]) -> None:
        self.step()
        if self.full:
            raise OSError(28, "No space left on device")
        self.state = json.loads(json.dumps(fields))

    def receive(self, channel: Channel, at: door.Door[Any], refuse: Any) -> door.Received[Any]:
        data = json.dumps(self.events.popleft()).encode() if self.events else b""
        fds, self.fds = self.fds, []
        return at.admit(data, fds, refuse)

    def end_process(self, process: dict[str, int] | None) -> None:
        self.step()
        if process:
            self.workers[process["pid"]].alive = False

    def holder_dies(self) -> None:
        """Only what systemd keeps is left of its descriptors, and of that what still has another side."""
        self.channels.clear()
        self.steps, self.killed_at = 0, None
        self.kept = {
            name
            for name in self.kept
            if not name.startswith(("channel", "stderr")) or self.workers[int(name.split("-")[1])].alive
        }
        self.check()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    monkeypatch.setattr(Process, "machine", machine, raising=False)
    for module in (systemd, workers, actions):
        monkeypatch.setattr(module, "WorkerProcess", Process)
    monkeypatch.setattr(program, "check", lambda command, name: None)  # test_program.py
    monkeypatch.setattr(program, "has_same_variables", lambda before, after: True)
    monkeypatch.setattr(systemd, "end_process", machine.end_process)
    monkeypatch.setattr(message, "send", machine.send)
    monkeypatch.setattr(door, "receive", machine.receive)
    monkeypatch.setattr(state, "write", machine.write)
    monkeypatch.setattr(state, "identity", lambda pid: {"pid": pid, "start": 1})
    monkeypatch.setattr(state, "alive", lambda process: machine.workers[process["pid"]].alive)
    monkeypatch.setattr(state, "open_process", lambda process: process["pid"])
    monkeypatch.setattr(systemd, "Log", lambda *arguments: machine.log)
    for module in (systemd, reservation):
        monkeypatch.setattr(module, "os", Copies())
        monkeypatch.setattr(module, "socket", Copies())
    monkeypatch.setattr(Reservation, "bound", lambda place, device=None: machine.device)
    monkeypatch.setattr(Reservation, "let_go", lambda place, device: machine.let_go.append(device))
    monkeypatch.setattr(fuse, "can_resend", lambda init: machine.resends)
    yield machine
    os.close(machine.life)


def first_holder(
    machine: Machine, directory: Path, *, io_timeout_s: float | None = None, attached: bool = True
) -> Holder:
    """One with an attachment that is committed, or has a worker that was just told to serve."""
    run = str(directory)
    first = a_first_state(io_timeout_s=io_timeout_s)
    order: Begin = {"op": "begin", "name": "data", "run": run, "dev": "dev", "log": run, "state": first}
    place = Reservation(run, "dev", "data")
    place.control = cast(Any, Channel(Worker(-1)))
    record = Record(run, "data", first, cast(Any, machine.log))
    worker = cast(Any, Process.start({}))
    record.fields["worker"] = state.identity(worker.pid)
    crew = workers.Crew("data", run, place, -1, -1)
    keeper = SystemdKeeper(cast(Notify, machine), order, place)
    os.close(keeper._life_fd)
    keeper._life_fd = machine.life
    known = Known(worker.pid, time.monotonic(), first=True)
    lifecycle = Lifecycle(record.fields, known, Handover(COMMAND, {}))
    holder = Holder(Actions(None, record, cast(Any, machine.log), worker, place, crew, keeper), lifecycle)
    holder._feed("made", machine.resends)
    if attached:
        serves(machine, holder)
        commits(holder)
        assert holder._lifecycle.phase == "attached"
    return holder


def next_holder(machine: Machine) -> Holder:
    """Started by systemd, with copies of what it keeps."""
    fds = dict.fromkeys(machine.kept, machine.life)  # life is the only one that is used
    fds["fuse"] = -1
    life = read_life(machine.life)
    follower = systemd._follow(cast(Notify, machine), fds, life, cast(Any, machine.state))
    follower._begin()
    orders = the_worker(follower).orders
    assert orders[-2:] == ["start", "resume"], "it may not have been told, or stand still since it was told to drain"
    return follower


def settle(machine: Machine, holder: Holder) -> None:
    """Everything that the holder hears of takes its course, until its worker serves."""
    for _ in range(10):
        worker = cast(Any, holder._has.worker)
        if worker and not worker.worker.alive:
            holder._on_worker_death(worker)
        elif worker is None:
            holder._feed("time")
        else:
            served(holder)
            return
    raise AssertionError("no worker serves")


def served(holder: Holder, *, yes: bool = True) -> None:
    """The worker has taken requests of the kernel, though it was not heard to be ready; or has not."""
    cast(Any, holder._lifecycle._worker).served = yes


def the_worker(holder: Holder) -> Any:
    """The holder's worker, as the process."""
    return cast(Any, holder._has.worker).worker


def says(machine: Machine, holder: Holder, **event: Any) -> None:
    """The worker says something."""
    machine.events.append(event)
    assert holder._has.worker
    lines = len(machine.lines)
    holder._on_worker(holder._has.worker)
    assert not [line for line in machine.lines[lines:] if "refused" in line]


def dies(machine: Machine, holder: Holder) -> Any:
    """The worker dies; return the next one, which is started at once, if there is one."""
    the_worker(holder).alive = False
    assert holder._has.worker
    holder._on_worker_death(holder._has.worker)
    holder._feed("time")
    return the_worker(holder) if holder._has.worker else None


def serves(machine: Machine, holder: Holder) -> None:
    """The worker is ready."""
    says(machine, holder, event="ready", size=512, blob_size=512, vhd=False, worker_version="1")


def later(holder: Holder, seconds: float) -> None:
    """So long from now."""
    holder._feed("time", now=time.monotonic() + seconds)


def commits(holder: Holder) -> dict[str, Any]:
    """The attaching process has set the device up; return what it is answered."""
    attacher = cast(Any, Channel(Worker(-1)))
    holder._has.attacher = attacher
    holder._feed("commit", "/dev/loop0", holder._has.place.bound())
    holder._has.attacher = None
    answer: dict[str, Any] = attacher.worker.sent[-1]
    return answer


def stands_by(holder: Holder) -> Any:
    """The new worker read its briefing; return it, as the process."""
    holder._feed("standing_by")
    return cast(Any, holder._has.new).worker


def asked_to_replace(machine: Machine, holder: Holder) -> Any:
    """The worker asks for another program; return its worker, as the holder has it."""
    says(machine, holder, event="upgrade", id="1", worker=["new"], path="")
    new = cast(Any, holder._has.new)
    new.stderr, new.pidfd, new.listening = -2, -3, True
    return new
