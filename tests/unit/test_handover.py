"""The replacement of a worker: who is told what, who is killed, and what the holder tells those who ask for it."""

from __future__ import annotations

from typing import Any

import pytest

from blobfuse_dysk.device.holder import handover as module
from blobfuse_dysk.device.holder.handover import Handover
from blobfuse_dysk.device.holder.machine import Worker
from blobfuse_dysk.device.ipc.messages import Program

OLD: Program = {"worker": ["old"], "environment": {"PATH": "/bin", "PYTHONPATH": "old"}}
NEW: Program = {"worker": ["new"], "environment": {"PATH": "/bin", "PYTHONPATH": "path"}}
START = ("start_standby", NEW)
RESUME = ("tell", {"op": "resume"})
END_NEW = ("end_standby",)
GIVES_UP = {"type": "DeviceError", "message": "protocol 9", "remedy": None}


class Scene:
    """A handover, the old worker, and the one that is started to stand by. What it does is kept."""

    def __init__(self) -> None:
        self.old = Worker(1, 0.0, served=True)
        self.now = 100.0
        self.handover = Handover(OLD, {})
        self.told: dict[str, Any] = {}
        self.lines: list[str] = []
        self.done: list[tuple[Any, ...]] = []  # since the last call of `does`
        self.pids = 2

    def tell(self, *event: Any) -> None:
        for action in self.handover.step(event, self.now):
            if action[0] == "save":
                self.told.update(action[1])
            elif action[0] == "log":
                self.lines.append(action[1])
            else:
                self.done.append(action)

    def does(self) -> list[tuple[Any, ...]]:
        done, self.done = self.done, []
        return done

    def ask(self, request_id: str = "1", *, recovers: bool = False) -> None:
        request = {"id": request_id, "worker": ["new"], "path": "path"}
        self.tell("upgrade", request, self.old, recovers)

    def begin(self, request_id: str = "1", *, recovers: bool = False) -> None:
        self.ask(request_id, recovers=recovers)
        assert self.does() == [START]
        self.pids += 1
        self.tell("standby", self.pids)

    def draining(self, request_id: str = "1", *, recovers: bool = False) -> None:
        """Go on to the point where the old worker is told to drain."""
        self.begin(request_id, recovers=recovers)
        self.tell("standing_by")
        assert self.does() == [("tell", {"op": "drain", "id": request_id, "limit_s": module.DRAIN_S})]

    def switching(self, *, recovers: bool = False) -> None:
        self.draining(recovers=recovers)
        self.tell("drained", "1", True)
        assert self.does() == [("kill",)]

    def starting(self) -> None:
        self.switching()
        self.tell("died", "killed", False)
        assert self.does() == [("promote",)]

    def answer(self, request_id: str = "1") -> tuple[bool, str | None]:
        """Done, and why not."""
        found = self.told["upgrades"][request_id]
        return found["done"], found["error"] and found["error"]["message"]

    def failed(self, match: str) -> bool:
        """The old program goes on, and nobody waits for anything."""
        done, error = self.answer()
        assert done and match in str(error)
        assert "the worker was not replaced" in self.lines[-1]
        assert (self.handover.command, self.handover.former) == (OLD, None)
        return self.handover.phase == "idle" and self.handover.deadline is None and self.handover.new is None


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_from_one_worker_to_the_next(scene: Scene) -> None:
    handover = scene.handover
    scene.ask()
    assert scene.does() == [START]
    assert scene.answer() == (False, None)
    scene.tell("standby", 2)
    assert scene.does() == [], "the old one serves as if nothing were the matter"
    scene.tell("standing_by")
    assert scene.does() == [("tell", {"op": "drain", "id": "1", "limit_s": module.DRAIN_S})]
    assert not scene.old.drained
    new = handover.new
    assert new
    assert new.pid == 2
    scene.tell("drained", "1", True)
    assert scene.does() == [("kill",)]
    assert scene.old.drained
    assert not new.drained
    scene.tell("died", "killed", False)
    assert scene.does() == [("promote",)], "it was told to go on before anybody knows that it is the worker"
    assert handover.phase == "starting"
    assert (handover.command, handover.former) == (NEW, OLD), "the old program is known until the new one serves"
    assert scene.answer() == (False, None)
    scene.tell("ready")
    assert scene.does() == [("keep_program", NEW, None)]
    assert scene.answer() == (True, None)
    assert scene.lines == ["the worker was replaced"]
    assert (handover.command, handover.former) == (NEW, None)
    assert handover.phase == "idle"


