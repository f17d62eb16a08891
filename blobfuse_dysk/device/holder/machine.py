"""What both machines of a holder are made of: events in, actions out, one phase, a table. Standard library only.

An event is a tuple: its name, and the facts that are needed to judge it. So is an action: its name, and what it needs;
actions.py does them, in the order in which a machine gives them:

    log text priority        say it                             save fields      put it into state.json
    note fields              with the next save                 announce         the file can be opened: the attacher
    answer message           to the attacher                    close_attacher   it is of no interest any more
    let_go                   have the device let go of the file disconnect       close our end of the FUSE connection
    unlink                   take the links to the device away
    brief resume resend      tell the worker to serve           tell message     to the worker
    go resend                tell it, which stood by, to serve  reason text      what it said of its own end
    kill                     it                                 end_worker       kill and reap it
    promote                  who stood by is the worker now     end_standby      kill and reap who stands by
    name_worker              state.json names it                keep_worker      systemd keeps the way to it
    keep_program             how to start the next              keep_all         systemd keeps all the rest
    forget                   systemd keeps none of that

The last of a list may be one that is answered by an event, at once:

    start command            started, not_started               start_standby command    standby, no_standby
    commit device            written, not_written
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from typing import Any, ClassVar

    Action = tuple[Any, ...]
    Event = tuple[Any, ...]

__all__ = ["Machine", "Worker", "read_table"]


class Worker:
    """What a machine knows of a worker's process. pid names it while it is not reaped.

    started: when, by time.monotonic(). served: it has taken requests of the kernel, or may have. drained: and answered
    them all before it was killed. first: it opens the disk for the first time, and was not ready yet.
    """

    __slots__ = ("drained", "first", "pid", "served", "started")

    def __init__(self, pid: int, started: float, *, served: bool = False, first: bool = False) -> None:
        self.pid = pid
        self.started = started
        self.served = served
        self.first = first
        self.drained = False


class Machine:
    """TABLE: what comes of each event in each phase: the name of a method, without its underscore; `.` for nothing; `-`
    if it cannot be, whatever others do, and so is an error of ours.
    """

    TABLE: ClassVar[dict[str, dict[str, str]]]

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def step(self, event: Event, now: float) -> list[Action]:
        """Something happened; return what is to be done. now: time.monotonic()."""
        name, *facts = event
        outcome = self.TABLE[name].get(self.phase, "-")
        assert outcome != "-", f"{name} while {self.phase}"
        actions: list[Action] = getattr(self, f"_{outcome}")(now, *facts) if outcome != "." else []
        return actions


def read_table(text: str) -> dict[str, dict[str, str]]:
    """{event: {phase: what comes of it}}. After the phases, a line says what it is that happened."""
    head, *rows = (line.split() for line in text.strip().splitlines())
    phases = head[1 : head.index("(event,")]
    return {row[0]: dict(zip(phases, row[1:], strict=False)) for row in rows}
