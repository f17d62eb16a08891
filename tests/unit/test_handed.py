"""What a command that is run in a fork of the template takes of its caller, and what it refuses to be."""

from __future__ import annotations

import fcntl
import locale
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from blobfuse_dysk import environment
from blobfuse_dysk.cli import handed


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith(("PYTHON", "LD_", "LC_", "DYSK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LANG", "C.UTF-8")


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("PYTHONPATH", "/evil", False),
        ("PYTHONUTF8", "0", False),
        ("LD_PRELOAD", "", False),
        ("MALLOC_ARENA_MAX", "1", False),
        ("OPENSSL_CONF", "/dev/null", False),
        ("DYSK_NATIVE", "no", False),
        ("LC_ALL", "C", True),
        ("LC_ALL", "no_such", True),
        ("LC_CTYPE", "C.UTF-8", True),
        ("PYTHONUNBUFFERED", "1", True),
        ("LDFLAGS", "-s", True),
        ("TZ", "Asia/Tokyo", True),
    ],
)
def test_an_interpreter_is_as_its_environment_made_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, fits: bool
) -> None:
    native = environment.uses_native()
    monkeypatch.setenv(name, value)
    assert handed._is_as_started(native) == fits


def test_a_locale_that_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locale, "setlocale", lambda *_: "de_DE")
    monkeypatch.setattr(locale, "nl_langinfo", lambda _: "ISO-8859-1")
    assert not handed._is_as_started(True)


def test_the_environment_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environb)
    monkeypatch.setenv("DYSK_GONE", "1")
    try:
        environment.replace([b"A=1=2", b"odd", b"=x", b"B=", b"C=\xff"])
        found = dict(os.environb)
    finally:
        os.environb.clear()
        os.environb.update(before)
    assert found == {b"A": b"1=2", b"B": b"", b"C": b"\xff"}


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_strings_come_as_one_packet(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    theirs.send(b"attach\0\0x y\0")
    assert handed._strings(ours) == [b"attach", b"", b"x y"]
    for odd in (b"attach", b"x" * (96 << 10) + b"\0"):
        theirs.send(odd)
        with pytest.raises(ConnectionError):
            handed._strings(ours)
    theirs.close()
    with pytest.raises(ConnectionError):
        handed._strings(ours)


@pytest.mark.parametrize("answer", [b"no", b""])
def test_nothing_begins_without_the_caller_s_word(ends: tuple[socket.socket, socket.socket], answer: bytes) -> None:
    ours, theirs = ends
    if answer:
        theirs.send(answer)
    else:
        theirs.shutdown(socket.SHUT_WR)
    assert not handed._may_begin(ours)
    assert theirs.recv(20) == b"ready"


def test_a_caller_who_went_when_he_had_said_so(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the kernel tells comes too late for that, so it is looked at once more. In a process of its own."""
    ours, theirs = ends
    theirs.send(b"go")
    pid = os.fork()
    if pid == 0:
        try:
            original = fcntl.fcntl

            def close_first(fd: Any, command: int, *value: int) -> Any:
                if command == fcntl.F_SETOWN:
                    theirs.close()
                return original(fd, command, *value)

            monkeypatch.setattr(fcntl, "fcntl", close_first)
            os._exit(int(handed._may_begin(ours)))
        finally:
            os._exit(3)
    theirs.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