def test_a_new_worker_that_dies_or_gives_up_before_it_stands_by(scene: Scene) -> None:
    scene.begin()
    scene.tell("new_died", "no memory")
    assert scene.failed("could not start (no memory)")
    assert scene.does() == [], "the old one serves as if nothing were the matter, and the new one was reaped"
    scene.begin()
    scene.tell("gave_up", GIVES_UP)
    assert scene.failed("protocol 9")
    assert scene.does() == [END_NEW]


def test_a_new_worker_that_is_not_there_in_time(scene: Scene) -> None:
    scene.begin()
    assert scene.handover.deadline == scene.now + module.LOAD_S
    assert scene.answer() == (False, None)
    scene.tell("time")
    assert scene.failed("not there within 120 s")
    assert scene.does() == [END_NEW]


def test_a_program_that_cannot_be_started(scene: Scene) -> None:
    scene.ask()
    scene.tell("no_standby", "No such file or directory")
    assert scene.answer() == (True, "cannot start new: No such file or directory")
    assert scene.handover.command == OLD
    assert scene.does() == [START]
    scene.draining("2")


@pytest.mark.parametrize("how", ["it dies", "it gives up", "all I/O fails"])
def test_what_ends_the_draining_has_the_old_worker_go_on(scene: Scene, how: str) -> None:
    scene.draining()
    if how == "it dies":
        scene.tell("new_died", "no memory")
    elif how == "it gives up":
        scene.tell("gave_up", GIVES_UP)
    else:
        scene.tell("stop", how)
    assert scene.does() == ([RESUME] if how == "it dies" else [RESUME, END_NEW])
    assert scene.failed("")


def test_an_answer_to_a_drain_that_was_undone_counts_for_no_other(scene: Scene) -> None:
    """The next replacement is asked for while the old worker's answer to the first is on its way."""
    scene.draining("1")
    scene.tell("new_died", "no memory")
    assert scene.does() == [RESUME], "the old worker stands still"
    scene.begin("2")
    scene.tell("drained", "1", True)
    scene.tell("new_died", "no memory")
    scene.draining("3")
    scene.tell("drained", "1", True)
    assert scene.does() == [], "it was killed with requests that nobody will send again"
    assert not scene.old.drained
    scene.tell("drained", "3", True)
    assert scene.does() == [("kill",)]
    assert scene.old.drained


def test_an_answer_that_comes_after_the_end_changes_nothing(scene: Scene) -> None:
    scene.draining()
    scene.tell("new_died", "no memory")
    assert scene.does() == [RESUME]
    for drained in (False, True):
        scene.tell("drained", "1", drained)
    assert scene.does() == []
    assert not scene.old.drained


def test_not_drained_where_the_kernel_cannot_send_again(scene: Scene) -> None:
    scene.draining()
    scene.tell("drained", "1", False)
    assert scene.failed("requests have been waiting")
    assert scene.does() == [RESUME, END_NEW]


def test_not_drained_where_the_kernel_can_send_again(scene: Scene) -> None:
    scene.draining(recovers=True)
    scene.tell("drained", "1", False)
    assert scene.does() == [("kill",)]
    assert not scene.old.drained, "its requests are to be sent again"
    scene.tell("died", "killed", True)
    assert scene.does() == [("promote",)]


def test_an_old_worker_that_says_nothing(scene: Scene) -> None:
    scene.draining()
    deadline = scene.handover.deadline
    assert deadline is not None
    assert deadline > scene.now + module.DRAIN_S, "it has this long to answer what it has taken"
    assert scene.answer() == (False, None)
    scene.tell("time")
    assert scene.failed("requests have been waiting")
    assert scene.does() == [RESUME, END_NEW]


@pytest.mark.parametrize(("resend", "recovers"), [(True, True), (False, False), (False, True)])
def test_the_old_worker_dies_while_it_drains(scene: Scene, resend: bool, recovers: bool) -> None:
    scene.draining(recovers=recovers)
    assert not scene.old.drained
    scene.tell("died", "killed", resend)
    assert scene.does() == [("promote",)]


def test_the_old_worker_dies_with_requests_that_the_kernel_cannot_send_again(scene: Scene) -> None:
    scene.draining()
    scene.tell("died", "killed", True)
    assert scene.failed("died meanwhile")
    assert scene.does() == [RESUME, END_NEW]


