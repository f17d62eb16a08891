"""What a command waits for, told to whoever sits in front of it when it takes longer than he expects.

    with telling(lambda: f"waiting for the service to take {left()} bytes"):
        something_that_may_take_long()

The library prints nothing: a front end says by `tell_by` how it is told, if at all (a terminal). What is waited for is
asked for in a thread of its own, at the moment it is told; it may take its time, but must not raise.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

__all__ = ["FIRST_S", "tell_by", "tell_on_terminal", "telling"]

FIRST_S = 3.0
AGAIN_S = 10.0
_tellers: list[Callable[[str], None]] = []  # one at most


def tell_by(teller: Callable[[str], None] | None) -> None:
    """From now on call this with each line; None: with nothing."""
    _tellers[:] = [] if teller is None else [teller]


def tell_on_terminal(program: str) -> None:
    """From now on write lines to standard error, if that is a terminal."""
    stream = sys.stderr
    if stream is None or not stream.isatty():
        tell_by(None)
    else:
        tell_by(lambda text: print(f"{program}: {text}", file=stream, flush=True))


@contextlib.contextmanager
def telling(what: Callable[[], str], *, log: Callable[[str], object] | None = None) -> Iterator[None]:
    """Tell what is waited for, after FIRST_S and every AGAIN_S from then on. log: called once, with the first line."""
    tellers = list(_tellers)
    if not tellers and log is None:
        yield
        return
    over = threading.Event()

    def tell() -> None:
        first, pause_s = True, FIRST_S
        while not over.wait(pause_s):
            text = what()
            if first and log is not None:
                log(text)
            if over.is_set():
                return  # it took its time to ask, and what it says is not true any more
            for teller in tellers:
                teller(text)
            first, pause_s = False, AGAIN_S
            if not tellers:
                return

    thread = threading.Thread(target=tell, name="patience", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
