"""The holder as a service of systemd, dysk-holder@NAME.service: outside the control group of whatever attached the
disk, and started again when it dies, with all that it had.

Started as `python -I -S systemd.py --run /run/dysk --name NAME` by the unit in packaging/systemd, which
device/attacher/systemd.py has started. It connects to the attaching process over /run/dysk/.NAME.launch, where
holder.py has a channel as its standard input. From the commit on, systemd keeps a copy of each descriptor that the
attachment consists of (sdnotify.py):

    fuse            the FUSE connection                    config, ring   memfds: secrets; writes not sent yet
    control         the socket where the worker answers    life           memfd: what a holder has to know, as JSON
    channel-PID-START, stderr-PID-START      to the worker, its standard error: of what names a process (state.py)

When the holder dies, its worker notices nothing: the other end of its channel is still open in systemd, and the unit
has KillMode=process. So I/O goes on, on every kernel; the next holder finds the descriptors, takes the worker up where
its predecessor left it, and reads the rest from state.json. What is not survived: the death of holder and worker at the
same time on a kernel that cannot send requests again (before 6.9), and the end of systemd itself. When systemd gives
the unit up, it closes what it kept; the worker then sees its channel end and ends in order, as without systemd.

Two workers must never serve, and one that serves must not take a dead holder for the end of the attachment: it would
release the lease. So each worker is started untold; systemd gets its channel; state.json names it; and only then is it
told to serve. Whenever the holder dies, then,

1. a worker whose channel systemd does not have was told nothing: it sees the channel's end, and ends by itself;
2. one that was told is among those whose channels the next holder gets. That takes up the one in state.json, and tells
   it once more (workers.py), as it may not have been told. All others it kills, and awaits their end, before it starts
   another. Until then systemd keeps their channels: a holder that dies on the way leaves them to the one after it;
3. so who was told and sees its channel's end has no next holder, and may end the attachment in order.

That systemd hears what a process had told it before it sees that process's end is systemd's word. Were it otherwise,
the next worker would still wait until the one before has ended (serving.py).

SIGUSR2 ends a holder for good (device/attacher/teardown.py): the unit counts it as success, so that nobody comes back.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import socket
import sys
import time

if __name__ == "__main__":
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..")))

from blobfuse_dysk import environment
from blobfuse_dysk.device.holder.holder import Holder
from blobfuse_dysk.device.holder.reservation import Reservation
from blobfuse_dysk.device.holder.sdnotify import Notify, kept
from blobfuse_dysk.device.holder.workers import Crew, WorkerProcess
from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.ipc.log import WARNING
from blobfuse_dysk.device.kernel import fuse
from blobfuse_dysk.errors import DeviceError

TYPE_CHECKING = False  # importing typing would cost half a MiB
if TYPE_CHECKING:
    from typing import Any

__all__ = ["KeptCrew", "KeptHolder", "main"]

_VERSION = 1  # of the life; a holder that does not know it lets the attachment go
_PARTS = ("fuse", "config", "ring", "control", "life")


class _KeptPlace(Reservation):
    """A place that was made by a holder before."""

    def __init__(self, order: dict[str, Any], fds: dict[str, int], init: bytes) -> None:
        super().__init__(order["run"], order["dev"], order["name"])
        self._made = True
        self.fuse_fd = fds["fuse"]
        self.control = socket.socket(fileno=fds["control"])
        self.init = init


class KeptCrew(Crew):
    """A crew whose descriptors are kept, from `keep` on."""

    def __init__(
        self,
        order: dict[str, Any],
        place: Reservation,
        notify: Notify,
        config_fd: int,
        ring_fd: int | None = None,
        life_fd: int | None = None,
    ) -> None:
        super().__init__(order["name"], order["log"], place, config_fd, ring_fd)
        self._order = order
        self._notify = notify
        self._life_fd = os.memfd_create("dysk-life") if life_fd is None else life_fd

    def keep(self, command: dict[str, Any]) -> None:
        """Have everything kept but the worker. command: to start the next."""
        assert self._place.control
        self._write_life(command)
        fds = (self._place.fuse_fd, self._config_fd, self._ring_fd, self._place.control.fileno(), self._life_fd)
        for name, fd in zip(_PARTS, fds, strict=True):
            self._notify.keep(name, fd)

    def keep_worker(self, worker: WorkerProcess, command: dict[str, Any]) -> None:
        """Have the way to this worker kept; systemd lets go of it when the worker dies. command: to start the next."""
        channel, stderr = _kept_names(state.identity(worker.pid))
        self._notify.keep(channel, worker.channel.fileno(), watch=True)
        self._notify.keep(stderr, worker.stderr, watch=True)
        self._write_life(command)

    def _write_life(self, command: dict[str, Any]) -> None:
        init = base64.b64encode(self._place.init).decode()
        life = {"version": _VERSION, "command": command, "order": self._order, "init": init}
        data = json.dumps(life).encode() + b"\n"  # the first line counts, should we die in the middle
        os.pwrite(self._life_fd, data, 0)
        os.ftruncate(self._life_fd, len(data))

    def forget(self) -> None:
        """Have everything let go of: the FUSE connection ends with its last descriptor."""
        for name in _PARTS:
            self._notify.forget(name)

    def replace_config(self, fd: int) -> None:
        """Later workers get this configuration, those of a later holder, too."""
        super().replace_config(fd)
        self._notify.forget("config")
        self._notify.keep("config", fd)


class KeptHolder(Holder):
    """A holder that its successor can follow, from the commit on."""

    _crew: KeptCrew
    _follows = False  # one that died

    @classmethod
    def again(cls, notify: Notify, fds: dict[str, int], life: dict[str, Any], earlier: dict[str, Any]) -> KeptHolder:
        """The holder after one that died. earlier: what state.json has."""
        known, command, order = earlier["worker"], life["command"], life["order"]
        names = _kept_names(known) if known else ()
        adopted = _adopt(known, *(fds.get(name) for name in names)) if known else None
        if not adopted:
            names = ()
            end_process(known)
        others = fds.keys() - {*_PARTS, *names}
        for name in others:
            if name.startswith("channel-"):
                end_process(_process_of(name))
        for name in others:
            os.close(fds[name])
            notify.forget(name)
        worker = adopted or WorkerProcess.start(command)
        place = _KeptPlace(order, fds, base64.b64decode(life["init"]))
        crew = KeptCrew(order, place, notify, fds["config"], fds["ring"], fds["life"])
        holder = cls(None, command, order, worker, place, crew)
        fields = holder._state.fields
        fields.update(
            {key: value for key, value in earlier.items() if key not in ("version", "protocol", "holder", "worker")}
        )
        fields["restarts"] += not adopted
        died = message.error_to_message(DeviceError("the holder died meanwhile", remedy="try again"))
        for asked in fields["upgrades"].values():
            if not asked["done"]:
                asked |= {"done": True, "error": died}
        holder._ready = holder._committed = holder._follows = True
        holder._unanswered = not adopted
        holder._down_since = None if adopted else time.monotonic()
        how = "goes on" if adopted else "is new, too"
        holder._log(f"the holder died; this is the next one, and worker {worker.pid} {how}", WARNING)
        return holder

    def run(self) -> int:
        """Live until the attachment ends. An attach that failed is no failure of the service: it was reported."""
        super().run()
        return 0

    def _begin(self) -> bool:
        """The place is there, after a holder that died; so nothing here is a reason to give the attachment up."""
        if not self._follows:
            return super()._begin()
        worker = self._worker
        assert worker
        can_resend = fuse.can_resend(self._place.init)
        self._use(worker)
        if self._unanswered and not can_resend:
            worker.kill()  # its death is then judged as that of the one before would have been
        self._crew.brief(worker, self._state.fields, resend=can_resend)
        message.send(worker.channel, {"op": "resume"}, wait=False)  # from a drain that the holder before asked for
        if self._bound() is None:  # what said so may have been lost with the old holder
            self._end()
        return True

    def _commit(self, device: str) -> dict[str, Any] | None:
        error = super()._commit(device)
        if error is None:
            if self._worker:
                self._crew.keep_worker(self._worker, self._handover.command)
            self._crew.keep(self._handover.command)
        return error

    def _use(self, worker: WorkerProcess) -> None:
        if self._committed and worker.ours:  # any other is kept since a holder before used it
            self._crew.keep_worker(worker, self._handover.command)
        super()._use(worker)

    def _fail(self, reason: str) -> None:
        self._crew.forget()
        super()._fail(reason)


def end_process(process: dict[str, int] | None) -> None:
    """Kill it and wait for its end, however long that takes."""
    pidfd = state.open_process(process)
    if pidfd is None:
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    os.close(pidfd)


def _adopt(process: dict[str, int], channel: int | None, stderr: int | None) -> WorkerProcess | None:
    """The worker whose descriptors these are, if it is there still."""
    if channel is None or stderr is None or not state.alive(process):
        return None
    pidfd = state.open_process(process)
    if pidfd is None:
        return None
    return WorkerProcess(process["pid"], pidfd, socket.socket(fileno=channel), stderr, ours=False)


def _kept_names(process: dict[str, int]) -> tuple[str, str]:
    """Under which a worker's channel and standard error are kept."""
    who = f"{process['pid']}-{process['start']}"
    return f"channel-{who}", f"stderr-{who}"


