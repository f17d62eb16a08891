"""The replacement of a worker that lives by another program, as the holder goes about it. Standard library only.

Nothing of it needs the kernel to send requests again, so it works on every kernel; where the kernel can, that is the
way out when the old worker does not get done.

    phase      what is going on                                    what comes next
    idle       one worker, or none for the moment                  asked for: loading
    loading    the new worker starts and reads its briefing        it stands by: draining
                                                                   error, death, LOAD_S: failed
    draining   the old one takes no more requests, finishes those  drained: the old one is killed: switching
               it has, and goes on with renewing the lease         not drained, or silent: killed all the same where
                                                                   the kernel sends requests again, else failed
                                                                   anything else: resume is sent, and failed
    switching  the old one is killed, but not reaped               it is reaped: the new one is told to go: starting
    starting   the new one is the worker now                       ready: done
                                                                   death: failed, and the old program is started again

Invariants
1. Until the old worker is dead, the new one does not touch the FUSE connection, the ring or the service; until it is
   told to drain, the old one serves as if nothing were the matter, and it does so again if the drain fails. So a new
   version that cannot start harms nobody.
2. What a drained worker had in its dirty ring, or on the way to the service, is taken over as after its death by
   surprise (store/parts/ring.py, store/layers/fence.py): nothing is written out for the sake of the handover.
3. Each drain that is sent is followed by the death of the worker that it was sent to, or by `resume`, which is sent
   when draining is left for anything else, and is read after that drain. So no worker stands still for ever. An answer
   counts for the drain that it is to (by its id), in that phase: a later one is about a drain that was undone.
4. Done and failed both lead to idle, and say so once, in state.json: upgrades {id: {done, error}}. The answers to
   others who ask meanwhile stand beside it, so that nobody's is overwritten before he reads it.
"""

from __future__ import annotations

import time

from blobfuse_dysk.device.ipc import message
from blobfuse_dysk.device.ipc.log import ERROR, INFO
from blobfuse_dysk.errors import BusyError, DeviceError, DyskError

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from blobfuse_dysk.device.holder.workers import WorkerProcess
    from blobfuse_dysk.device.ipc.log import Log

__all__ = ["Handover"]

LOAD_S = 30.0  # for the new worker to be there
DRAIN_S = 5.0  # for the old one to answer what it has taken
_MOST_ANSWERS = 16
_SILENT_S = 3.0  # beyond that, for it to say so


