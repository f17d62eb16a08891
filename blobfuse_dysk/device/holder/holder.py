"""The holder of one attachment: owns the FUSE connection and its worker, and outlives the worker.

Started by device/attacher/launch.py as `python -I -S holder.py --name NAME`, with a channel to the attaching process as
standard input. It is small and imports the standard library only, because it stays in memory for as long as the disk is
attached and changes rarely, while workers come, go and are upgraded. Here it waits for what happens; lifecycle.py
decides what is to be done about it, and actions.py does that.

Its life:
1. starts the worker, whose imports take longest, takes its order, reserves the name under the lock of /run/dysk,
   writes state.json, mounts FUSE and takes the kernel's INIT;
2. briefs the worker: INIT, FUSE descriptor, control socket, configuration (a memfd with secrets, which is read here
   only to see that what a worker puts in its place has the same variables for root's programs);
3. tells the attaching process that the worker is ready, or why not; that process puts the loop device on the file
   and says `commit`. Should it die before that, everything is taken back;
4. when the worker says that a handle of the file was released and no loop device has the file any more, tells it to
   end; it flushes, releases the lease and says `ended`. The holder then takes mount, directory and /dev/dysk/NAME away
   and exits. So losetup -d, the last umount of an autoclear device and `dyskctl detach` all end in the same way;
5. when the worker dies by surprise, starts another, at once at first, then with longer and longer pauses; replaces one
   that lives by that of another version when asked to (device/holder/handover.py);
6. when that does not help within io-timeout, or requests died with a worker of which no other can get hold (on a kernel
   before 6.9, in an attachment of an older version), or something aborted the FUSE connection, lets the kernel fail all
   I/O (closing the last descriptor of the connection does) and waits as `failed` until the loop device is let go.

SIGTERM and SIGINT mean: detach as soon as nobody uses the device. The loop driver decides that: LOOP_CLR_FD lets the
file go now, or on the last close while the device is open or mounted. A mounted file system is never cut off; sending
the signal again changes nothing. SIGKILL ends the holder, and with it the worker, and then all I/O fails.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

if __name__ == "__main__":
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..")))

from blobfuse_dysk import environment
from blobfuse_dysk.device.holder import program
from blobfuse_dysk.device.holder.actions import Actions
from blobfuse_dysk.device.holder.handover import Handover
from blobfuse_dysk.device.holder.keeper import NoKeeper
from blobfuse_dysk.device.holder.lifecycle import Lifecycle
from blobfuse_dysk.device.holder.machine import Worker
from blobfuse_dysk.device.holder.partitions import PartitionWatch
from blobfuse_dysk.device.holder.record import Record
from blobfuse_dysk.device.holder.reservation import Reservation, explain
from blobfuse_dysk.device.holder.workers import Crew, WorkerProcess
from blobfuse_dysk.device.ipc import door, message, state
from blobfuse_dysk.device.ipc.log import ERROR, WARNING, Log
from blobfuse_dysk.device.kernel import cgroup, fuse, hardening
from blobfuse_dysk.errors import DyskError

TYPE_CHECKING = False  # importing typing would cost half a MiB
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from blobfuse_dysk.device.ipc.messages import Begin, Program, StateChanged, WorkerReady

__all__ = ["Holder", "first_holder", "hold", "main"]

_LONGEST_WAIT_S = 86400.0  # poll takes no more than 2^31 ms, which an io-timeout may be


class Holder:
    """One attachment. `run` returns the exit status.

    lifecycle: decides. actions: does what is decided. follows: after a holder that died, which had made the place.
    """

    def __init__(self, actions: Actions, lifecycle: Lifecycle, *, follows: bool = False) -> None:
        self._has = actions
        self._lifecycle = lifecycle
        self._follows = follows
        self._partitions: PartitionWatch | None = None
        self._heard = False  # of partitions that may be the device's

    def run(self) -> int:
        """Live until the attachment ends."""
        wakeup, signals = socket.socketpair()
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._partitions = PartitionWatch.begin()
        self._begin()
        device = self._has.state.fields["device"]
        if self._follows and device:  # what the kernel said meanwhile went unheard
            self._has.place.follow_partitions(device, self._has.state.fields["disk"])
            self._has.place.guard_freeze(device)
        if self._lifecycle.phase != "gone":
            for warning in hardening.harden("dysk-holder"):
                self._has.log(warning, WARNING)
        while not self._done():
            self._wait(signals)
        return self._finish()

    def _begin(self) -> None:
        """Have the place, or find that there is none."""
        place, record = self._has.place, self._has.state
        if self._follows:
            self._feed("taken_up", self._bound(), self._has.crew.recovers)
            return
        try:
            place.make(record.fields)
            variables = self._lifecycle.handover.command["environment"]
            self._has.crew.keep_requests(always=not environment.uses_resend(variables))
            record.fields["connection"] = fuse.connection(state.mount_path(record.run, record.fields["name"]))
        except (DyskError, OSError) as error:
            why = error if isinstance(error, DyskError) else explain(error, record.run)
            self._feed("not_made", message.error_to_message(why))
            return
        self._feed("made", self._has.crew.recovers)

    def _done(self) -> bool:
        if self._lifecycle.unattended:
            self._feed("device", self._bound())
        return self._lifecycle.phase == "gone"

    def _feed(self, *event: Any, now: float | None = None) -> None:
        """Tell the lifecycle what happened, and do what it says."""
        now = time.monotonic() if now is None else now
        for action in self._lifecycle.step(event, now):
            answer = self._has.do(action)
            if answer:
                self._feed(*answer, now=now)

    def _wait(self, signals: socket.socket) -> None:
        """Wait for the next thing that happens and deal with it."""
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        attacher, worker, new = self._has.attacher, self._has.worker, self._has.new
        if attacher:
            poll.register(attacher, select.POLLIN)
        for process in (worker, new):
            for fd in process.fds() if process else ():
                poll.register(fd, select.POLLIN)
        if self._partitions:
            poll.register(self._partitions, select.POLLIN)
        happened = {fd for fd, _ in poll.poll(self._patience_ms())}
        if signals.fileno() in happened:
            signals.recv(64)
            self._feed("signal", self._bound())
        if attacher and attacher.fileno() in happened:
            self._on_attacher(attacher)
        if new:
            self._hear_new(new, happened)
        if worker:
            if worker.channel.fileno() in happened:
                self._on_worker(worker)
            if worker.stderr in happened:
                self._has.log_lines(worker.read_stderr())
            if worker.pidfd in happened:
                self._on_worker_death(worker)
        if self._partitions and self._partitions.fileno() in happened:
            self._heard |= self._partitions.heard(self._has.state.fields["device"])
        self._follow_partitions()
        self._feed("time")

    def _patience_ms(self) -> float | None:
        deadline = self._lifecycle.deadline
        return None if deadline is None else min(max(0.0, deadline - time.monotonic()), _LONGEST_WAIT_S) * 1000 + 1

    def _bound(self) -> bool:
        """Whether a loop device (still) has our file."""
        return self._has.place.bound(self._has.state.fields["device"]) is not None

    def _still_bound(self) -> bool:
        """As `_bound`, since the commit. Before it nothing is judged by that, so an attach does not look for it."""
        return self._lifecycle.committed and self._bound()

    # What is heard.

    def _on_attacher(self, attacher: socket.socket) -> None:
        received = door.receive(attacher, door.ATTACHER_TO_HOLDER, self._refuse)
        order = received.message
        if order is not None and order["op"] == "commit":
            self._feed("commit", order["device"], self._has.place.bound())
        elif order is not None or received.gone:
            self._feed("given_up", received.gone)

    def _on_worker(self, worker: WorkerProcess) -> None:
        received = door.receive(worker.channel, door.WORKER_TO_HOLDER, self._refuse)
        event = received.message
        if received.gone:
            worker.hang_up()
        if event is None:
            return
        if event["event"] == "ready":
            self._feed("ready", _fields(event), self._still_bound())
        elif event["event"] == "state":
            self._feed("state", _fields(event))
        elif event["event"] == "released":
            self._feed("released", self._still_bound())
        elif event["event"] == "upgrade":
            self._feed("upgrade", event)
        elif event["event"] == "config":
            self._replace_config(received.fds[0])
        elif event["event"] == "drain":
            self._feed("drained", event["id"], event["drained"])
        elif event["event"] == "freezing":
            self._has.place.guard_freeze(self._has.state.fields["device"])
        elif event["event"] == "error":
            self._feed("error", event["error"])
        elif event["event"] == "ended":
            self._feed("ended", event["aborted"])

    def _replace_config(self, fd: int) -> None:
        if not program.has_same_variables(self._has.crew.parts()["config"], fd):
            os.close(fd)
            self._refuse("a configuration of the worker is refused: its variables are not those of the attachment")
            return
        self._has.crew.replace_config(fd)
        self._has.keeper.replace_config(fd)

    def _on_worker_death(self, worker: WorkerProcess) -> None:
        while worker.listening:  # what it said last comes first
            self._on_worker(worker)
        self._has.reap()
        self._feed("died", worker.end_text())

    def _follow_partitions(self) -> None:
        """The links follow the device's partitions, of which the kernel said something; nothing is decided by them.

        What came before the commit, which tells of the device, was read all the same: it would wake this process for as
        long as that takes. The links are looked at once there is a device.
        """
        fields = self._has.state.fields
        if self._heard and fields["device"]:
            self._heard = False
            self._has.place.follow_partitions(fields["device"], fields["disk"])

    def _hear_new(self, new: WorkerProcess, happened: set[int]) -> None:
        """Some of the descriptors of the one that stands by can be read. As the worker it is heard as that."""
        if new.stderr in happened:
            self._has.log_lines(new.read_stderr())
        if new is self._has.new and new.listening and new.channel.fileno() in happened:
            received = door.receive(new.channel, door.WORKER_TO_HOLDER, self._refuse)
            event = received.message
            if received.gone:
                new.hang_up()
            elif event is not None and event["event"] == "error":
                self._feed("gave_up", event["error"])
            elif event is not None and event["event"] == "standing-by":
                self._feed("standing_by")
            for (
                fd
            ) in received.fds:  # a configuration counts from the worker that has the disk; this one looks again then
                os.close(fd)
        if new is self._has.new and new.pidfd in happened:
            self._has.new = None
            self._has.log_lines(new.reap())
            self._feed("new_died", new.end_text())

    def _refuse(self, line: str) -> None:
        self._has.log(line, WARNING)

    def _finish(self) -> int:
        record, error = self._has.state, self._lifecycle.error
        try:
            self._has.place.clear(record.fields)
        except OSError as problem:
            where = state.directory(record.run, record.fields["name"])
            self._has.log(f"cannot clear {where}: {problem.strerror}", ERROR)
        if error:
            self._has.answer({"event": "error", "error": error})
        if self._lifecycle.committed:
            self._has.log(f"{record.fields['disk']} is detached")
        return 1 if error else 0


def _fields(event: WorkerReady | StateChanged) -> dict[str, object]:
    """What of an event is for state.json."""
    return {name: value for name, value in event.items() if name != "event"}


def first_holder(
    attacher: socket.socket, keeper: Callable[[Begin, Reservation], NoKeeper], warnings: Iterable[str] = ()
) -> Holder | None:
    """The holder of what the attaching process orders, whose worker is started already; None if it orders nothing.

    warnings: for the attachment's log.
    """
    refused: list[str] = []  # an attaching process of another version; it sees that this one ends
    command = door.receive(attacher, door.ATTACHER_TO_HOLDER, refused.append).message
    if command is None or command["op"] != "command":
        return None
    program: Program = {"worker": command["worker"], "environment": command["environment"]}
    worker = WorkerProcess.start(program)
    received = door.receive(attacher, door.ATTACHER_TO_HOLDER, refused.append)
    order = received.message
    if order is None or order["op"] != "begin":
        worker.kill()
        return None
    log = Log("dysk-holder", order["name"], order["log"])
    for warning in warnings:
        log(warning, WARNING)
    record = Record(order["run"], order["name"], order["state"], log)
    record.fields["worker"] = state.identity(worker.pid)
    place = Reservation(order["run"], order["dev"], order["name"])
    crew = Crew(order["name"], order["log"], place, received.fds[0])
    first = Worker(worker.pid, time.monotonic(), first=True)
    lifecycle = Lifecycle(record.fields, first, Handover(program, record.fields["upgrades"]))
    return Holder(Actions(attacher, record, log, worker, place, crew, keeper(order, place)), lifecycle)


def main() -> int:
    """Become a daemon, take the order from standard input's channel, and hold."""
    if os.fork():
        os._exit(0)  # so that nobody has to wait for us but init
    return hold()


def hold() -> int:
    """As `main`, in a process for which nobody who attaches has to wait; the template's children begin here."""
    warnings = cgroup.join() if "--leave-cgroup" in sys.argv else []  # before there is a worker
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    attacher = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    holder = first_holder(attacher, lambda order, place: NoKeeper(), warnings)
    return holder.run() if holder else 1


if __name__ == "__main__":
    os._exit(main())  # nothing is left to tidy up, and somebody waits for the end
