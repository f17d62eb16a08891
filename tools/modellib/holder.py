"""P8: at most one worker serves, whenever the holder dies. The holder, its workers, and systemd, which keeps channels.

A worker serves from when it is told to until its death. One whose channel has ended flushes, gives the lease up and
ends by itself, which takes it a while. A holder that follows a dead one takes up the worker that state.json names, if
systemd kept the channel to it; else it starts another, at once.

A state: (step of the holder, or DEAD; the workers; whom state.json names; whose channels systemd keeps; the holder's
own; kills left). A worker: (alive, serves, its channel is open).
"""

from __future__ import annotations

from typing import Any

__all__ = ["Holder"]

IDLE, STANDBY, KILLED, SENT, NAMED, STARTED, BEREFT = range(7)
DEAD = 9
MOST_WORKERS = 4
ALIVE, SERVES, OPEN = range(3)


class Holder:
    """The system that search() goes through. wrong: "go-before-kept", as it says; else kept and named, then told."""

    def __init__(self, wrong: frozenset[str] = frozenset(), kills: int = 1) -> None:
        self.early = "go-before-kept" in wrong
        self.kills = kills

    def first(self) -> Any:
        return IDLE, ((1, 1, 1),), 0, frozenset((0,)), 0, self.kills

    def moves(self, state: Any) -> list[tuple[tuple[object, ...], Any, str]]:
        """All that can happen now."""
        return [(step, after, self._broken(after)) for step, after in self._steps(state)]

    @staticmethod
    def _broken(state: Any) -> str:
        serving = sum(1 for alive, serves, _ in state[1] if alive and serves)
        return "P8 two workers serve one disk" if serving > 1 else ""

    def _steps(self, state: Any) -> list[tuple[tuple[object, ...], Any]]:
        step, workers, named, kept, own, kills = state
        out: list[tuple[tuple[object, ...], Any]] = []

        def with_worker(index: int, **change: int) -> Any:
            worker = list(workers[index])
            for name, value in change.items():
                worker[("alive", "serves", "open").index(name)] = value
            return (*workers[:index], tuple(worker), *workers[index + 1 :])

        new = len(workers) - 1
        if step == IDLE and len(workers) < MOST_WORKERS:
            out.append((("a new worker stands by",), (STANDBY, (*workers, (1, 0, 1)), named, kept, own, kills)))
            if workers[own][ALIVE]:
                dead = with_worker(own, alive=0)
                out.append((("the worker dies and is reaped",), (BEREFT, dead, named, kept, own, kills)))
        elif step == STANDBY:
            dead = with_worker(own, alive=0)
            out.append((("the old worker is killed and reaped",), (KILLED, dead, named, kept, own, kills)))
        elif step == BEREFT:
            out.append((("the next worker is started",), (KILLED, (*workers, (1, 0, 1)), named, kept, own, kills)))
        elif self.early:
            out += self._told_first(state, with_worker, new)
        elif step == KILLED:
            out.append((("systemd keeps the new worker's channel",), (SENT, workers, named, kept | {new}, own, kills)))
        elif step == SENT:
            out.append((("state.json names the new worker",), (NAMED, workers, new, kept, own, kills)))
        elif step == NAMED:
            told = with_worker(new, serves=1)
            out.append((("the new worker is told to go on",), (IDLE, told, named, kept, new, kills)))
        if step == DEAD:
            out.append(self._next_holder(state))
        elif kills:
            left = tuple(
                (alive, serves, int(is_open and i in kept)) for i, (alive, serves, is_open) in enumerate(workers)
            )
            out.append((("the holder is killed",), (DEAD, left, named, kept, own, kills - 1)))
        for i, (alive, _, is_open) in enumerate(workers):
            if alive and not is_open:
                gone = with_worker(i, alive=0)
                out.append(
                    ((f"worker {i}, whose channel ended, is done and ends",), (step, gone, named, kept, own, kills))
                )
        return out

    @staticmethod
    def _told_first(state: Any, with_worker: Any, new: int) -> list[tuple[tuple[object, ...], Any]]:
        step, workers, named, kept, own, kills = state
        if step == KILLED:
            told = with_worker(new, serves=1)
            return [(("the new worker is told to go on",), (SENT, told, named, kept, own, kills))]
        if step == SENT:
            return [(("state.json names the new worker",), (NAMED, workers, new, kept, new, kills))]
        if step == NAMED:
            return [(("systemd keeps the new worker's channel",), (IDLE, workers, named, kept | {new}, own, kills))]
        return []

    @staticmethod
    def _next_holder(state: Any) -> tuple[tuple[object, ...], Any]:
        _, workers, named, kept, _, kills = state
        if named in kept and workers[named][ALIVE]:
            left = tuple(
                (alive, serves, int(is_open and i == named)) for i, (alive, serves, is_open) in enumerate(workers)
            )
            left = tuple((alive, 1 if i == named else serves, o) for i, (alive, serves, o) in enumerate(left))
            step: tuple[object, ...] = (f"the next holder takes worker {named} up, and tells it to go on",)
            return step, (IDLE, left, named, frozenset((named,)), named, kills)
        left = (*((alive, serves, 0) for alive, serves, _ in workers), (1, 1, 1))
        new = len(workers)
        return ("the next holder starts another worker",), (IDLE, left, new, frozenset((new,)), new, kills)
