"""What comes to a door and does not fit the table gets no further, whatever it is, and costs nobody anything."""

from __future__ import annotations

import json
import os
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobfuse_dysk.device.ipc import control, door, message, messages, shapes
from tests.unit.shaped import Typed

EXAMPLES = settings(max_examples=120, deadline=None)
TYPED = Typed()
DOORS: dict[tuple[str, str], door.Door[Any]] = {
    (messages.ATTACHER, messages.TEMPLATE): door.ATTACHER_TO_TEMPLATE,
    (messages.TEMPLATE, messages.ATTACHER): door.TEMPLATE_TO_ATTACHER,
    (messages.ATTACHER, messages.HOLDER): door.ATTACHER_TO_HOLDER,
    (messages.HOLDER, messages.ATTACHER): door.HOLDER_TO_ATTACHER,
    (messages.HOLDER, messages.WORKER): door.HOLDER_TO_WORKER,
    (messages.WORKER, messages.HOLDER): door.WORKER_TO_HOLDER,
}
EVERY_DOOR = pytest.mark.parametrize("way", DOORS, ids=" to ".join)
EVERY_ROW = pytest.mark.parametrize(
    "row", messages.TABLE, ids=lambda row: f"{row.sender} to {row.receiver}: {row.record.__name__}"
)


class Channel:
    """Both ends of one, and what the receiver logged."""

    def __init__(self) -> None:
        self.ours, self.theirs = message.channel()
        self.theirs.setblocking(False)
        self.lines: list[str] = []

    def take(self, entrance: door.Door[Any]) -> door.Received[Any]:
        return door.receive(self.theirs, entrance, self.lines.append)


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel()
    yield channel
    channel.ours.close()
    channel.theirs.close()


def open_fds() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def typed(row: messages.Message) -> Any:
    return TYPED.record(row.record.__name__)


@given(chance=st.randoms(use_true_random=True))
@EXAMPLES
def test_what_is_in_the_table_gets_in_with_its_descriptors(chance: Random) -> None:
    row = chance.choice(messages.TABLE)
    value = TYPED.value(typed(row), chance)
    fds = [os.memfd_create("test") for _ in range(row.fds)]
    received = DOORS[row.sender, row.receiver].admit(json.dumps(value).encode(), fds, pytest.fail)
    assert (received.message, received.fds, received.gone) == (value, fds, False)
    for fd in fds:
        os.close(fd)


@given(chance=st.randoms(use_true_random=True))
@EXAMPLES
def test_what_was_changed_on_the_way_gets_in_only_if_it_fits(chance: Random) -> None:
    row = chance.choice(messages.TABLE)
    value = TYPED.mutated(TYPED.value(typed(row), chance), chance)
    others = [each for each in messages.TABLE if (each.sender, each.receiver) == (row.sender, row.receiver)]
    fits = any(TYPED.fits(value, typed(each)) and each.fds == row.fds for each in others)
    lines: list[str] = []
    before = open_fds()
    fds = [os.memfd_create("test") for _ in range(row.fds)]
    received = DOORS[row.sender, row.receiver].admit(json.dumps(value).encode(), fds, lines.append)
    assert (received.message is not None) == fits
    assert len(lines) == (not fits)
    assert all(line.startswith(f"a message of {row.sender} is refused: ") for line in lines)
    assert all(line.isprintable() and line.isascii() and len(line) <= 300 for line in lines)
    for fd in received.fds:
        os.close(fd)
    assert open_fds() == before


