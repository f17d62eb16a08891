"""At the doors of real processes: whatever comes in, nothing is raised in their loops, and nothing changes that should
not. The holder's doors are in test_holder.py and test_lifecycle_model.py."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.device.attacher.launch import Launch
from blobfuse_dysk.device.ipc import control, message, messages, shapes
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.device.worker.controlserver import ControlServer
from blobfuse_dysk.device.worker.operations import Asked, Questions
from blobfuse_dysk.device.worker.worker import Worker
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.options import LIVE_OPTIONS
from tests.unit.shaped import TEXTS, Typed, odd_value
from tests.unit.states import a_state

EXAMPLES = settings(max_examples=60, deadline=None)
TYPED = Typed()
ANY = st.randoms(use_true_random=True)


def bytes_of(value: object, chance: Random) -> bytes:
    """As JSON, now and then with some bytes changed or cut off. Never empty: that is the other side's end."""
    data = bytearray(json.dumps(value).encode())
    if chance.random() < 0.2:
        data[chance.randrange(len(data))] = chance.randrange(256)
    if chance.random() < 0.1:
        del data[chance.randrange(len(data)) :]
    return bytes(data) or b"{"


def anything_like(record: str, chance: Random) -> bytes:
    return bytes_of(TYPED.mutated(TYPED.value(TYPED.record(record), chance), chance), chance)


def parsed(data: bytes) -> Any:
    try:
        return shapes.parse(data)
    except ValueError:
        return None


class ListeningWorker(Worker):
    """A worker of which nothing is there but its ear."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self.orders: list[Any] = []
        self.ends: list[float] = []
        self._fuse_scope = trio.CancelScope()

    def _on_message(self, order: Any, nursery: trio.Nursery) -> None:
        self.orders.append(order)

    def _begin_end(self, *, limit_s: float = 0.0) -> None:
        self.ends.append(limit_s)


@given(chance=ANY)
@EXAMPLES
def test_a_worker_does_what_the_table_has_and_outlives_all_else(chance: Random) -> None:
    records = [row.record.__name__ for row in messages.TABLE if row.receiver == messages.WORKER and not row.fds]
    sent = [anything_like(chance.choice(records), chance) for _ in range(5)]
    holder, theirs = message.channel()
    with holder, theirs:
        worker = ListeningWorker(theirs)
        for data in sent:
            holder.send(data)
        message.send(holder, {"op": "flush"})
        holder.close()
        trio.run(worker._listen)
    fit = [value for value in map(parsed, sent) if any(TYPED.fits(value, TYPED.record(name)) for name in records)]
    assert worker.orders == [*fit, {"op": "flush"}]
    assert len(worker.ends) == 1, "the end of the holder was heard"


def test_a_worker_that_is_briefed_once_more_keeps_none_of_the_descriptors() -> None:
    holder, theirs = message.channel()
    with holder, theirs, Path("/dev/null").open() as null:
        briefing = {
            "op": "start", "protocol": message.PROTOCOL, "name": "data", "log": "/log", "init": "", "resume": a_state(),
            "resend": False,
        }  # fmt: skip
        message.send(holder, briefing, [null.fileno()] * 4)
        holder.close()
        worker = ListeningWorker(theirs)
        before = null.fileno()
        trio.run(worker._listen)
        assert worker.orders == [briefing]
        with Path("/dev/null").open() as again:
            assert again.fileno() <= before + 3


class Holder:
    """What an attaching process has of one that says this and ends."""

    def __init__(self, *said: bytes) -> None:
        channel, self.launch_end = message.channel()
        with channel:
            for data in said:
                channel.send(data)
        self.launch = Launch.__new__(Launch)
        self.launch._channel = self.launch_end
        self.launch._process, self.launch._is_unit = None, False
        self.launch._name = "data"

    def __enter__(self) -> Launch:
        return self.launch

    def __exit__(self, *args: object) -> None:
        self.launch_end.close()


@given(chance=ANY)
@EXAMPLES
def test_an_attaching_process_takes_what_the_table_has_and_fails_in_order_otherwise(chance: Random) -> None:
    data = anything_like(chance.choice(["Ready", "Ready", "Failed", "Committed"]), chance)
    with Holder(data) as launch:
        if TYPED.fits(parsed(data), TYPED.record("Ready")):
            assert launch.wait_ready() == parsed(data)["state"]
        else:
            with pytest.raises(DyskError):
                launch.wait_ready()


def test_an_attaching_process_says_what_was_wrong() -> None:
    with Holder(b'{"event":"ready","state":{}}') as launch, pytest.raises(DyskError) as caught:
        launch.wait_ready()
    assert str(caught.value) == "a message of the holder is refused: ready: state.disk is missing"
    with Holder(b'{"event":"committed"}') as launch, pytest.raises(DyskError, match="said 'committed' out of turn"):
        launch.wait_ready()


def test_an_attaching_process_that_gives_up_waits_for_the_end_whatever_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Holder(b"{", b'{"event":"committed"}', b"[]") as launch:
        launch.take_back()
    assert [line.partition(": ")[0] for line in caplog.messages] == ["a message of the holder is refused"] * 2


class FakeStack:
    """Remembers what a worker sets."""

    def __init__(self) -> None:
        self.limits: dict[str, float | None] = {"iops": None, "mbps": None}
        self.io_timeout_s: float | None = 7.0
        self.trace_s: float | None = None

    def trace(self, seconds: float) -> None:
        self.trace_s = seconds

    def set_io_timeout(self, io_timeout_s: float | None) -> None:
        self.io_timeout_s = io_timeout_s

    def set_limits(self, iops: float | None, mbps: float | None) -> None:
        self.limits = {"iops": iops, "mbps": mbps}

    def status(self) -> dict[str, object]:
        return {"state": "attached"}


class FakeWorker(SimpleNamespace):
    """As its questioners see it; `events` went to the holder."""

    def __init__(self) -> None:
        async def reload(path: str) -> None:
            pass

        credential = SimpleNamespace(
            expires_at=None, problem=None, left_out="", describe=lambda: "a key", reload=reload
        )
        super().__init__(stack=FakeStack(), geometry=None, credential=credential, open_by=0.0, opening_error=None)
        self.events: list[Any] = []
        self.send_event = self.events.append


async def ask(worker: FakeWorker, *lines: bytes) -> list[Any]:
    """What a control server answers to these lines, one connection each."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")  # a name that nobody else has; source: unix(7), autobind
    listener.listen()
    answers = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ControlServer(listener, Questions(cast(Asked, worker)).answers).run)
        for line in lines:
            client = trio.socket.socket(socket.AF_UNIX)
            await client.connect(listener.getsockname())
            stream = trio.SocketStream(client)
            async with stream:
                await stream.send_all(line + b"\n")
                answers.append(json.loads(await stream.receive_some(1 << 20)))
        nursery.cancel_scope.cancel()
    return answers


