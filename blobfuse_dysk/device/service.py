"""The holder as a service of systemd, dysk-holder@NAME.service: outside the control group of whatever attached the
disk, and started again when it dies, with all that it had.

Started as `python -I -S service.py --run /run/dysk --name NAME` by the unit in packaging/systemd, which device/unit.py
has started. It connects to the attaching process over /run/dysk/.NAME.launch, where holder.py has a channel as its
standard input. From the commit on, systemd keeps a copy of each descriptor that the attachment consists of (notify.py):

    fuse            the FUSE connection                    config, ring   memfds: secrets; writes not sent yet
    control         the socket where the worker answers    life           memfd: what a holder has to know, as JSON
    channel-PID     to the worker PID                      stderr-PID     the worker's standard error

When the holder dies, its worker notices nothing: the other end of its channel is still open in systemd, and the unit
has KillMode=process. So I/O goes on, on every kernel; the next holder finds the descriptors, takes the worker up where
its predecessor left it, and reads the rest from state.json. What is not survived: the death of holder and worker at the
same time on a kernel that cannot send requests again (before 6.9), and the end of systemd itself. When systemd gives
the unit up, it closes what it kept; the worker then sees its channel end and ends in order, as without systemd.

SIGUSR2 ends a holder for good (device/ending.py): the unit counts it as success, so that nobody comes back.
"""

from __future__ import annotations

import base64
import json
import os
import select
import socket
import sys
import time

if __name__ == "__main__":
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from blobfuse_dysk import environment
from blobfuse_dysk.device import fusefd, message, state
from blobfuse_dysk.device.child import WorkerProcess
from blobfuse_dysk.device.crew import Crew
from blobfuse_dysk.device.holder import Holder
from blobfuse_dysk.device.log import WARNING
from blobfuse_dysk.device.notify import Notify, kept
from blobfuse_dysk.device.reservation import Reservation
from blobfuse_dysk.errors import DeviceError

TYPE_CHECKING = False  # importing typing would cost half a MiB
if TYPE_CHECKING:
    from typing import Any

__all__ = ["AdoptedWorker", "KeptCrew", "KeptHolder", "main"]

_VERSION = 1  # of the life; a holder that does not know it lets the attachment go
_PARTS = ("fuse", "config", "ring", "control", "life")


class AdoptedWorker(WorkerProcess):
    """A worker that a dead holder had started. It is init's child, so how it ends is not known, only that it does."""

    def __init__(self, pid: int, channel: int, stderr: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.channel = socket.socket(fileno=channel)
        self.stderr = stderr
        os.set_blocking(stderr, False)
        self.started = time.monotonic()
        self.listening = True
        self.served = True
        self._last_lines = []
        self._status = 0

    def reap(self) -> list[str]:
        """Wait for the end, as for one's own child."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.poll()
        lines = self.read_stderr()
        self.channel.close()
        os.close(self.stderr)
        os.close(self.pidfd)
        return lines

    def end_text(self) -> str:
        """Its last words."""
        return f"not seen how: {self._last_lines[-1]}" if self._last_lines else "not seen how"


class _KeptPlace(Reservation):
    """A place that exists already: `make` takes it over."""

    def __init__(self, order: dict[str, Any], fds: dict[str, int], init: bytes) -> None:
        super().__init__(order["run"], order["dev"], order["name"])
        self._fds = fds
        self._kept_init = init

    def make(self, mine: dict[str, Any]) -> None:
        """Take over what was made."""
        self._made = True
        self.fuse_fd = self._fds["fuse"]
        self.control = socket.socket(fileno=self._fds["control"])
        self.init = self._kept_init
        state.write(self._run, self._name, mine)


class KeptCrew(Crew):
    """A crew whose descriptors are kept, from `keep` on. It knows what the workers before it left behind."""

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
        self.earlier: dict[str, Any] | None = None  # of a predecessor whose worker is dead, too: for the first briefing

    def keep(self) -> None:
        """Have everything kept but the worker."""
        assert self._place.control
        fds = (self._place.fuse_fd, self._config_fd, self._ring_fd, self._place.control.fileno(), self._life_fd)
        for name, fd in zip(_PARTS, fds, strict=True):
            self._notify.keep(name, fd)

    def keep_worker(self, worker: WorkerProcess, command: dict[str, Any]) -> None:
        """Have the way to this worker kept; systemd lets go of it when the worker dies. command: to start the next."""
        self._notify.keep(f"channel-{worker.pid}", worker.channel.fileno(), watch=True)
        self._notify.keep(f"stderr-{worker.pid}", worker.stderr, watch=True)
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

    def brief(
        self, worker: WorkerProcess, resume: dict[str, Any] | None, *, resend: bool = False, standby: bool = False
    ) -> None:
        """As any crew does; an adopted worker was told all that by the holder before."""
        if isinstance(worker, AdoptedWorker):
            return
        if self.earlier:
            resume, resend, self.earlier = self.earlier, True, None
            if not fusefd.can_resend(self._place.init):
                worker.kill()  # the holder then judges its death as it would have judged that of the one before
        super().brief(worker, resume, resend=resend, standby=standby)


class KeptHolder(Holder):
    """A holder that its successor can follow, from the commit on."""

    _crew: KeptCrew

    @classmethod
    def again(cls, notify: Notify, fds: dict[str, int], life: dict[str, Any], earlier: dict[str, Any]) -> KeptHolder:
        """The holder after one that died. earlier: what state.json has."""
        known, command, order = earlier["worker"], life["command"], life["order"]
        names = [f"{kind}-{known['pid']}" for kind in ("channel", "stderr")] if known else []
        adopted = bool(names) and all(name in fds for name in names) and state.alive(known)
        for name in fds.keys() - {*_PARTS, *(names if adopted else ())}:  # a worker that was to stand by ends by this
            os.close(fds[name])
            notify.forget(name)
        worker = (
            AdoptedWorker(known["pid"], *(fds[name] for name in names))
            if adopted
            else WorkerProcess(command["worker"], command["environment"])
        )
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
        crew.earlier = None if adopted else earlier
        holder._ready = holder._committed = True
        holder._unanswered = not adopted
        how = "goes on" if adopted else "is new, too"
        holder._log(f"the holder died; this is the next one, and worker {worker.pid} {how}", WARNING)
        return holder

    def run(self) -> int:
        """Live until the attachment ends. An attach that failed is no failure of the service: it was reported."""
        super().run()
        return 0

    def _settle(self) -> None:
        """The place is there and the worker is briefed. All but a new worker is kept still, from the holder before."""
        if not self._committed:
            return
        assert self._worker
        self._crew.keep_worker(self._worker, self._handover.command)
        if self._bound() is None:  # what said so may have been lost with the old holder
            self._end()

    def _commit(self, device: str) -> dict[str, Any] | None:
        error = super()._commit(device)
        if error is None and self._worker:
            self._crew.keep_worker(self._worker, self._handover.command)
            self._crew.keep()
        return error

    def _use(self, worker: WorkerProcess) -> None:
        super()._use(worker)
        if self._committed:
            self._crew.keep_worker(worker, self._handover.command)

    def _fail(self, reason: str) -> None:
        self._crew.forget()
        super()._fail(reason)


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
    worker = WorkerProcess(command["worker"], command["environment"])
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