@given(
    way=st.sampled_from([*DOORS]),
    data=st.binary(min_size=1, max_size=60) | st.text(min_size=1, max_size=60).map(str.encode),
    count=st.integers(0, 8),
)
@EXAMPLES
def test_bytes_that_mean_nothing_are_refused(way: tuple[str, str], data: bytes, count: int) -> None:
    before = open_fds()
    channel = Channel()
    with channel.ours, channel.theirs, Path("/dev/null").open() as file:
        rights = socket.SCM_RIGHTS, b"".join(file.fileno().to_bytes(4, "little") for _ in range(count))
        channel.ours.sendmsg([data], [(socket.SOL_SOCKET, *rights)] if count else [])
        received = channel.take(DOORS[way])
    assert (received.message, received.fds, received.gone) == (None, [], False)
    assert len(channel.lines) == 1
    assert channel.lines[0].isprintable()
    assert open_fds() == before


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{", "it is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        (b"\xff", "it is not JSON: "),
        (b"[" * 100_000, "it is too deep"),
        (b'{"event":"released","n":' + b"9" * 5000 + b"}", "it is not JSON: Exceeds the limit"),
        (b"[]", "it is no object"),
        (b"{}", "it has no name"),
        (b'{"event":3}', "it has no name"),
        (b'{"event":"rel\\neased"}', r"there is no such event as 'rel\neased'"),
        (b'{"op":"released"}', "there is no such order as 'released'"),
        (b'{"event":"released","op":"released"}', "it has two names"),
        (b'{"event":"commit","device":"/dev/loop0"}', "there is no such event as 'commit'"),
        (b'{"event":"released","more":1}', "released: 'more' is not known"),
        (b'{"event":"ended"}', "ended: aborted is missing"),
        (b'{"event":"ended","aborted":0}', "ended: aborted is 0, not true or false"),
        (b'{"event":"state","io_timeout_s":NaN}', "it is not JSON: NaN is no number"),
        (b'{"event":"state","io_timeout_s":1e999}', "state: io_timeout_s is inf, not a number, 0 or more or null"),
        (b'{"event":"state","io_timeout_s":-Infinity}', "it is not JSON: -Infinity is no number"),
        (b'{"event":"state","state":"dead"}', "state: state is 'dead', not 'starting' or"),
        (
            b'{"event":"upgrade","id":"1","worker":[],"path":""}',
            "upgrade: worker is a list, not a list, with a program",
        ),
        (b'{"event":"config"}', "config: 0 descriptors come with it, not 1"),
        (b'{"event":"state","detail":"\\ud800"}', r"state: detail is '\ud800', not a text"),
    ],
)
def test_the_line_in_the_log_says_from_whom_and_what_was_wrong(channel: Channel, data: bytes, expected: str) -> None:
    channel.ours.send(data)
    received = channel.take(door.WORKER_TO_HOLDER)
    assert (received.message, received.gone) == (None, False)
    assert channel.lines[0].startswith(f"a message of the worker is refused: {expected}")


@pytest.mark.parametrize("count", [0, 2, 8, 9, 100])
def test_with_another_number_of_descriptors_none_is_kept(channel: Channel, count: int) -> None:
    """Nine are more than there is room for, so that the kernel has closed some already."""
    before = open_fds()
    fds = [os.memfd_create("test") for _ in range(count)]
    assert message.send(channel.ours, {"event": "config"}, fds)
    for fd in fds:
        os.close(fd)
    received = channel.take(door.WORKER_TO_HOLDER)
    assert (received.message, received.fds) == (None, [])
    assert "descriptors come with it" in channel.lines[0]
    assert open_fds() == before


def test_descriptors_that_come_are_closed_when_another_program_is_started(channel: Channel) -> None:
    fd = os.memfd_create("test")
    message.send(channel.ours, {"event": "config"}, [fd])
    received = channel.take(door.WORKER_TO_HOLDER)
    assert received.message == {"event": "config"}
    assert os.path.sameopenfile(received.fds[0], fd)
    assert not os.get_inheritable(received.fds[0])
    os.close(received.fds[0])
    os.close(fd)


