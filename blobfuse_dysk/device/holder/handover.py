"""The replacement of a worker that lives by another program: events in, actions out. Standard library only.

A machine as machine.py has them, and a part of that of the attachment (lifecycle.py). Nothing of it needs requests to
come again, so it works everywhere; where they do (lifecycle.py), that is the way out when the old worker does not get
done.

    phase      what is going on                                    what comes next
    idle       one worker, or none for the moment                  asked for: loading
    loading    the new worker starts and reads its briefing        it stands by: draining
                                                                   error, death, LOAD_S: failed
    draining   the old one takes no more requests, finishes those  drained: the old one is killed: switching
               it has, and goes on with renewing the lease         not drained, or silent: killed all the same where
                                                                   requests come again, else failed
                                                                   anything else: resume is sent, and failed
    switching  the old one is killed, but not reaped               it is reaped: the new one is told to go: starting
    starting   the new one is the worker now                       ready: done
                                                                   death: failed, and the old program is started again
    proving    as starting, in a holder after the one that began   as starting, but nobody waits for an answer; and
               it; the new one may have been ready already         another replacement may be asked for

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
5. The old program is known until the new one's worker is ready, to later holders, too (keeper.py).
"""

from __future__ import annotations

from blobfuse_dysk.device.holder.machine import Machine, Worker, read_table
from blobfuse_dysk.device.ipc import message
from blobfuse_dysk.device.ipc.log import ERROR, INFO
from blobfuse_dysk.errors import BusyError, DeviceError, DyskError

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from blobfuse_dysk.device.holder.machine import Action
    from blobfuse_dysk.device.ipc.messages import Program, UpgradeAsked
    from blobfuse_dysk.device.ipc.statefile import Failure, UpgradeAnswer

__all__ = ["Handover"]

LOAD_S = 120.0  # for the new worker to be there; a starved machine is slow, and the old one serves meanwhile
DRAIN_S = 5.0  # for the old one to answer what it has taken
_MOST_ANSWERS = 16
_SILENT_S = 3.0  # beyond that, for it to say so

# What comes of each event in each phase; see machine.py.
_TABLE = """
event         idle     loading   draining   switching  starting  proving   (event, and what comes with it)
upgrade       begin    busy      busy       busy       busy      begin     the request, Worker or None, recovers
standby       -        loads     -          -          -         -         process id: the new worker was started
no_standby    -        missing   -          -          -         -         why: it was not
standing_by   -        drain     .          .          -         -         it can go on at once
gave_up       -        gives_up  gives_up   gives_up   -         -         the error that the new worker told
new_died      -        no_start  no_start   no_start   -         -         how: it was reaped
drained       .        .         drained    .          .         .         id, bool: what the old worker answered
died          .        died_soon successor  successor  dies      dies      how, resend: the worker was reaped
ready         .        .         .          .          done      proven    the worker serves
stop          .        stop      stop       stop       .         .         why nobody is to be replaced now
over          .        stop      stop       stop       dies      dies      the same, and the worker was reaped
time          .        late      silent     .          .         .         the deadline has passed
"""


