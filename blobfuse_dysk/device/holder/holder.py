"""The holder of one attachment: owns the FUSE connection and its worker, and outlives the worker.

Started by device/attacher/launch.py as `python -I -S holder.py --name NAME`, with a channel to the attaching process as
standard input. It is small and imports the standard library only, because it stays in memory for as long as the disk is
attached and changes rarely, while workers come, go and are upgraded.

Its life:
1. starts the worker, whose imports take longest, takes its order, reserves the name under the lock of /run/dysk,
   writes state.json, mounts FUSE and takes the kernel's INIT;
2. briefs the worker: INIT, FUSE descriptor, control socket, configuration (a memfd with secrets, never read here);
3. tells the attaching process that the worker is ready, or why not; that process puts the loop device on the file
   and says `commit`. Should it die before that, everything is taken back;
4. when the worker says that a handle of the file was released and no loop device has the file any more, tells it to
   end; it flushes, releases the lease and says `ended`. The holder then takes mount, directory and /dev/dysk/NAME away
   and exits. So losetup -d, the last umount of an autoclear device and `dyskctl detach` all end in the same way;
5. when the worker dies by surprise, starts another, at once at first, then with longer and longer pauses; replaces one
   that lives by that of another version when asked to (device/holder/handover.py);
6. when that does not help within io-timeout, or requests died with a worker that this kernel cannot send again (before
   6.9), or something aborted the FUSE connection, lets the kernel fail all I/O (closing the last descriptor of the
   connection does) and waits as `failed` until the loop device is let go.

SIGTERM and SIGINT mean: detach as soon as nobody uses the device. The loop driver decides that: LOOP_CLR_FD lets the
file go now, or on the last close while the device is open or mounted. A mounted file system is never cut off; sending
the signal again changes nothing. SIGKILL ends the holder, and with it the worker, and then all I/O fails.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import socket
import sys
import time

if __name__ == "__main__":
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..")))

from blobfuse_dysk.device.holder.handover import Handover
from blobfuse_dysk.device.holder.record import Record
from blobfuse_dysk.device.holder.reservation import Reservation, explain
from blobfuse_dysk.device.holder.workers import Crew, Pauses, WorkerProcess
from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.ipc.log import ERROR, WARNING, Log
from blobfuse_dysk.device.kernel import fuse, hardening
from blobfuse_dysk.errors import DeviceError, DyskError

TYPE_CHECKING = False  # importing typing would cost half a MiB
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Holder", "main"]

_TAKE_BACK_S = 15.0  # for the worker to release what it has when the attach is given up
_EXIT_S = 5.0  # between a worker's "ended" and its exit
_LINGER_S = 0.5  # between looks at the loop device of a failed attachment


class Holder:
    """One attachment. `run` returns the exit status."""

    def __init__(
        self,
        attacher: socket.socket | None,
        command: dict[str, Any],
        order: dict[str, Any],
        worker: WorkerProcess,
        place: Reservation,
        crew: Crew,
    ) -> None:
        self._attacher = attacher
        self._name: str = order["name"]
        self._run: str = order["run"]
        self._log = Log("dysk-holder", self._name, order["log"])
        self._place = place
        self._crew = crew
        self._state = Record(self._run, self._name, order["state"], self._log)
        self._state.fields["worker"] = state.identity(worker.pid)
        self._worker: WorkerProcess | None = worker
        self._ready = False  # a worker was ready once: from then on its death is survived
        self._committed = False  # the loop device is set up: from then on the death of the attaching process is, too
        self._ending = False
        self._failed = False
        self._ended: dict[str, Any] | None = None  # what the worker said when it had ended well
        self._error: dict[str, Any] | None = None  # why there is no attachment
        self._kill_at: float | None = None
        self._restart_at: float | None = None
        self._down_since: float | None = None  # since the death after which no worker had the disk open
        self._pauses = Pauses()
        self._unanswered = False  # requests died with a worker, and were not sent again
        standby = functools.partial(crew.start_standby, self._state.fields)
        self._handover = Handover(command, standby, self._state.save, self._log)

    def run(self) -> int:
        """Live until the attachment ends."""
        wakeup, signals = socket.socketpair()
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if self._begin():
            for warning in hardening.harden("dysk-holder"):
                self._log(warning, WARNING)
            while not self._done():
                self._wait(signals)
        return self._finish()

    def _begin(self) -> bool:
        """Make the place and tell the worker to serve; False if that cannot be."""
        assert self._worker
        try:
            self._place.make(self._state.fields)
            self._state.fields["connection"] = fuse.connection(state.mount_path(self._run, self._name))
            self._crew.brief(self._worker, None)
        except (DyskError, OSError) as error:
            self._error = message.error_to_message(error if isinstance(error, DyskError) else explain(error, self._run))
            self._worker.kill()
            self._reap()
            return False
        return True

    def _done(self) -> bool:
        if self._worker is not None or self._restart_at is not None:
            return False
        if self._bound() is None:
            return True
        if not self._failed:
            self._fail("the attachment ended before its device was let go")
        return False

    def _wait(self, signals: socket.socket) -> None:
        """Wait for the next thing that happens and deal with it."""
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        if self._attacher:
            poll.register(self._attacher, select.POLLIN)
        worker = self._worker
        for fd in [*(worker.fds() if worker else ()), *self._handover.fds()]:
            poll.register(fd, select.POLLIN)
        happened = {fd for fd, _ in poll.poll(self._patience_ms())}
        if signals.fileno() in happened:
            signals.recv(64)
            self._on_signal()
        if self._attacher and self._attacher.fileno() in happened:
            self._on_attacher(self._attacher)
        self._log_lines(self._handover.hear(happened))
        if worker:
            if worker.channel.fileno() in happened:
                self._on_worker(worker)
            if worker.stderr in happened:
                self._log_lines(worker.read_stderr())
            if worker.pidfd in happened:
                self._on_worker_death(worker)
        self._on_time(time.monotonic())

    def _patience_ms(self) -> float | None:
        waits = (self._kill_at, self._restart_at, self._io_deadline(), self._handover.deadline)
        times = [at for at in waits if at is not None]
        if self._failed and self._worker is None:
            times.append(time.monotonic() + _LINGER_S)
        return max(0.0, min(times) - time.monotonic()) * 1000 + 1 if times else None

    def _io_deadline(self) -> float | None:
        """When I/O that waits for a worker must fail. One that serves, if only to open the disk, sees to it itself."""
        timeout_s = self._state["io_timeout_s"]
        serving = self._worker is not None and self._worker.served
        if self._down_since is None or self._failed or timeout_s is None or serving:
            return None
        return self._down_since + float(timeout_s)

    def _on_time(self, now: float) -> None:
        self._handover.on_time(now)
        io_deadline = self._io_deadline()
        if io_deadline is not None and now >= io_deadline:
            last = self._state["detail"]
            self._fail(f"no worker could be started within io-timeout{f': {last}' if last else ''}")
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            if self._worker:
                self._log(f"worker {self._worker.pid} does not end, so it is killed", WARNING)
                self._worker.kill()
        if self._restart_at is not None and now >= self._restart_at:
            self._restart_at = None
            try:
                worker = self._crew.start(self._handover.command)
            except OSError as error:
                self._log(f"cannot start a worker: {error}", ERROR)
                self._restart_at = now + self._pauses.after(0.0)
                return
            self._use(worker)
            self._crew.brief(worker, self._state.fields, resend=self._unanswered)

    # The attaching process, and signals.

    def _on_attacher(self, attacher: socket.socket) -> None:
        order, _ = message.receive(attacher)
        if order is not None and order["op"] == "commit":
            error = self._commit(order["device"])
            message.send(attacher, {"event": "error", "error": error} if error else {"event": "committed"}, wait=False)
            return
        if self._committed:
            attacher.close()
            self._attacher = None
            return
        # It gave up or died. The channel stays open when it still waits there for the end of all this.
        if order is None:
            attacher.close()
            self._attacher = None
        self._log("the attaching process gave up; everything is taken back", WARNING)
        self._place.let_go(self._state["device"])
        self._kill_at = time.monotonic() + _TAKE_BACK_S
        self._end()

    def _commit(self, device: str) -> dict[str, Any] | None:
        """Make the attachment one that stays; return why not."""
        if self._place.bound() != device:
            error = DeviceError(f"{device} lost its file while it was being set up", remedy="attach the disk again")
            return message.error_to_message(error)
        try:
            self._state.write({"state": "attached", "device": device})
        except OSError as problem:
            return message.error_to_message(explain(problem, self._run))
        self._committed = True
        self._log(f"{self._state['disk']} is attached as {device}")
        return None

    def _on_signal(self) -> None:
        self._log("told to stop: the device is detached as soon as nobody uses it")
        if self._worker:
            message.send(self._worker.channel, {"op": "flush"}, wait=False)
        if self._bound():
            self._place.let_go(self._state["device"])
        else:
            self._end()

    def _bound(self) -> str | None:
        """The loop device that has our file, if there still is one."""
        return self._place.bound(self._state["device"])

    # The worker.

    def _use(self, worker: WorkerProcess) -> None:
        """From now on this is the worker. Only then is it told to serve: see device/holder/systemd.py."""
        self._worker = worker
        self._state.save({"worker": state.identity(worker.pid)})

    def _on_worker(self, worker: WorkerProcess) -> None:
        event, fds = message.receive(worker.channel)
        if event is None:
            worker.hang_up()
            return
        kind = event.pop("event")
        if kind == "ready":
            self._on_ready(worker, event)
        elif kind == "state":
            if event.get("state") == "attached":
                self._down_since = None
            self._state.save(event)
        elif kind == "released":
            # Before the commit the attaching process, and nobody else, decides what becomes of this.
            if self._committed and self._bound() is None:
                self._end()
        elif kind == "upgrade":
            settled = self._committed and not self._ending
            self._handover.begin(event, worker if settled else None, can_resend=fuse.can_resend(self._place.init))
        elif kind == "config":
            self._crew.replace_config(fds[0])
        elif kind == "drain":
            self._handover.on_drain(event["id"], event["drained"])
        elif kind == "error" and self._ready:
            worker.reason = event["error"]["message"]
        elif kind == "error":
            self._error = event["error"]
        elif kind == "ended":
            self._ended = event
            self._kill_at = time.monotonic() + _EXIT_S

    def _on_ready(self, worker: WorkerProcess, event: dict[str, Any]) -> None:
        worker.served = True
        if not self._ready:
            self._ready = True
            self._state.fields.update(event)
            if self._attacher:
                message.send(self._attacher, {"event": "ready", "state": self._state.fields}, wait=False)
            return
        self._log(f"worker {self._state['worker']['pid']} took over")
        self._unanswered = False
        self._state.save(event)
        self._handover.on_ready()
        # The release that says so may have been lost with the old worker.
        if self._ending or (self._committed and self._bound() is None):
            self._end()

    def _on_worker_death(self, worker: WorkerProcess) -> None:
        while worker.listening:  # what it said last comes first
            self._on_worker(worker)
        self._reap()
        self._kill_at = None
        if self._ended is not None:
            self._handover.stop("the attachment ends")
            if self._ended["aborted"]:
                self._fail("the FUSE connection was aborted")
            return
        if self._ending and not self._committed:
            return
        if not self._ready:
            error = DeviceError(f"the worker could not start ({worker.end_text()})", remedy="run: dyskctl doctor")
            self._error = self._error or message.error_to_message(error)
            return
        now = time.monotonic()
        self._down_since = self._down_since or now
        self._unanswered |= worker.served and not self._handover.drained(worker)
        if not self._failed and (new := self._handover.successor(resend=self._unanswered)):
            self._use(new)
            self._handover.go(self._state.fields, resend=self._unanswered)
            return
        self._handover.on_death(worker)
        self._log(f"worker {worker.pid} died ({worker.end_text()})", ERROR)
        if self._failed:
            return
        if self._unanswered and not fuse.can_resend(self._place.init):
            self._fail("the worker died, and this kernel (before 6.9) cannot send its requests again")
            return
        self._restart_at = now + self._pauses.after(now - worker.started)
        reason = f"the worker died ({worker.end_text()})"
        restarts = self._state["restarts"] + 1
        self._state.save({"state": "recovering", "detail": reason, "worker": None, "restarts": restarts})

    def _reap(self) -> None:
        worker, self._worker = self._worker, None
        assert worker
        self._log_lines(worker.reap())

    def _log_lines(self, lines: list[str]) -> None:
        for line in lines:
            self._log(f"worker: {line}", WARNING)

    # The end.

    def _end(self) -> None:
        """Tell the worker to flush, release the lease and exit."""
        self._ending = True
        if self._worker:
            message.send(self._worker.channel, {"op": "end"}, wait=False)

    def _fail(self, reason: str) -> None:
        """Let the kernel fail all I/O, now and from now on, and wait for the loop device to be let go."""
        self._log(f"all I/O fails from now on: {reason}", ERROR)
        self._failed = True
        self._restart_at = None
        self._handover.stop("all I/O fails")
        if self._worker:
            self._worker.kill()
        self._place.disconnect()
        self._state.save({"state": "failed", "detail": reason})
        self._place.let_go(self._state["device"])

    def _finish(self) -> int:
        try:
            self._place.clear()
        except OSError as error:
            self._log(f"cannot clear {state.directory(self._run, self._name)}: {error.strerror}", ERROR)
        if self._attacher and self._error:
            message.send(self._attacher, {"event": "error", "error": self._error}, wait=False)
        if self._committed:
            self._log(f"{self._state['disk']} is detached")
        return 1 if self._error else 0


def main() -> int:
    """Become a daemon, take the order from standard input's channel, and hold."""
    if os.fork():
        os._exit(0)  # so that nobody has to wait for us but init
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    attacher = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    command, _ = message.receive(attacher)
    if command is None:
        return 1
    worker = WorkerProcess.start(command)
    order, fds = message.receive(attacher)
    if order is None:
        worker.kill()
        return 1
    place = Reservation(order["run"], order["dev"], order["name"])
    crew = Crew(order["name"], order["log"], place, fds[0])
    return Holder(attacher, command, order, worker, place, crew).run()


if __name__ == "__main__":
    os._exit(main())  # nothing is left to tidy up, and somebody waits for the end