@given(chance=ANY)
@EXAMPLES
def test_a_worker_answers_each_question_and_does_only_what_fits(chance: Random) -> None:
    questions = {name: row.record.__name__ for name, row in control.QUESTIONS.items() if name not in ("watch", "blank")}
    name = chance.choice([*questions])
    value = TYPED.value(TYPED.record(questions[name]), chance)
    value = TYPED.mutated({**value, "op": name}, chance) if chance.random() < 0.8 else odd_value(chance)
    line = bytes_of(value, chance).replace(b"\n", b" ")
    question = parsed(line)
    op = question.get("op") if isinstance(question, dict) else None
    if op in ("watch", "blank"):
        return  # one is answered at the end, the other takes a whole disk
    worker = FakeWorker()
    answer, alive = trio.run(ask, worker, line, b'{"op": "status"}')
    fits = isinstance(op, str) and op in questions and TYPED.fits(question, TYPED.record(questions[op]))
    assert alive["ok"]
    text = "" if answer["ok"] else answer["error"]["message"]
    assert fits or "cannot be read" in text or "does not know" in text
    if not (fits and answer["ok"] and op == "set"):
        assert (worker.stack.io_timeout_s, worker.stack.limits) == (7.0, {"iops": None, "mbps": None})
        assert worker.stack.trace_s is None
    if not fits:
        assert worker.events == []
    assert all(shapes.problem(event, messages.StateChanged) is None for event in worker.events if op == "set")


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (option.field, number)
        for option in LIVE_OPTIONS.values()
        for number in ("NaN", "Infinity", "-Infinity", "1e999", "true", '"5"', "-1", "0")
        if (option.field, number) != ("trace_s", "0")  # which ends a trace
    ],
)
def test_what_is_no_limit_in_time_or_rate_reaches_neither_the_disk_nor_the_holder(field: str, number: str) -> None:
    worker = FakeWorker()
    (answer,) = trio.run(ask, worker, f'{{"op": "set", "{field}": {number}}}'.encode())
    assert answer["error"]["type"] == "UsageError"
    assert worker.events == []
    assert (worker.stack.io_timeout_s, worker.stack.limits) == (7.0, {"iops": None, "mbps": None})


