"""Holders that are killed at any step: who serves, who sees its channel end, and what the next holder makes of it.

The product's own holder (device/service.py) runs over a machine of this test's: processes, systemd and state.json are
values here, and everything that a holder does to them is one step. A holder is killed before each of its steps, the
next one before each of its, and so on, breadth first.
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

from blobfuse_dysk.device import crew, fusefd, message, service, state
from blobfuse_dysk.device import holder as holders
from blobfuse_dysk.device.notify import Notify
from blobfuse_dysk.device.reservation import Reservation

COMMAND = {"worker": ["old"], "environment": {"PYTHONPATH": ""}}
MOST_KILLS = 3


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
    """In the place of os and socket in service.py: what systemd gives back is not there for real."""

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


class Process:
    """What a holder has of a worker, in the place of WorkerProcess."""

    machine: Machine

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self._take(self.machine.spawn())

    def _take(self, worker: Worker) -> None:
        self.worker = worker
        self.pid = self.pidfd = self.stderr = worker.pid
        self.channel = Channel(worker)
        self.started = time.monotonic()
        self.listening = False
        self.served = False
        self.reason = None
        self.machine.channels.add(worker.pid)

    def kill(self) -> None:
        self.machine.step()
        self.worker.alive = False

    def reap(self) -> list[str]:
        assert not self.worker.alive
        return []

    def hang_up(self) -> None:
        """Nothing."""

    def end_text(self) -> str:
        return "killed"


class Adopted(Process):
    """In the place of AdoptedWorker."""

    def __init__(self, pid: int, pidfd: int, channel: int, stderr: int) -> None:
        self._take(self.machine.workers[pid])
        self.served = True


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
        worker.orders.append(order["op"])
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
        self.state = json.loads(json.dumps(fields))

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
    for module in (service, crew):
        monkeypatch.setattr(module, "WorkerProcess", Process)
    monkeypatch.setattr(service, "AdoptedWorker", Adopted)
    monkeypatch.setattr(service, "end_process", machine.end_process)
    monkeypatch.setattr(message, "send", machine.send)
    monkeypatch.setattr(state, "write", machine.write)
    monkeypatch.setattr(state, "identity", lambda pid: {"pid": pid, "start": 1})
    monkeypatch.setattr(state, "alive", lambda process: machine.workers[process["pid"]].alive)
    monkeypatch.setattr(state, "open_process", lambda process: process["pid"])
    monkeypatch.setattr(holders, "Log", lambda *arguments: lambda text, priority=0: None)
    monkeypatch.setattr(service, "os", Copies())
    monkeypatch.setattr(service, "socket", Copies())
    monkeypatch.setattr(Reservation, "bound", lambda place, device=None: "/dev/loop0")
    monkeypatch.setattr(fusefd, "can_resend", lambda init: True)
    yield machine
    os.close(machine.life)


def first_holder(machine: Machine, directory: Path) -> service.KeptHolder:
    """One with an attachment that is committed."""
    first = {"disk": "a/b/c", "io_timeout_s": None}
    order = {"name": "data", "run": str(directory), "dev": "dev", "log": str(directory), "state": first}
    place = Reservation(str(directory), "dev", "data")
    place.control = cast(Any, Channel(Worker(-1)))
    members = service.KeptCrew(order, place, cast(Notify, machine), -1, -1, machine.life)
    worker = Process([], {})
    first_one = service.KeptHolder(None, COMMAND, order, cast(Any, worker), place, members)
    members.brief(cast(Any, worker), None)
    worker.served = first_one._ready = True
    assert first_one._commit("/dev/loop0") is None
    return first_one


def next_holder(machine: Machine) -> service.KeptHolder:
    """Started by systemd, with copies of what it keeps."""
    fds = dict.fromkeys(machine.kept, machine.life)  # life is the only one that is used
    life = service._read_life(machine.life)
    follower = service.KeptHolder.again(cast(Notify, machine), fds, life, machine.state)
    assert follower._begin()
    orders = cast(Any, follower._worker).worker.orders
    assert orders[-2:] == ["start", "resume"], "it may not have been told, or stand still since it was told to drain"
    return follower


def settle(machine: Machine, holder: service.KeptHolder) -> None:
    """Everything that the holder hears of takes its course, until its worker serves."""
    for _ in range(10):
        worker = cast(Any, holder._worker)
        if worker and not worker.worker.alive:
            holder._on_worker_death(worker)
        elif worker is None:
            holder._on_time(time.monotonic())
        else:
            worker.served = True
            return
    raise AssertionError("no worker serves")


def the_worker_dies(machine: Machine, holder: service.KeptHolder) -> None:
    cast(Any, holder._worker).worker.alive = False
    settle(machine, holder)


def an_upgrade(machine: Machine, holder: service.KeptHolder) -> None:
    old = holder._worker
    holder._handover.begin({"id": "1", "worker": ["new"], "path": ""}, old, can_resend=True)
    holder._handover._drain()
    holder._handover.on_drain("1", True)
    settle(machine, holder)


def an_upgrade_whose_worker_dies(machine: Machine, holder: service.KeptHolder) -> None:
    an_upgrade(machine, holder)
    the_worker_dies(machine, holder)


@pytest.mark.parametrize("happens", [the_worker_dies, an_upgrade, an_upgrade_whose_worker_dies])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "with its worker"])
def test_holders_killed_at_any_step(machine: Machine, tmp_path: Path, happens: Any, together: bool) -> None:
    """Up to MOST_KILLS of them, one after the other; together: the worker of a holder dies with it."""
    plans: deque[tuple[int, ...]] = deque([()])
    tried = 0
    while plans:
        plan = plans.popleft()
        tried += 1
        steps = live(machine, tmp_path, happens, plan, together)
        if len(plan) < MOST_KILLS:
            plans.extend((*plan, step) for step in range(steps))
    assert tried > 100


def live(machine: Machine, directory: Path, happens: Any, plan: tuple[int, ...], together: bool) -> int:
    """Let holder after holder be killed at the step of the plan; return how many steps the last, which lives, took."""
    machine.workers, machine.kept, machine.state = {}, set(), {}
    holder = first_holder(machine, directory)
    machine.steps, machine.killed_at = 0, plan[0] if plan else None
    for number in range(len(plan) + 1):
        try:
            if number == 0:
                happens(machine, holder)
            else:
                machine.killed_at = plan[number] if number < len(plan) else None
                holder = next_holder(machine)
                settle(machine, holder)
            assert number == len(plan), "the plan has more steps than there are"
        except Killed:
            named = machine.state["worker"]
            if together and named:
                machine.workers[named["pid"]].alive = False
            machine.holder_dies()
    machine.check()
    serving = [worker for worker in machine.workers.values() if worker.alive and worker.told]
    assert [worker.pid for worker in serving] == [machine.state["worker"]["pid"]], plan
    machine_keeps = {name for name in machine.kept if name.startswith("channel-")}
    dead = {name for name in machine_keeps if not machine.workers[int(name.split("-")[1])].alive}
    assert machine_keeps - dead == {f"channel-{serving[0].pid}-1"}, plan
    return machine.steps
