"""What is waited for is told after a while, and again, for as long as it lasts."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Iterator

import pytest

from blobfuse_dysk import patience
from blobfuse_dysk.patience import telling


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(patience, "FIRST_S", 0.01)
    monkeypatch.setattr(patience, "AGAIN_S", 0.01)
    yield
    patience.tell_by(None)


class Heard:
    """Lines, of which some number is waited for."""

    def __init__(self, count: int) -> None:
        self.lines: list[str] = []
        self._count, self._enough = count, threading.Event()

    def __call__(self, text: str) -> None:
        self.lines.append(text)
        if len(self.lines) >= self._count:
            self._enough.set()

    def wait(self) -> None:
        assert self._enough.wait(10)


def test_it_is_told_again_with_what_is_true_then_and_logged_once() -> None:
    heard, logged, left = Heard(3), Heard(1), iter(range(99, 0, -1))
    patience.tell_by(heard)
    with telling(lambda: f"{next(left)} bytes left", log=logged):
        heard.wait()
    assert heard.lines[:3] == ["99 bytes left", "98 bytes left", "97 bytes left"]
    assert logged.lines == ["99 bytes left"]


def test_what_is_done_soon_is_not_told_and_nothing_is_told_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(1)
    patience.tell_by(heard)
    monkeypatch.setattr(patience, "FIRST_S", 1000.0)
    with telling(lambda: "a wait"):
        pass
    assert heard.lines == []


def test_without_anybody_to_tell_nothing_is_asked() -> None:
    before = threading.active_count()
    with telling(lambda: "a wait"):
        assert threading.active_count() == before


def test_the_log_is_told_though_there_is_no_terminal() -> None:
    logged = Heard(1)
    with telling(lambda: "a wait", log=logged):
        logged.wait()
    assert logged.lines == ["a wait"]


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_is_told(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    patience.tell_on_terminal("dyskctl")
    logged = Heard(1)
    with telling(lambda: "waiting", log=logged):
        logged.wait()
        if terminal:
            while not stream.getvalue():
                threading.Event().wait(0.001)
    assert stream.getvalue().startswith("dyskctl: waiting\n") is terminal