@pytest.mark.parametrize(
    "line",
    [
        b'{"op": "grow", "size": %s}' % (b"9" * 400),
        b'{"op": "set", "io_timeout_s": %s}' % (b"9" * 400),
        b'{"op": "set", "mbps": %s}' % (b"9" * 5000),
        b"[" * 60_000,
        b'{"op": "set", "io_timeout_s": %s}' % (b"[" * 60_000),
        b'{"op": "upgrade", "id": "1", "worker": ["/bin/true"], "path": 5}',
        b'{"op": "upgrade", "id": "1", "worker": [], "path": "/"}',
        b'{"op": "reload", "file": 5}',
    ],
)
def test_what_ended_a_worker_or_its_holder_once_is_a_question_that_cannot_be_read(line: bytes) -> None:
    worker = FakeWorker()
    refused, answered = trio.run(ask, worker, line, b'{"op": "status"}')
    assert refused["error"]["type"] == "UsageError" and "cannot be read" in refused["error"]["message"]
    assert answered["ok"] and worker.events == []


def test_what_may_be_set_is_what_may_be_asked_for() -> None:
    fields = shapes.fields_of(control.SetQuestion).keys() - {"op"}
    assert fields == {option.field for option in LIVE_OPTIONS.values()}
    of_this_worker_alone = {"trace_s"}
    assert fields - of_this_worker_alone < shapes.fields_of(messages.StateChanged).keys()


def test_a_refused_question_is_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    trio.run(ask, FakeWorker(), b'{"op": "dance\\u001b"}', b'{"op": "stop", "more": 1}', b"?", b"[]")
    assert caplog.messages == [
        r"a question is refused: the worker does not know 'dance\x1b'",
        "a question is refused: stop: 'more' is not known",
        "a question is refused: it is not JSON: Expecting value: line 1 column 1 (char 0)",
        "a question is refused: it has no op",
    ]


def test_a_question_that_is_too_long_ends_its_connection_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def long() -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ControlServer(listener, Questions(cast(Asked, FakeWorker())).answers).run)
            client = trio.socket.socket(socket.AF_UNIX)
            await client.connect(listener.getsockname())
            async with trio.SocketStream(client) as stream:
                await stream.send_all(b'{"op": "status"}\n')
                assert json.loads(await stream.receive_some(1 << 20))["ok"]
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(b"x" * (1 << 20))
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await stream.receive_some(1) == b""
            nursery.cancel_scope.cancel()

    trio.run(long)
    assert caplog.messages == ["a question is refused: it is too long"]


def test_a_question_that_fails_in_the_worker_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    worker = FakeWorker()
    worker.stack.status = lambda: 1 // 0
    first, second = trio.run(ask, worker, b'{"op": "status"}', b'{"op": "stop"}')
    assert "ZeroDivisionError" in first["error"]["message"]
    assert second == {"ok": True}
    assert caplog.messages == ["a question could not be answered"]


@pytest.mark.parametrize(
    ("op", "answer", "expected"),
    [
        ("blank", b'{"ok": true, "blank": true}', None),
        ("blank", b'{"ok": true, "blank": true, "of tomorrow": 1}', None),
        ("dance", b'{"ok": true, "steps": 3}', None),
        ("blank", b'{"ok": true, "blank": 1}', "the answer.blank is 1, not true or false"),
        ("blank", b'{"ok": true}', "the answer.blank is missing"),
        ("status", b'{"ok": true, "status": {"a": NaN}}', "NaN is no number"),
        ("status", b'{"ok": false}', "the answer.error is missing"),
        ("status", b"[]", "the answer is a list, not an object"),
        ("status", b"{}", "the answer.ok is missing"),
    ],
)
def test_a_command_takes_answers_of_other_versions_and_none_that_are_wrong(
    op: str, answer: bytes, expected: str | None
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Control.__new__(Control)
        connection._name, connection._socket, connection._asked = "data", ours, []
        with ours.makefile("rb") as connection._answers:
            theirs.sendall(answer + b"\n")
            if expected is None:
                assert connection.ask(op)["ok"]
            else:
                with pytest.raises(DyskError, match="as this version expects it") as caught:
                    connection.ask(op)
                assert expected in str(caught.value)


@given(chance=ANY)
@EXAMPLES
def test_a_command_fails_in_order_whatever_it_is_answered(chance: Random) -> None:
    value = {
        "ok": chance.choice([True, False, 1, None]),
        chance.choice(TEXTS): odd_value(chance),
        "error": odd_value(chance),
    }
    line = bytes_of(value, chance).replace(b"\n", b" ")
    connection = Control.__new__(Control)
    connection._name = "data"
    try:
        connection._judge(line, chance.choice([*control.QUESTIONS]))
    except DyskError as error:
        assert str(error).isprintable()