def _process_of(name: str) -> dict[str, int]:
    """Whose descriptor is kept under this name."""
    _, pid, start = name.split("-")
    return {"pid": int(pid), "start": int(start)}


def _read_life(fd: int) -> dict[str, Any]:
    life: dict[str, Any] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0).partition(b"\n")[0])
    if life["version"] != _VERSION:
        raise ValueError(f"version {life['version']}")
    return life


def _resume(notify: Notify, run: str, name: str, fds: dict[str, int]) -> int:
    """After the death of a holder that had committed. When the state is gone, the attachment was ended meanwhile."""
    earlier = state.read(run, name)
    if earlier is None or any(part not in fds for part in _PARTS):
        return 0
    return KeptHolder.again(notify, fds, _read_life(fds["life"]), earlier).run()


def _attach(notify: Notify, run: str, name: str) -> int:
    """A new attachment, for the process that waits for us; without one this service has nothing to do."""
    attacher = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        attacher.connect(state.launch_path(run, name))
    except OSError:
        return 0
    command, _ = message.receive(attacher)
    if command is None:
        return 0
    worker = WorkerProcess.start(command)
    order, fds = message.receive(attacher)
    if order is None:
        worker.kill()
        return 0
    place = Reservation(order["run"], order["dev"], order["name"])
    crew = KeptCrew(order, place, notify, fds[0])
    return KeptHolder(attacher, command, order, worker, place, crew).run()


def main() -> int:
    """Hold, as a service. Return the exit status; systemd starts us again when it is not 0."""
    run, name = (sys.argv[sys.argv.index(option) + 1] for option in ("--run", "--name"))
    variables = environment.service_variables()
    os.umask(0o077)
    notify = Notify(variables.get("NOTIFY_SOCKET"))
    fds = kept(variables)
    notify.ready()
    return _resume(notify, run, name, fds) if "life" in fds else _attach(notify, run, name)


if __name__ == "__main__":
    os._exit(main())  # nothing is left to tidy up, and somebody waits for the end
