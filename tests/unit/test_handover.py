"""The replacement of a worker: who is told what, who is killed, and what the holder tells those who ask for it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from blobfuse_dysk.device.holder import handover as module
from blobfuse_dysk.device.holder.handover import Handover
from blobfuse_dysk.device.holder.workers import WorkerProcess
from blobfuse_dysk.device.ipc.log import Log

OLD = {"worker": ["old"], "environment": {"PATH": "/bin", "PYTHONPATH": "old"}}
NEW = {"worker": ["new"], "environment": {"PATH": "/bin", "PYTHONPATH": "path"}}


class Worker:
    """A worker as the holder sees it; `peer` is what the process has."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.channel, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer.setblocking(False)
        self.pidfd, self.stderr = os.pipe()
        self.listening = True
        self.killed = self.reaped = False

    def fds(self) -> list[int]:
        return [self.channel.fileno(), self.pidfd]

    def kill(self) -> None:
        self.killed = True

    def reap(self) -> list[str]:
        assert not self.reaped
        self.reaped = True
        return [f"the last words of {self.name}"]

    def hang_up(self) -> None:
        self.listening = False

    def read_stderr(self) -> list[str]:
        return ["a line"]

    def end_text(self) -> str:
        return "no memory"

    def heard(self) -> list[dict[str, Any]]:
        """What it was told since the last call."""
        orders = []
        while True:
            try:
                orders.append(json.loads(self.peer.recv(65536)))
            except BlockingIOError:
                return orders

    def ops(self) -> list[str]:
        return [order["op"] for order in self.heard()]

    def close(self) -> None:
        self.channel.close()
        self.peer.close()
        os.close(self.pidfd)
        os.close(self.stderr)


class Scene:
    """A handover, the old worker, and those that are started to stand by."""

    def __init__(self, directory: Path) -> None:
        self.old = Worker("old")
        self.started: list[Worker] = []
        self.commands: list[dict[str, Any]] = []
        self.told: dict[str, Any] = {}
        self.refusal: OSError | None = None
        self.handover = Handover(OLD, self.start, self.told.update, Log("test", "data", str(directory)))

    def start(self, command: dict[str, Any]) -> WorkerProcess:
        if self.refusal:
            raise self.refusal
        self.commands.append(command)
        self.started.append(Worker(f"new {len(self.started)}"))
        return cast(WorkerProcess, self.started[-1])

    def begin(self, request_id: str = "1", *, can_resend: bool = False) -> Worker:
        request = {"id": request_id, "worker": ["new"], "path": "path"}
        self.handover.begin(request, cast(WorkerProcess, self.old), can_resend=can_resend)
        return self.started[-1]

    def says(self, worker: Worker, **event: Any) -> list[str]:
        worker.peer.send(json.dumps(event).encode())
        return self.handover.hear({worker.channel.fileno()})

    def draining(self, request_id: str = "1", *, can_resend: bool = False) -> Worker:
        """Go on to the point where the old worker is told to drain; return the new one."""
        new = self.begin(request_id, can_resend=can_resend)
        self.says(new, event="standing-by")
        return new

    def switching(self, *, can_resend: bool = False) -> Worker:
        new = self.draining(can_resend=can_resend)
        self.handover.on_drain("1", True)
        return new

    def dies(self, worker: Worker) -> list[str]:
        return self.handover.hear({worker.pidfd})

    def successor(self, *, resend: bool = False) -> Worker | None:
        return cast(Worker | None, self.handover.successor(resend=resend))

    def drained(self, worker: Worker) -> bool:
        return self.handover.drained(cast(WorkerProcess, worker))

    def answer(self, request_id: str = "1") -> tuple[bool, str | None]:
        """Done, and why not."""
        found = self.told["upgrades"][request_id]
        return found["done"], found["error"] and found["error"]["message"]

    def failed(self, match: str, new: Worker) -> bool:
        """The old program and the old worker go on, and the new one is gone."""
        done, error = self.answer()
        assert done and match in str(error)
        assert self.handover.command == OLD
        assert self.handover.deadline is None
        assert self.handover.fds() == []
        return new.reaped and not self.old.killed


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    for worker in (scene.old, *scene.started):
        worker.close()