def test_a_message_that_is_too_long_is_refused_and_the_next_gets_in(channel: Channel) -> None:
    channel.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * message.MOST_BYTES)
    long = json.dumps({"event": "state", "lost": "x" * message.MOST_BYTES}).encode()
    channel.ours.send(long)
    message.send(channel.ours, {"event": "released"})
    assert channel.take(door.WORKER_TO_HOLDER).message is None
    assert "too long" in channel.lines[0]
    assert channel.take(door.WORKER_TO_HOLDER).message == {"event": "released"}


def test_the_end_of_the_other_side_is_no_message(channel: Channel) -> None:
    channel.ours.close()
    assert channel.take(door.WORKER_TO_HOLDER).gone
    assert not channel.lines


def test_a_time_limit_of_the_channel_is_the_caller_s(channel: Channel) -> None:
    with pytest.raises(BlockingIOError):
        channel.take(door.WORKER_TO_HOLDER)


@EVERY_DOOR
def test_the_types_behind_a_door_are_those_of_the_table(way: tuple[str, str]) -> None:
    """What mypy takes a received message for is a union, which has to name each row."""
    union = {
        (messages.ATTACHER, messages.TEMPLATE): messages.Fork,
        (messages.TEMPLATE, messages.ATTACHER): messages.Forked,
        (messages.ATTACHER, messages.HOLDER): messages.AttacherOrder,
        (messages.HOLDER, messages.ATTACHER): messages.HolderEvent,
        (messages.HOLDER, messages.WORKER): messages.HolderOrder,
        (messages.WORKER, messages.HOLDER): messages.WorkerEvent,
    }[way]
    records = [row.record for row in messages.TABLE if (row.sender, row.receiver) == way]
    assert [*getattr(union, "__args__", (union,))] == records


@EVERY_ROW
def test_a_row_has_a_name_an_answer_that_the_receiver_sends_and_a_protocol(row: messages.Message) -> None:
    fields = shapes.fields_of(row.record)
    assert len(fields.keys() & {"op", "event"}) == 1
    assert ("op" in fields) == (row.receiver == messages.WORKER or row.sender == messages.ATTACHER)
    answers = [each.record for each in messages.TABLE if (each.sender, each.receiver) == (row.receiver, row.sender)]
    assert row.answer is None or row.answer in answers
    assert 1 <= row.since <= message.PROTOCOL
    assert 0 <= row.fds <= 8


def test_every_message_has_a_row() -> None:
    named = {record.__name__ for record, fields in TYPED.hints.items() if fields.keys() & {"op", "event"}}
    records = [row.record for row in messages.TABLE] + [row.record for row in control.QUESTIONS.values()]
    assert {record.__name__ for record in records} == named


@pytest.mark.parametrize("op", control.QUESTIONS)
def test_a_question_has_the_name_of_its_row(op: str) -> None:
    assert op in shapes.values_of(shapes.fields_of(control.QUESTIONS[op].record)["op"])
    assert f'{{"op": "{op}"' in str(control.__doc__), "the table for people has it, too"


def told(shape: Any) -> Any:
    """A shape with all that is in it, as JSON."""
    if isinstance(shape, shapes._Record):
        return [sorted(shape.required), {name: told(each) for name, each in sorted(shape.fields.items())}]
    if isinstance(shape, shapes._Values):
        return shape.what
    inside = [getattr(shape, name) for name in ("shape", "keys", "values") if hasattr(shape, name)]
    return [shape.what, *map(told, inside), *map(told, getattr(shape, "shapes", ()))]


def test_the_table_of_a_protocol_stays_as_it_is() -> None:
    """Holders and workers of different versions have nothing but the number to tell them what the other one takes."""
    rows = [
        (row.sender, row.receiver, row.record.__name__, row.fds, row.more, told(shapes._record(row.record)))
        for row in messages.TABLE
        if messages.ATTACHER not in (row.sender, row.receiver)
    ]
    table = zlib.crc32(json.dumps(sorted(rows)).encode())
    assert {message.PROTOCOL: table} == {3: 1544296907}, (
        "see device/ipc/message.py; until 0.1.0 is out, 3 may still change"
    )