class Handover:
    """The holder's one. command: {worker: argv, environment}, of which to start workers; changes when one is replaced.

    start: a process of such a command, briefed to stand by. save: writes fields of state.json.
    """

    def __init__(
        self,
        command: dict[str, Any],
        start: Callable[[dict[str, Any]], WorkerProcess],
        save: Callable[[dict[str, Any]], None],
        log: Log,
    ) -> None:
        self.command = command
        self.deadline: float | None = None  # when on_time wants to be called
        self._start = start
        self._save = save
        self._log = log
        self._phase = "idle"
        self._answers: dict[str, dict[str, Any]] = {}  # by the request's id; the last few, as several may ask at once
        self._id: str | None = None
        self._new: WorkerProcess | None = None
        self._old: WorkerProcess | None = None
        self._old_command = command
        self._drained: WorkerProcess | None = None  # and killed since
        self._can_resend = False

    # What the holder asks.

    def fds(self) -> list[int]:
        """What to wait for, for `hear`. As the worker, the new one is listened to by the holder."""
        return self._new.fds() if self._new and self._phase != "starting" else []

    def drained(self, worker: WorkerProcess) -> bool:
        """Whether this worker answered all that it had taken before it was killed."""
        return worker is self._drained

    def successor(self, *, resend: bool) -> WorkerProcess | None:
        """The worker is reaped. The one that is the worker from now on, if it stood by; `go` tells it to go on."""
        if self._phase not in ("draining", "switching") or (resend and not self._can_resend):
            self.stop("the old worker died meanwhile")
            return None
        self._phase, self.deadline = "starting", None
        return self._new

    def go(self, resume: dict[str, Any], *, resend: bool) -> None:
        """Tell the successor to go on."""
        assert self._new
        message.send(self._new.channel, {"op": "go", "resume": resume, "resend": resend}, wait=False)

    # What happens.

    def begin(self, request: dict[str, Any], old: WorkerProcess | None, *, can_resend: bool) -> None:
        """Replace `old` by the program of the request {id, worker: argv, path: PYTHONPATH}. None: not now."""
        if old is None or self._phase != "idle":
            busy = "it is being attached or detached right now" if old is None else "it is being replaced already"
            self._say(request["id"], BusyError(busy, remedy="try again"))
            return
        self._say(request["id"], None, done=False)
        self._id, self._old, self._can_resend = request["id"], old, can_resend
        self._old_command = self.command
        environment = {**self.command["environment"], "PYTHONPATH": request["path"]}
        self.command = {"worker": request["worker"], "environment": environment}
        try:
            self._new = self._start(self.command)
        except OSError as error:
            self._fail(DeviceError(f"cannot start {request['worker'][0]}: {error.strerror}"))
            return
        self._phase, self.deadline = "loading", time.monotonic() + LOAD_S

    def hear(self, happened: set[int]) -> list[str]:
        """Some of `fds` can be read. Returns lines that the new worker wrote to its standard error."""
        new = self._new
        if new is None or self._phase == "starting":
            return []
        lines = new.read_stderr() if new.stderr in happened else []
        if new.listening and new.channel.fileno() in happened:
            event, _ = message.receive(new.channel)
            if event is None:
                new.hang_up()
            elif event["event"] == "error":
                self._fail(message.message_to_error(event["error"]))
                return lines
            elif event["event"] == "standing-by" and self._phase == "loading":
                self._drain()
        if new.pidfd in happened:
            lines += new.reap()
            self._new = None
            self._fail(_no_start(new))
        return lines

    def on_time(self, now: float) -> None:
        """Look at the clock."""
        if self.deadline is None or now < self.deadline:
            return
        if self._phase == "loading":
            self.stop(f"the new worker was not there within {LOAD_S:g} s")
        elif self._phase == "draining":
            self.on_drain(self._id, False)

    def on_drain(self, request_id: str | None, drained: bool) -> None:
        """What the old worker said: all that it had taken is answered, or is not."""
        if self._phase != "draining" or request_id != self._id:
            return
        if drained or self._can_resend:
            assert self._old
            self._drained = self._old if drained else None
            self._phase, self.deadline = "switching", None
            self._old.kill()
        else:
            self.stop(f"requests have been waiting for the service for {DRAIN_S:g} s")

    def on_ready(self) -> None:
        """The worker serves. If it is the new one, that was it."""
        if self._phase == "starting":
            self._new = None
            self._finish(None)

    def on_death(self, worker: WorkerProcess) -> None:
        """The worker was reaped. If it is the new one, it never served."""
        if self._phase == "starting" and worker is self._new:
            self._new = None
            self._fail(_no_start(worker))

    def stop(self, reason: str) -> None:
        """Forget it, if there is one under way, and end the new worker unless it is the worker already."""
        if self._phase not in ("idle", "starting"):
            self._fail(DeviceError(reason, remedy="try again when dyskctl status shows that the disk is well"))

    def _drain(self) -> None:
        self._phase, self.deadline = "draining", time.monotonic() + DRAIN_S + _SILENT_S
        assert self._old
        message.send(self._old.channel, {"op": "drain", "id": self._id, "limit_s": DRAIN_S}, wait=False)

    def _fail(self, error: DyskError) -> None:
        if self._phase == "draining" and self._old:
            message.send(self._old.channel, {"op": "resume"}, wait=False)
        new, self._new = self._new, None
        if new:
            new.kill()
            new.reap()
        self.command = self._old_command
        self._finish(error)

    def _finish(self, error: DyskError | None) -> None:
        self._phase, self.deadline = "idle", None
        assert self._id
        self._say(self._id, error)

    def _say(self, request_id: str, error: DyskError | None, *, done: bool = True) -> None:
        if done:
            text = f"the worker was not replaced: {error.line()}" if error else "the worker was replaced"
            self._log(text, ERROR if error else INFO)
        answer = message.error_to_message(error) if error else None
        self._answers[request_id] = {"done": done, "error": answer}
        if len(self._answers) > _MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]
        self._save({"upgrades": self._answers})


def _no_start(worker: WorkerProcess) -> DeviceError:
    return DeviceError(f"the new worker could not start ({worker.end_text()})", remedy="the old version goes on")
