"""How far a copy is, for who sits in front of it: a bar on a terminal, a line now and then in a pipe or a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from blobfuse_dysk.disk import format_size
from blobfuse_dysk.patience import AGAIN_S, FIRST_S

__all__ = ["ProgressShown"]

_SHOWN_AFTER_S = 0.5  # what takes less needs no bar
_DRAWN_EACH_S = 0.2
_RATE_OVER_S = 10.0  # the rate is that of about so many seconds
_BAR = 16  # characters


class ProgressShown:
    """`with ProgressShown("cloning data") as shown:` ... `shown(done, total)`: bytes. Writes to standard error.

    total: None where it is not known. Any number of calls; few are drawn. clock: seconds.
    """

    def __init__(self, what: str, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._terminal = self._stream is not None and self._stream.isatty()
        self._next = clock() + (_SHOWN_AFTER_S if self._terminal else FIRST_S)
        self._marks: list[tuple[float, int]] = []  # (when, bytes) of the last while
        self._drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn and self._terminal:
            print(f"\r{' ' * (self._width - 1)}\r", end="", file=self._stream, flush=True)

    def __call__(self, done: int, total: int | None) -> None:
        now = self._clock()
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[1][0] < now - _RATE_OVER_S:
            del self._marks[0]
        if now < self._next or self._stream is None:
            return
        self._next = now + (_DRAWN_EACH_S if self._terminal else AGAIN_S)
        self._drawn = True
        text = self._text(done, total)
        if self._terminal:
            print(f"\r{text[: self._width - 1]:<{self._width - 1}}", end="", file=self._stream, flush=True)
        else:
            print(f"dyskctl: {text}", file=self._stream, flush=True)

    def _text(self, done: int, total: int | None) -> str:
        (since, before), (now, _) = self._marks[0], self._marks[-1]
        rate = (done - before) / (now - since) if now > since else 0.0
        pieces = [self._what]
        if total:
            if self._terminal:
                full = _BAR * done // total
                pieces.append(f"[{'#' * full}{'.' * (_BAR - full)}]")
            pieces.append(f"{100 * done // total} %, {format_size(done)} of {format_size(total)}")
        else:
            pieces.append(format_size(done))
        text = " ".join(pieces) + f", {format_size(int(rate))}/s"
        if total and rate > 0 and done < total:
            text += f", {_time_text((total - done) / rate)} left"
        return text

    @property
    def _width(self) -> int:
        return shutil.get_terminal_size().columns


def _time_text(seconds: float) -> str:
    whole = int(seconds) + 1
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