class Handover(Machine):
    """The holder's one. command: {worker: argv, environment}, of which to start workers; changes when one is replaced.

    former: that of the program before, if the worker, which another holder had begun to use, may not have been ready.
    answers: upgrades of state.json.
    """

    TABLE = read_table(_TABLE)

    def __init__(self, command: Program, answers: dict[str, UpgradeAnswer], former: Program | None = None) -> None:
        self.command = command
        self.former = former  # what is started if the program of the worker, which is `command`, should not start
        super().__init__("proving" if former else "idle")
        self.deadline: float | None = None  # when `time` is to be told
        self.new: Worker | None = None  # until it is the worker
        self._answers = dict(answers)  # by the request's id; the last few, as several may ask at once
        self._id: str | None = None
        self._old: Worker | None = None
        self._old_command = former or command
        self._recovers = False

    def _begin(self, now: float, request: UpgradeAsked, old: Worker | None, recovers: bool) -> list[Action]:
        """Replace `old` by the program of the request {id, worker: argv, path: PYTHONPATH}. None: not now."""
        if old is None:
            return self._busy(now, request, old, recovers)
        proven = self._proven(now) if self.former else []  # who asks does it by the worker
        self._id, self._old, self._recovers = request["id"], old, recovers
        self._old_command = self.command
        environment = {**self.command["environment"], "PYTHONPATH": request["path"]}
        self.command = {"worker": request["worker"], "environment": environment}
        self.phase, self.deadline = "loading", now + LOAD_S
        return [*proven, *self._say(request["id"], None, done=False), ("start_standby", self.command)]

    def _busy(self, now: float, request: UpgradeAsked, old: Worker | None, recovers: bool) -> list[Action]:
        busy = "it is being attached or detached right now" if old is None else "it is being replaced already"
        return self._say(request["id"], BusyError(busy, remedy="try again"))

    def _loads(self, now: float, pid: int) -> list[Action]:
        self.new = Worker(pid, now)
        return []

    def _missing(self, now: float, why: str) -> list[Action]:
        return self._fail(DeviceError(f"cannot start {self.command['worker'][0]}: {why}"))

    def _drain(self, now: float) -> list[Action]:
        self.phase, self.deadline = "draining", now + DRAIN_S + _SILENT_S
        return [("tell", {"op": "drain", "id": self._id, "limit_s": DRAIN_S})]

    def _drained(self, now: float, request_id: str | None, drained: bool) -> list[Action]:
        """All that the old worker had taken is answered, or is not."""
        if request_id != self._id:
            return []
        if drained or self._recovers:
            assert self._old
            self._old.drained = drained
            self.phase, self.deadline = "switching", None
            return [("kill",)]
        return self._stop(now, f"requests have been waiting for the service for {DRAIN_S:g} s")

    def _silent(self, now: float) -> list[Action]:
        return self._drained(now, self._id, False)

    def _late(self, now: float) -> list[Action]:
        return self._stop(now, f"the new worker was not there within {LOAD_S:g} s")

    def _successor(self, now: float, how: str, resend: bool) -> list[Action]:
        """The new one is the worker from now on, and is told to go on by whoever uses workers (lifecycle.py)."""
        if resend and not self._recovers:
            return self._died_soon(now, how, resend)
        self.phase, self.deadline = "starting", None
        self.new, self.former = None, self._old_command
        return [("promote",)]

    def _died_soon(self, now: float, how: str, resend: bool) -> list[Action]:
        return self._stop(now, "the old worker died meanwhile")

    def _done(self, now: float) -> list[Action]:
        self.former = None
        return [("keep_program", self.command, None), *self._finish(None)]

    def _proven(self, now: float) -> list[Action]:
        self.phase, self.former = "idle", None
        return [("keep_program", self.command, None)]

    def _dies(self, now: float, how: str, *_: object) -> list[Action]:
        """The worker was the new one, and was never ready."""
        if self._id is not None:
            return self._no_start(now, how)
        self.command, self.former, self.phase = self._old_command, None, "idle"
        return []

    def _no_start(self, now: float, how: str) -> list[Action]:
        self.new = None  # it was reaped
        return self._fail(DeviceError(f"the new worker could not start ({how})", remedy="the old version goes on"))

    def _gives_up(self, now: float, error: Failure) -> list[Action]:
        return self._fail(message.message_to_error(error))

    def _stop(self, now: float, reason: str, *_: object) -> list[Action]:
        return self._fail(DeviceError(reason, remedy="try again when dyskctl status shows that the disk is well"))

    def _fail(self, error: DyskError) -> list[Action]:
        actions: list[Action] = [("tell", {"op": "resume"})] if self.phase == "draining" else []
        if self.new:
            actions.append(("end_standby",))
        self.command, self.former = self._old_command, None
        return [*actions, *self._finish(error)]

    def _finish(self, error: DyskError | None) -> list[Action]:
        assert self._id
        request_id, self._id = self._id, None
        self.phase, self.deadline = "idle", None
        self.new = self._old = None
        return self._say(request_id, error)

    def _say(self, request_id: str, error: DyskError | None, *, done: bool = True) -> list[Action]:
        self._answers[request_id] = {"done": done, "error": message.error_to_message(error) if error else None}
        if len(self._answers) > _MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]
        save: list[Action] = [("save", {"upgrades": dict(self._answers)})]
        if not done:
            return save
        text = f"the worker was not replaced: {error.line()}" if error else "the worker was replaced"
        return [("log", text, ERROR if error else INFO), *save]