def test_from_one_worker_to_the_next(scene: Scene) -> None:
    handover = scene.handover
    new = scene.begin()
    assert scene.commands == [NEW]
    assert scene.answer() == (False, None)
    assert handover.fds() == new.fds()
    assert scene.old.heard() == []
    assert scene.says(new, event="standing-by") == []
    assert scene.old.heard() == [{"op": "drain", "id": "1", "limit_s": module.DRAIN_S}]
    assert not scene.old.killed
    assert not scene.drained(scene.old)
    handover.on_drain("1", True)
    assert scene.old.killed
    assert scene.drained(scene.old)
    assert not scene.drained(new)
    assert handover.fds() == new.fds()
    assert scene.successor() is new
    assert new.heard() == [], "it was told to go on before anybody knows that it is the worker"
    assert handover.fds() == []
    handover.go({"size": 512}, resend=False)
    assert new.heard() == [{"op": "go", "resume": {"size": 512}, "resend": False}]
    assert scene.answer() == (False, None)
    handover.on_ready()
    assert scene.answer() == (True, None)
    assert handover.command == NEW
    assert not new.killed
    assert scene.old.heard() == []


def test_a_new_worker_that_dies_or_gives_up_before_it_stands_by(scene: Scene) -> None:
    new = scene.begin()
    assert scene.dies(new) == ["the last words of new 0"]
    assert scene.failed("could not start (no memory)", new)
    assert scene.old.heard() == []
    new = scene.begin()
    scene.says(new, event="error", error={"type": "DeviceError", "message": "protocol 9"})
    assert scene.failed("protocol 9", new)
    assert new.killed
    assert scene.old.heard() == []


def test_a_new_worker_that_is_not_there_in_time(scene: Scene) -> None:
    new = scene.begin()
    deadline = scene.handover.deadline
    assert deadline is not None
    scene.handover.on_time(deadline - 0.1)
    assert scene.answer() == (False, None)
    scene.handover.on_time(deadline)
    assert scene.failed("not there within 30 s", new)
    assert new.killed


def test_a_program_that_cannot_be_started(scene: Scene) -> None:
    scene.refusal = FileNotFoundError(2, "No such file or directory")
    request = {"id": "1", "worker": ["new"], "path": "path"}
    scene.handover.begin(request, cast(WorkerProcess, scene.old), can_resend=True)
    assert scene.answer() == (True, "cannot start new: No such file or directory")
    assert scene.handover.command == OLD
    scene.refusal = None
    assert scene.draining("2")


@pytest.mark.parametrize("how", ["it dies", "it gives up", "all I/O fails"])
def test_what_ends_the_draining_has_the_old_worker_go_on(scene: Scene, how: str) -> None:
    new = scene.draining()
    if how == "it dies":
        scene.dies(new)
    elif how == "it gives up":
        scene.says(new, event="error", error={"type": "DeviceError", "message": "no"})
    else:
        scene.handover.stop("all I/O fails")
    assert scene.old.ops() == ["drain", "resume"]
    assert scene.failed("", new)


def test_an_answer_to_a_drain_that_was_undone_counts_for_no_other(scene: Scene) -> None:
    """The next replacement is asked for while the old worker's answer to the first is on its way."""
    scene.dies(scene.draining("1"))
    second = scene.begin("2")
    scene.handover.on_drain("1", True)
    scene.dies(second)
    assert scene.old.ops() == ["drain", "resume"], "the old worker stands still"
    scene.draining("3")
    scene.handover.on_drain("1", True)
    assert not scene.old.killed, "it was killed with requests that nobody will send again"
    assert not scene.drained(scene.old)
    scene.handover.on_drain("3", True)
    assert scene.old.killed
    assert scene.drained(scene.old)


def test_an_answer_that_comes_after_the_end_changes_nothing(scene: Scene) -> None:
    scene.dies(scene.draining())
    for drained in (False, True):
        scene.handover.on_drain("1", drained)
    assert scene.old.ops() == ["drain", "resume"]
    assert not scene.old.killed
    assert not scene.drained(scene.old)


def test_not_drained_where_the_kernel_cannot_send_again(scene: Scene) -> None:
    new = scene.draining()
    scene.handover.on_drain("1", False)
    assert scene.failed("requests have been waiting", new)
    assert scene.old.ops() == ["drain", "resume"]


def test_not_drained_where_the_kernel_can_send_again(scene: Scene) -> None:
    new = scene.draining(can_resend=True)
    scene.handover.on_drain("1", False)
    assert scene.old.killed
    assert not scene.drained(scene.old), "its requests are to be sent again"
    assert scene.successor(resend=True) is new


def test_an_old_worker_that_says_nothing(scene: Scene) -> None:
    began = time.monotonic()
    new = scene.draining()
    deadline = scene.handover.deadline
    assert deadline is not None
    assert deadline > began + module.DRAIN_S, "it has this long to answer what it has taken"
    scene.handover.on_time(deadline - 0.1)
    assert scene.answer() == (False, None)
    scene.handover.on_time(deadline)
    assert scene.failed("requests have been waiting", new)
    assert scene.old.ops() == ["drain", "resume"]


