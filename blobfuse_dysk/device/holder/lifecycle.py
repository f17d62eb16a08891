"""The life of an attachment as its holder decides it: events in, actions out. Standard library only.

No process, channel, file or clock is in here: holder.py waits for what happens and tells it to `step`, actions.py does
what the answer says (machine.py). So every sequence of events can be tried without root
(tests/unit/test_lifecycle_model.py), and what comes of each is one table, below.

    phase      what is going on                                                      ends when
    starting   the first worker opens the disk                                       it is ready: prepared
    prepared   the file can be opened; the attaching process sets the device up      it commits: attached
    attached   the attachment is independent of that process                         the device is let go of: ending
    ending     the worker flushes, releases the lease                                it says that it ended: ended
    withdrawn  the attach was given up: as ending, but a worker that dies is not     as ending
               replaced, and one that stays is killed
    ended      no worker will come any more                                          no device has the file: gone
    failed     all I/O fails from now on                                             no device has the file: gone
    gone       nothing is left to decide

A worker that dies by surprise while prepared, attached or ending is replaced, by its successor if one stands by
(handover.py), else by another one, after a pause. What is known meanwhile: since when I/O waits (down_since), and
whether requests died with a worker that no other has asked for again yet (unanswered). They can be had again
from the kernel, from 6.9 on, else from memory that is kept (worker/taken.py), if the attachment is not an older
version's.

Invariants
1. A worker of a committed attachment is told to serve (brief, go) only after systemd was told to keep its channel
   (keep_worker) and state.json its name (name_worker): _take_in is the only way. device/holder/systemd.py says why.
2. Another worker is started only when the one before was reaped.
3. In every phase but ended, failed and gone, there is a worker, or a time at which one is started.
4. What others can do (a message late, twice, never, a death at any time) has an outcome in every phase. What only this
   program can do wrong is an AssertionError.
"""

from __future__ import annotations

from blobfuse_dysk.device.holder.machine import Machine, Worker, read_table
from blobfuse_dysk.device.holder.workers import Pauses
from blobfuse_dysk.device.ipc import message
from blobfuse_dysk.device.ipc.log import ERROR, INFO, WARNING
from blobfuse_dysk.errors import DeviceError

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from blobfuse_dysk.device.holder.handover import Handover
    from blobfuse_dysk.device.holder.machine import Action, Event
    from blobfuse_dysk.device.ipc.messages import UpgradeAsked
    from blobfuse_dysk.device.ipc.statefile import Change, Failure, StateFile

__all__ = ["Lifecycle"]

_TAKE_BACK_S = 15.0  # for the worker to release what it has when the attach is given up
_EXIT_S = 5.0  # between a worker's "ended" and its exit
_AFTER_FAILURE = "what was not flushed before is lost; detach it, attach it again, and check its file system"
_LINGER_S = 0.5  # between looks at the loop device of an attachment that has no worker any more

# What comes of each event in each phase; see machine.py. In `gone` nothing can be.
_TABLE = """
event       starting  prepared  attached  ending    withdrawn  ended     failed    (event, and what comes with it)
made        begin     -         -         -         -          -         -         recovers: the place is there
not_made    give_up   -         -         -         -          -         -         error: it could not be
taken_up    -         -         take_up   -         -          -         -         bound, recovers: the next holder's
commit      refuse    commit    again     refuse    refuse     refuse    refuse    device, bound: which has the file
written     -         attach    -         -         -          -         -         device: the commit is in state.json
not_written -         unwritten -         -         -          -         -         error: it could not be
given_up    withdraw  withdraw  part      part      withdraw   withdraw  withdraw  hung_up: by the attaching process
signal      signal    signal    signal    signal    signal     signal    signal    bound: somebody wants the end
ready       opened    ready     ready     ready     end_late   .         .         fields, bound: the worker serves
state       save      save      save      save      save       save      late_save fields: for state.json
released    .         .         released  released  .          .         .         bound: a handle was closed
upgrade     busy      busy      upgrade   busy      busy       busy      busy      request: replace the worker
error       error     error     error     error     error      error     error     error: why the worker gives up
ended       end_said  end_said  end_said  end_said  end_said   .         .         aborted: the worker flushed, released
died        unopened  replace   replace   replace   over       over      reaped    how: the worker was reaped
started     -         started   started   started   started    -         -         process id: of another worker
not_started -         missing   missing   missing   missing    -         -         why there is none
device      -         -         -         -         -          look      look      bound: looked at, without a worker
time        time      time      time      time      time       time      time      whatever is due
"""
_TO_HANDOVER = ("standby", "no_standby", "standing_by", "gave_up", "new_died", "drained")


