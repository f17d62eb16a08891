"""A worker before it serves: whose word it takes, and which words it refuses."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.device.ipc import door, message, messages
from blobfuse_dysk.device.ipc.log import Log
from blobfuse_dysk.device.worker.startup import LogHandler, await_go, take_briefing
from tests.unit.shaped import Typed
from tests.unit.states import a_state

EXAMPLES = settings(max_examples=60, deadline=None)
TYPED = Typed()
BRIEFING: dict[str, Any] = {
    "op": "start",
    "protocol": message.PROTOCOL,
    "name": "data",
    "log": "/var/log",
    "init": "aW5pdA==",
    "resume": None,
    "resend": False,
}


class Holder:
    """Its end of the channel to a worker."""

    def __init__(self) -> None:
        self.channel, self.worker = message.channel()
        self.channel.setblocking(False)

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *args: object) -> None:
        self.channel.close()
        self.worker.close()

    def send(self, order: object, fds: int = 0) -> None:
        null = os.open(os.devnull, os.O_RDONLY)
        message.send(self.channel, order if isinstance(order, dict) else {}, [null] * fds)
        os.close(null)

    def send_bytes(self, data: bytes) -> None:
        self.channel.send(data)

    def hears(self) -> Any:
        return door.receive(self.channel, door.WORKER_TO_HOLDER, pytest.fail).message


@pytest.fixture
def holder() -> Iterator[Holder]:
    with Holder() as holder:
        yield holder


@pytest.mark.parametrize(
    ("change", "fds", "expected"),
    [
        ({"protocol": 99}, 4, f"holder that speaks protocol 99, it knows 2, {message.PROTOCOL}"),
        ({"protocol": 99, "more": "of tomorrow", "resume": 3}, 7, "holder that speaks protocol 99"),
        ({"resume": {"size": 1}}, 4, "start: resume.disk is missing"),
        ({"more": 1}, 4, "start: 'more' is not known"),
        ({"protocol": 2.0}, 4, "start: protocol is 2.0, not a whole number"),
        ({}, 3, "start: 3 descriptors come with it, not 4"),
        ({}, 6, "start: 6 descriptors come with it, not 4"),
        ({"op": "begin"}, 4, "there is no such order as 'begin'"),
    ],
)
def test_a_briefing_that_this_version_cannot_take_is_answered_and_leaves_nothing(
    holder: Holder, capfd: pytest.CaptureFixture[str], change: dict[str, Any], fds: int, expected: str
) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    holder.send({**BRIEFING, **change}, fds)
    assert take_briefing(holder.worker) is None
    said = holder.hears()
    assert said["event"] == "error"
    assert expected in said["error"]["message"]
    assert expected in capfd.readouterr().err, "there is no log yet; the holder reads this"
    assert sorted(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize(("protocol", "fds"), [(2, 4), (message.PROTOCOL, 4), (message.PROTOCOL, 5)])
def test_a_holder_may_have_no_memory_for_requests(holder: Holder, protocol: int, fds: int) -> None:
    """An older one, and one whose kernel sends them again."""
    holder.send({**BRIEFING, "protocol": protocol}, fds)
    briefing = take_briefing(holder.worker)
    assert briefing
    assert (briefing.taken_fd is not None) == (fds == 5)
    for fd in (briefing.config_fd, briefing.fuse_fd, briefing.control_fd, briefing.ring_fd, briefing.taken_fd):
        if fd is not None:
            os.close(fd)


@pytest.mark.parametrize("order", [{"op": "end"}, {"op": "go", "resume": a_state(), "resend": False}])
def test_a_holder_begins_with_a_briefing(holder: Holder, order: dict[str, Any]) -> None:
    holder.send(order)
    assert take_briefing(holder.worker) is None
    assert "does not begin with a briefing" in holder.hears()["error"]["message"]


@given(chance=st.randoms(use_true_random=True))
@EXAMPLES
def test_only_a_briefing_that_fits_begins_a_worker(chance: Random) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    value = TYPED.value(TYPED.record("Briefing"), chance)
    value["protocol"] = message.PROTOCOL
    value = TYPED.mutated(value, chance)
    with Holder() as holder:
        holder.send_bytes(json.dumps(value).encode())
        assert take_briefing(holder.worker) is None, "no descriptor came with it"
        assert holder.hears()["event"] == "error"
    assert sorted(Path("/proc/self/fd").iterdir()) == before


@given(chance=st.randoms(use_true_random=True))
@EXAMPLES
def test_what_comes_while_it_stands_by_and_is_no_word_to_go_on_changes_nothing(chance: Random) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    records = [row.record.__name__ for row in messages.TABLE if row.receiver == messages.WORKER]
    value = TYPED.mutated(TYPED.value(TYPED.record(chance.choice(records)), chance), chance)
    goes = TYPED.fits(value, TYPED.record("Go"))
    with Holder() as holder:
        holder.send_bytes(json.dumps(value).encode())
        holder.send({"op": "go", "resume": a_state(size=4711), "resend": True})
        expected = (value["resume"], value["resend"]) if goes else (a_state(size=4711), True)
        assert await_go(holder.worker) == expected
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_refusals_while_it_stands_by_are_logged(holder: Holder, caplog: pytest.LogCaptureFixture) -> None:
    holder.send({"op": "go", "resume": None, "resend": False})
    holder.send({"op": "go", "resume": a_state(), "resend": False})
    assert await_go(holder.worker) == (a_state(), False)
    assert caplog.messages == ["a message of the holder is refused: go: resume is null, not an object"]


@pytest.mark.parametrize(
    ("error", "last"),
    [
        ("ValueError('no\\nsuch  thing')", "ValueError: no such thing"),
        ("ExceptionGroup('two', [ExceptionGroup('one', [KeyError('a')])])", "KeyError: 'a'"),
        (
            "ExceptionGroup('two', [OSError(5, 'gone'), KeyError('a'), KeyError('a')])",
            "OSError: [Errno 5] gone; KeyError: 'a'",
        ),
    ],
)
def test_the_last_line_of_a_worker_that_fails_says_why(error: str, last: str) -> None:
    """The holder hands it on; a group's traceback ends with a frame of dashes."""
    program = (
        f"import sys; from blobfuse_dysk.device.worker.startup import say_why; sys.excepthook = say_why; raise {error}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert lines[-1] == last
    assert "Traceback (most recent call last):" in done.stderr
    assert done.returncode == 1


def test_what_a_worker_logs_reads_as_what_its_holder_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line said INFO:__main__: behind its time and process; in the file a warning is not told apart by a priority."""
    monkeypatch.setattr(Log, "_to_syslog", lambda self, line, priority: False)
    handler = LogHandler("dysk-worker", "data", str(tmp_path))
    for level, text in ((logging.INFO, "attached"), (logging.WARNING, "slow"), (logging.ERROR, "lost")):
        handler.handle(logging.LogRecord("blobfuse_dysk.x", level, __file__, 1, "is %s", (text,), None))
    lines = (tmp_path / "data.log").read_text().splitlines()
    said = [line.partition("]: data: ")[2] for line in lines]
    assert said == ["is attached", "warning: is slow", "error: is lost"]
