"""cli/progress.py: what is shown of a copy, where, and how often."""

from __future__ import annotations

import io

from blobfuse_dysk.cli.progress import ProgressShown

GIB, MIB = 1 << 30, 1 << 20


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def shown(terminal: bool, *calls: tuple[float, int, int | None]) -> str:
    """What was written when these came: (seconds, done, total)."""
    now = 0.0
    stream = Stream(terminal)
    with ProgressShown("cloning data", stream=stream, clock=lambda: now) as progress:
        for now, done, total in calls:  # noqa: B007, the clock reads it
            progress(done, total)
    return stream.getvalue()


def test_a_bar_with_rate_and_what_is_left_on_a_terminal() -> None:
    last = shown(True, (0, 0, GIB), (1, 256 * MIB, GIB), (2, 512 * MIB, GIB)).split("\r")[-3]
    assert last.strip() == "cloning data [########........] 50 %, 512MiB of 1GiB, 256MiB/s, 3 s left"


def test_the_bar_is_gone_at_the_end() -> None:
    text = shown(True, (0, 0, GIB), (1, 256 * MIB, GIB))
    assert "\n" not in text
    assert text.endswith("\r") and not text.split("\r")[-2].strip()


def test_nothing_is_shown_of_what_takes_a_moment() -> None:
    assert shown(True, (0, 0, GIB), (0.4, GIB, GIB)) == ""
    assert shown(False, (0, 0, GIB), (2.9, GIB, GIB)) == ""


def test_a_pipe_gets_a_line_now_and_then() -> None:
    lines = shown(False, *((second, second * MIB, GIB) for second in range(30))).splitlines()
    assert lines == [
        "dyskctl: cloning data 0 %, 3MiB of 1GiB, 1MiB/s, 17 min 2 s left",
        "dyskctl: cloning data 1 %, 13MiB of 1GiB, 1MiB/s, 16 min 52 s left",
        "dyskctl: cloning data 2 %, 23MiB of 1GiB, 1MiB/s, 16 min 42 s left",
    ]


def test_without_a_total_what_was_done_is_shown() -> None:
    assert shown(False, (0, 0, None), (4, 8 * MIB, None)) == "dyskctl: cloning data 8MiB, 2MiB/s\n"


def test_what_was_done_before_does_not_count_for_the_rate() -> None:
    assert "1MiB/s" in shown(False, (0, 512 * MIB, GIB), (4, 516 * MIB, GIB))