class Lifecycle(Machine):
    """One attachment's. fields: of state.json, which are read, and changed by actions alone."""

    TABLE = read_table(_TABLE)

    def __init__(self, fields: StateFile, worker: Worker, handover: Handover) -> None:
        super().__init__("starting")
        self.error: Failure | None = None  # why there is no attachment
        self.handover = handover
        self._fields = fields
        self._worker: Worker | None = worker
        self._device: str | None = None  # since the commit
        self._recovers = False  # requests that died with a worker come again: from the kernel, or from kept memory
        self._kill_at: float | None = None
        self._restart_at: float | None = None
        self._look_at: float | None = None
        self._down_since: float | None = None  # since the death after which no worker had the disk open
        self._pauses = Pauses()
        self._unanswered = False  # requests died with a worker, and were not sent again
        self._aborted = False  # the FUSE connection was

    @classmethod
    def following(
        cls, fields: StateFile, worker: Worker, handover: Handover, *, adopted: bool, now: float
    ) -> Lifecycle:
        """Of the holder after one that died. adopted: the worker lives since before; else requests may have died."""
        life = cls(fields, worker, handover)
        life.phase, life._device = "attached", fields["device"]
        life._unanswered = not adopted
        life._down_since = None if adopted else now
        return life

    def step(self, event: Event, now: float) -> list[Action]:
        """Something happened; return what is to be done. now: time.monotonic()."""
        if event[0] in _TO_HANDOVER:
            return self.handover.step(event, now)
        return super().step(event, now)

    @property
    def committed(self) -> bool:
        """Whether the attachment stays without the attaching process, or did."""
        return self._device is not None

    @property
    def unattended(self) -> bool:
        """Whether all depends on the device now: `device` is to be told."""
        return self._worker is None and self.phase in ("ended", "failed")

    @property
    def deadline(self) -> float | None:
        """When `time` is to be told."""
        waits = (self._kill_at, self._restart_at, self._look_at, self._io_deadline(), self.handover.deadline)
        return min((at for at in waits if at is not None), default=None)

    # The attaching process, and signals.

    def _begin(self, now: float, recovers: bool) -> list[Action]:
        self._recovers = recovers
        return [("brief", False, False)]

    def _give_up(self, now: float, error: Failure) -> list[Action]:
        self.phase, self.error, self._worker = "gone", error, None
        return [("end_worker",)]

    def _commit(self, now: float, device: str, bound: str | None) -> list[Action]:
        """Make the attachment one that stays, or answer why not."""
        if bound != device:
            error = DeviceError(f"{device} lost its file while it was being set up", remedy="attach the disk again")
            return self._unwritten(now, message.error_to_message(error))
        return [("commit", device)]

    def _unwritten(self, now: float, error: Failure) -> list[Action]:
        return [("answer", {"event": "error", "error": error})]

    def _refuse(self, now: float, device: str, bound: str | None) -> list[Action]:
        error = DeviceError(f"{device} was set up for an attachment that ends", remedy="attach the disk again")
        return self._unwritten(now, message.error_to_message(error))

    def _again(self, now: float, device: str, bound: str | None) -> list[Action]:
        return [("answer", {"event": "committed"})] if device == self._device else self._refuse(now, device, bound)

    def _attach(self, now: float, device: str) -> list[Action]:
        self.phase, self._device = "attached", device
        keep: list[Action] = [("keep_worker",)] if self._worker else []
        return [
            ("log", f"{self._fields['disk']} is attached as {device}", INFO),
            *keep,
            ("keep_program", self.handover.command, self.handover.former),
            ("keep_all",),
            ("answer", {"event": "committed"}),
        ]

    def _part(self, now: float, hung_up: bool) -> list[Action]:
        return [("close_attacher",)]

    def _withdraw(self, now: float, hung_up: bool) -> list[Action]:
        """The channel stays open when the attaching process still waits there for the end of all this."""
        if self.committed:
            return self._part(now, hung_up)
        self._kill_at = now + _TAKE_BACK_S if self._kill_at is None else min(self._kill_at, now + _TAKE_BACK_S)
        return [
            *(self._part(now, hung_up) if hung_up else []),
            ("log", "the attaching process gave up; everything is taken back", WARNING),
            ("let_go",),
            *self._end(),
        ]

    def _signal(self, now: float, bound: bool) -> list[Action]:
        """A device that is in use is never cut off."""
        return [
            ("log", "told to stop: the device is detached as soon as nobody uses it", INFO),
            ("tell", {"op": "flush"}),
            *([("let_go",)] if bound else self._end()),
        ]

    # The worker.

    def _take_in(self) -> list[Action]:
        """From now on this is the worker. Only then is it told to serve: see device/holder/systemd.py."""
        keep: list[Action] = [("keep_worker",), ("keep_program", self.handover.command, self.handover.former)]
        return [*(keep if self.committed else []), ("name_worker",)]

    def _take_up(self, now: float, bound: bool, recovers: bool) -> list[Action]:
        """The place is there, after a holder that died; so nothing here is a reason to give the attachment up."""
        assert self._worker
        self._recovers = recovers
        adopted = not self._unanswered
        return [
            *([("name_worker",)] if adopted else self._take_in()),  # one is kept since a holder before used it
            # Its death is then judged as that of the one before would have been.
            *([("kill",)] if self._unanswered and not recovers else []),
            ("brief", True, recovers),
            ("tell", {"op": "resume"}),  # from a drain that the holder before asked for
            *([] if bound else self._end()),  # what said so may have been lost with the old holder
        ]

    def _opened(self, now: float, fields: Change, bound: bool) -> list[Action]:
        assert self._worker
        self._worker.served, self._worker.first = True, False
        self.phase = "prepared"
        return [("note", fields), ("announce",)]

    def _end_late(self, now: float, fields: Change, bound: bool) -> list[Action]:
        assert self._worker
        self._worker.served, self._worker.first = True, False
        return self._end()

    def _ready(self, now: float, fields: Change, bound: bool) -> list[Action]:
        """The release of the last handle may have been lost with the old worker."""
        assert self._worker
        self._worker.served = True
        self._unanswered = False
        return [
            ("log", f"worker {self._worker.pid} took over", INFO),
            ("save", fields),
            *self.handover.step(("ready",), now),
            *(self._end() if self.phase == "ending" or (self.committed and not bound) else []),
        ]

    def _save(self, now: float, fields: Change) -> list[Action]:
        if fields.get("state") == "attached":
            self._down_since = None
        return [("save", fields)]

    def _late_save(self, now: float, fields: Change) -> list[Action]:
        """What was lost counts; that it was well does not."""
        return [("save", {name: value for name, value in fields.items() if name not in ("state", "detail")})]

    def _released(self, now: float, bound: bool) -> list[Action]:
        """Before the commit the attaching process, and nobody else, decides what becomes of this."""
        return [] if bound else self._end()

    def _upgrade(self, now: float, request: UpgradeAsked) -> list[Action]:
        return self.handover.step(("upgrade", request, self._worker, self._recovers), now)

    def _busy(self, now: float, request: UpgradeAsked) -> list[Action]:
        return self.handover.step(("upgrade", request, None, self._recovers), now)

    def _error(self, now: float, error: Failure) -> list[Action]:
        if self._worker and self._worker.first:
            self.error = error
            return []
        return [("reason", error["message"])]

    def _end_said(self, now: float, aborted: bool) -> list[Action]:
        self.phase, self._aborted = "ended", aborted
        self._kill_at = now + _EXIT_S
        return []

    # The death of the worker.

    def _bury(self) -> Worker:
        worker, self._worker = self._worker, None
        assert worker
        self._kill_at = None
        return worker

    def _unopened(self, now: float, how: str) -> list[Action]:
        self._bury()
        self.phase = "ended"
        error = DeviceError(f"the worker could not start ({how})", remedy="run: dyskctl doctor")
        self.error = self.error or message.error_to_message(error)
        return []

    def _over(self, now: float, how: str) -> list[Action]:
        self._bury()
        self.phase = "ended"
        stop = self.handover.step(("over", "the attachment ends"), now)
        return [*stop, *(self._fail(now, "the FUSE connection was aborted") if self._aborted else [])]

    def _reaped(self, now: float, how: str) -> list[Action]:
        worker = self._bury()
        return [*self.handover.step(("died", how, False), now), _death(worker, how)]

    def _replace(self, now: float, how: str) -> list[Action]:
        """It died by surprise, or was killed for a successor."""
        worker = self._bury()
        self._down_since = self._down_since or now
        self._unanswered |= worker.served and not worker.drained
        new = self.handover.new
        actions = self.handover.step(("died", how, self._unanswered), now)
        if self.handover.phase == "starting":
            self._worker = new
            return [*actions, *self._take_in(), ("go", self._unanswered)]
        actions.append(_death(worker, how))
        if self._unanswered and not self._recovers:
            reason = "the worker died, and with it, on this kernel (before 6.9), the requests that it had taken"
            return [*actions, *self._fail(now, reason)]
        self._restart_at = now + self._pauses.after(now - worker.started)
        restarts = self._fields["restarts"] + 1
        if self._fields["state"] == "failed":  # which no other worker can make good
            return [*actions, ("save", {"worker": None, "restarts": restarts})]
        detail = f"the worker died ({how})"
        return [*actions, ("save", {"state": "recovering", "detail": detail, "worker": None, "restarts": restarts})]

    def _started(self, now: float, pid: int) -> list[Action]:
        self._worker = Worker(pid, now)
        return [*self._take_in(), ("brief", True, self._unanswered)]

    def _missing(self, now: float, why: str) -> list[Action]:
        self._restart_at = now + self._pauses.after(0.0)
        return [("log", f"cannot start a worker: {why}", ERROR)]

    # Time, and the end.

    def _io_deadline(self) -> float | None:
        """When I/O that waits for a worker must fail. One that serves, if only to open the disk, sees to it itself."""
        timeout_s = self._fields["io_timeout_s"]
        serving = self._worker is not None and self._worker.served
        if self._down_since is None or self.phase == "failed" or timeout_s is None or serving:
            return None
        return self._down_since + float(timeout_s)

    def _time(self, now: float) -> list[Action]:
        actions: list[Action] = []
        if self.handover.deadline is not None and now >= self.handover.deadline:
            actions += self.handover.step(("time",), now)
        io_deadline = self._io_deadline()
        if io_deadline is not None and now >= io_deadline:
            last = self._fields["detail"]
            actions += self._fail(now, f"no worker could be started within io-timeout{f': {last}' if last else ''}")
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            if self._worker:
                text = f"worker {self._worker.pid} does not end, so it is killed"
                actions += [("log", text, WARNING), ("kill",)]
        if self._restart_at is not None and now >= self._restart_at:
            self._restart_at = None
            actions.append(("start", self.handover.command))
        return actions

    def _end(self) -> list[Action]:
        """Have the worker flush, release the lease and exit; one that comes later, too, as soon as it is ready."""
        self.phase = {"starting": "withdrawn", "prepared": "withdrawn", "attached": "ending"}.get(
            self.phase, self.phase
        )
        return [("unlink",), ("tell", {"op": "end"})]  # links first: the device may be another disk's soon

    def _look(self, now: float, bound: bool) -> list[Action]:
        """There is no worker, and none will come."""
        self._look_at = now + _LINGER_S
        if not bound:
            self.phase = "gone"
        elif self.phase != "failed":
            return self._fail(now, "the attachment ended before its device was let go")
        return []

    def _fail(self, now: float, reason: str) -> list[Action]:
        """Let the kernel fail all I/O, now and from now on, and wait for the loop device to be let go."""
        self.phase, self._restart_at, self._kill_at = "failed", None, None
        stop = self.handover.step(("stop", "all I/O fails"), now)
        return [
            ("forget",),
            ("log", f"all I/O fails from now on: {reason}", ERROR),
            *stop,
            ("kill",),
            ("disconnect",),
            ("save", {"state": "failed", "detail": f"{reason}: {_AFTER_FAILURE}"}),
            ("let_go",),
        ]


def _death(worker: Worker, how: str) -> Action:
    return ("log", f"worker {worker.pid} died ({how})", ERROR)