def test_the_old_worker_dies_before_the_new_one_stands_by(scene: Scene) -> None:
    scene.begin(recovers=True)
    scene.tell("died", "killed", False)
    assert scene.failed("died meanwhile")
    assert scene.does() == [END_NEW]
    scene.tell("died", "killed", False)
    assert scene.does() == []


def test_the_new_worker_dies_when_the_old_one_is_killed_already(scene: Scene) -> None:
    """All that the old one had taken is answered, which is still so when somebody asks for another replacement."""
    scene.switching()
    scene.tell("new_died", "no memory")
    assert scene.failed("no memory")
    assert scene.old.drained
    scene.begin("2")
    assert scene.old.drained
    scene.tell("died", "killed", False)
    assert scene.does() == [END_NEW]


@pytest.mark.parametrize("event", ["died", "over"])
def test_the_new_worker_dies_when_it_is_its_turn(scene: Scene, event: str) -> None:
    scene.starting()
    scene.tell("stop", "this is not for the worker")
    assert scene.does() == []
    assert scene.answer() == (False, None)
    scene.tell(event, "no memory", *([False] if event == "died" else []))
    assert scene.failed("the new worker could not start (no memory)"), "what cannot start would be started again"
    assert scene.does() == [], "that it is reaped is the holder's, as of any worker"


def test_a_worker_that_is_ready_is_not_always_a_new_one(scene: Scene) -> None:
    scene.begin()
    scene.tell("ready")
    assert scene.answer() == (False, None)
    assert scene.handover.phase == "loading"


def test_standing_by_is_said_once(scene: Scene) -> None:
    scene.switching(recovers=True)
    scene.tell("standing_by")
    scene.tell("drained", "1", False)
    assert scene.does() == []
    assert scene.old.drained


@pytest.mark.parametrize("event", ["stop", "over"])
def test_nobody_is_replaced_when_all_ends(scene: Scene, event: str) -> None:
    scene.begin()
    scene.tell(event, "all I/O fails")
    assert scene.failed("all I/O fails")
    assert scene.does() == [END_NEW]
    scene.tell(event, "nothing is under way")
    assert scene.does() == []


def test_nobody_is_replaced_while_it_is_being_attached(scene: Scene) -> None:
    scene.tell("upgrade", {"id": "1", "worker": ["new"], "path": ""}, None, True)
    assert scene.answer()[0]
    assert "right now" in str(scene.answer()[1])
    assert scene.does() == []


def test_each_of_several_who_ask_at_once_finds_an_answer(scene: Scene) -> None:
    """They look at state.json now and then, so an answer must not be overwritten by the next one."""
    scene.begin("first")
    for request_id in ("second", "third"):
        scene.ask(request_id)
    assert scene.does() == []
    assert not scene.answer("first")[0]
    for request_id in ("second", "third"):
        done, error = scene.answer(request_id)
        assert done
        assert "replaced already" in str(error)


def test_old_answers_are_forgotten(scene: Scene) -> None:
    for number in range(100):
        scene.tell("upgrade", {"id": str(number)}, None, True)
    assert list(scene.told["upgrades"])[-1] == "99"
    assert len(scene.told["upgrades"]) < 20


def test_answers_of_the_holder_before_stay(scene: Scene) -> None:
    scene.handover = Handover(OLD, {"0": {"done": True, "error": None}})
    scene.begin()
    assert scene.answer("0") == (True, None)


def test_a_holder_that_follows_falls_back_to_the_program_that_served(scene: Scene) -> None:
    """The new program's worker is its own, and was told to go, but may not have got ready."""
    scene.handover = Handover(NEW, {}, OLD)
    scene.tell("stop", "this is not for the worker")
    scene.tell("died", "no memory", True)
    assert scene.does() == []
    assert (scene.handover.command, scene.handover.former) == (OLD, None)
    assert scene.told == {}, "nobody waits for an answer"


def test_a_holder_that_follows_goes_on_with_the_program_that_serves(scene: Scene) -> None:
    scene.handover = Handover(NEW, {}, OLD)
    scene.tell("ready")
    assert scene.does() == [("keep_program", NEW, None)]
    scene.tell("died", "no memory", True)
    assert scene.handover.command == NEW


def test_who_asks_for_another_program_shows_that_this_one_serves(scene: Scene) -> None:
    """Its being ready may have been heard by a holder that died of that."""
    scene.handover = Handover(NEW, {}, OLD)
    scene.ask()
    assert scene.does() == [("keep_program", NEW, None), START]
    scene.tell("no_standby", "No such file or directory")
    assert scene.handover.command == NEW