@pytest.mark.parametrize(("resend", "can_resend"), [(True, True), (False, False), (False, True)])
def test_the_old_worker_dies_while_it_drains(scene: Scene, resend: bool, can_resend: bool) -> None:
    new = scene.draining(can_resend=can_resend)
    assert not scene.drained(scene.old)
    assert scene.successor(resend=resend) is new
    scene.handover.go({}, resend=resend)
    assert new.heard() == [{"op": "go", "resume": {}, "resend": resend}]


def test_the_old_worker_dies_with_requests_that_the_kernel_cannot_send_again(scene: Scene) -> None:
    new = scene.draining()
    assert scene.successor(resend=True) is None
    assert scene.failed("died meanwhile", new)
    assert new.killed


def test_the_old_worker_dies_before_the_new_one_stands_by(scene: Scene) -> None:
    new = scene.begin(can_resend=True)
    assert scene.successor() is None
    assert scene.failed("died meanwhile", new)
    assert scene.successor() is None


def test_the_new_worker_dies_when_the_old_one_is_killed_already(scene: Scene) -> None:
    """All that the old one had taken is answered, which is still so when somebody asks for another replacement."""
    new = scene.switching()
    scene.dies(new)
    assert new.reaped
    assert scene.handover.command == OLD
    assert scene.drained(scene.old)
    scene.begin("2")
    assert scene.drained(scene.old)
    assert scene.successor() is None


def test_the_new_worker_dies_when_it_is_its_turn(scene: Scene) -> None:
    new = scene.switching()
    assert scene.successor() is new
    scene.handover.stop("this is not for the worker")
    assert not new.killed
    assert scene.handover.hear({new.pidfd, *new.fds()}) == []
    scene.handover.on_death(cast(WorkerProcess, scene.old))
    assert scene.answer() == (False, None)
    scene.handover.on_death(cast(WorkerProcess, new))
    assert scene.answer() == (True, "the new worker could not start (no memory)")
    assert scene.handover.command == OLD, "the version that cannot start would be started again"
    assert not new.reaped, "that is the holder's, as of any worker"


def test_a_worker_that_is_ready_is_not_always_a_new_one(scene: Scene) -> None:
    scene.begin()
    scene.handover.on_ready()
    scene.handover.on_death(cast(WorkerProcess, scene.old))
    assert scene.answer() == (False, None)


def test_standing_by_is_said_once(scene: Scene) -> None:
    new = scene.switching(can_resend=True)
    scene.says(new, event="standing-by")
    assert scene.old.ops() == ["drain"]
    scene.handover.on_drain("1", False)
    assert scene.drained(scene.old)


def test_lines_of_a_new_worker_and_the_end_of_its_channel(scene: Scene) -> None:
    new = scene.begin()
    assert scene.handover.hear({new.stderr}) == ["a line"]
    new.peer.shutdown(socket.SHUT_RDWR)
    assert scene.handover.hear({new.channel.fileno()}) == []
    assert not new.listening
    assert scene.answer() == (False, None), "its pidfd says that it ended"
    scene.handover.stop("all I/O fails")
    assert scene.failed("all I/O fails", new)
    scene.handover.stop("nothing is under way")


def test_nobody_is_replaced_while_it_is_being_attached(scene: Scene) -> None:
    scene.handover.begin({"id": "1", "worker": ["new"], "path": ""}, None, can_resend=True)
    assert scene.answer()[0]
    assert "right now" in str(scene.answer()[1])
    assert scene.commands == []


def test_each_of_several_who_ask_at_once_finds_an_answer(tmp_path: Path) -> None:
    """They look at state.json now and then, so an answer must not be overwritten by the next one."""
    told: dict[str, Any] = {}
    worker = cast(WorkerProcess, object())
    handover = Handover({"environment": {}}, lambda command: worker, told.update, Log("test", "data", str(tmp_path)))
    for request_id in ("first", "second", "third"):
        handover.begin({"id": request_id, "worker": ["python"], "path": ""}, worker, can_resend=True)
    answers = told["upgrades"]
    assert not answers["first"]["done"]
    for request_id in ("second", "third"):
        assert answers[request_id]["done"]
        assert "replaced already" in str(answers[request_id]["error"])


def test_old_answers_are_forgotten(tmp_path: Path) -> None:
    told: dict[str, Any] = {}
    handover = Handover({}, lambda command: None, told.update, Log("test", "data", str(tmp_path)))  # type: ignore
    for number in range(100):
        handover.begin({"id": str(number)}, None, can_resend=True)
    assert list(told["upgrades"])[-1] == "99"
    assert len(told["upgrades"]) < 20
