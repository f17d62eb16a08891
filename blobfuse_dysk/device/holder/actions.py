"""Does what a holder's lifecycle decided: to processes, channels, state.json and the place. Standard library only.

It has the processes, and decides nothing. machine.py lists the actions.
"""

from __future__ import annotations

from blobfuse_dysk.device.holder.reservation import explain
from blobfuse_dysk.device.holder.workers import WorkerProcess
from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.ipc.log import WARNING, Log

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from blobfuse_dysk.device.holder.keeper import NoKeeper
    from blobfuse_dysk.device.holder.machine import Action, Event
    from blobfuse_dysk.device.holder.record import Record
    from blobfuse_dysk.device.holder.reservation import Reservation
    from blobfuse_dysk.device.holder.workers import Crew
    from blobfuse_dysk.device.ipc.messages import Go, HolderEvent, HolderOrder, Program

__all__ = ["Actions"]


class Actions:
    """What a holder has. worker: None between two. new: who stands by."""

    def __init__(
        self,
        attacher: socket.socket | None,
        record: Record,
        log: Log,
        worker: WorkerProcess,
        place: Reservation,
        crew: Crew,
        keeper: NoKeeper,
    ) -> None:
        self.attacher = attacher
        self.state = record
        self.worker: WorkerProcess | None = worker
        self.new: WorkerProcess | None = None
        self.place = place
        self.crew = crew
        self.keeper = keeper
        self.log = log
        self._table: dict[str, Callable[..., Event | None]] = {
            "log": log,
            "save": record.save,
            "note": record.fields.update,
            "announce": lambda: self.answer({"event": "ready", "state": record.fields}),
            "answer": self.answer,
            "close_attacher": self._close_attacher,
            "let_go": lambda: place.let_go(record.fields["device"]),
            "disconnect": place.disconnect,
            "unlink": lambda: place.unlink(record.fields),
            "commit": self._commit,
            "start": self._start,
            "brief": self._brief,
            "tell": self._tell,
            "reason": self._reason,
            "kill": self._kill,
            "end_worker": self._end_worker,
            "start_standby": self._start_standby,
            "end_standby": self._end_standby,
            "promote": self._promote,
            "go": self._go,
            "name_worker": self._name_worker,
            "keep_worker": lambda: keeper.keep_worker(self._the_worker()),
            "keep_program": keeper.keep_program,
            "keep_all": lambda: keeper.keep_all(crew.parts()),
            "forget": keeper.forget,
        }

    def do(self, action: Action) -> Event | None:
        """Do one; return the event that answers it, if that is one that is answered."""
        name, *arguments = action
        return self._table[name](*arguments)

    # The attaching process.

    def answer(self, answer: HolderEvent) -> None:
        """Say it to the attaching process, if that still is there."""
        if self.attacher:
            message.send(self.attacher, answer, wait=False)

    def _close_attacher(self) -> None:
        if self.attacher:
            self.attacher.close()
            self.attacher = None

    def _commit(self, device: str) -> Event:
        try:
            self.state.write({"state": "attached", "device": device})
        except OSError as problem:
            return "not_written", message.error_to_message(explain(problem, self.state.run))
        return "written", device

    # The worker.

    def _the_worker(self) -> WorkerProcess:
        assert self.worker
        return self.worker

    def _start(self, command: Program) -> Event:
        assert self.worker is None
        try:
            self.worker = WorkerProcess.start(command)
        except OSError as error:
            return "not_started", str(error)
        return "started", self.worker.pid

    def _name_worker(self) -> None:
        self.state.save({"worker": state.identity(self._the_worker().pid)})

    def _brief(self, resume: bool, resend: bool) -> None:
        self.crew.brief(self._the_worker(), self.state.fields if resume else None, resend=resend)

    def _tell(self, order: HolderOrder) -> None:
        if self.worker:
            message.send(self.worker.channel, order, wait=False)

    def _reason(self, text: str) -> None:
        self._the_worker().reason = text

    def _kill(self) -> None:
        if self.worker:
            self.worker.kill()

    def _end_worker(self) -> None:
        self._kill()
        self.reap()

    def reap(self) -> None:
        """The worker is dead, or is going to be: await its end."""
        worker, self.worker = self._the_worker(), None
        self.log_lines(worker.reap())

    def log_lines(self, lines: list[str]) -> None:
        """What a worker wrote to its standard error."""
        for line in lines:
            self.log(f"worker: {line}", WARNING)

    # The one that stands by.

    def _start_standby(self, command: Program) -> Event:
        assert self.new is None
        try:
            self.new = self.crew.start_standby(self.state.fields, command)
        except OSError as error:
            return "no_standby", error.strerror
        return "standby", self.new.pid

    def _end_standby(self) -> None:
        new, self.new = self.new, None
        assert new
        new.kill()
        new.reap()

    def _promote(self) -> None:
        assert self.worker is None
        self.worker, self.new = self.new, None

    def _go(self, resend: bool) -> None:
        order: Go = {"op": "go", "resume": self.state.fields, "resend": resend}
        message.send(self._the_worker().channel, order, wait=False)
