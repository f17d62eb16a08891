"""The holder as a service of systemd, dysk-holder@NAME.service: outside the control group of whatever attached the
disk, and started again when it dies, with all that it had.

Started as `python -I -S systemd.py --run /run/dysk --name NAME` by the unit in packaging/systemd, which
device/attacher/systemd.py has started. It connects to the attaching process over /run/dysk/.NAME.launch, where
holder.py has a channel as its standard input. From the commit on, systemd keeps a copy of each descriptor that the
attachment consists of (keeper.py, sdnotify.py):

    fuse            the FUSE connection                    config, ring   memfds: secrets; writes not sent yet
    control         the socket where the worker answers    life           memfd: what a holder has to know, as JSON
    taken           memfd: requests in progress, where the kernel cannot send them again (worker/taken.py)
    channel-PID-START, stderr-PID-START      to the worker, its standard error: of what names a process (state.py)

When the holder dies, its worker notices nothing: the other end of its channel is still open in systemd, and the unit
has KillMode=process. So I/O goes on, on every kernel; the next holder finds the descriptors, takes the worker up where
its predecessor left it, and reads the rest from state.json. What is not survived: the end of systemd itself; and, on a
kernel that cannot send requests again (before 6.9), the death of a worker that an older version's holder had begun to
use, as such a one kept no memory for them. When systemd gives the unit up, it closes what it kept; the worker then sees
its channel end and ends in order, as without systemd.

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
import os
import signal
import socket
import sys
import time

if __name__ == "__main__":
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "..")))

from blobfuse_dysk import environment
from blobfuse_dysk.device.holder.actions import Actions
from blobfuse_dysk.device.holder.handover import Handover
from blobfuse_dysk.device.holder.holder import Holder, first_holder
from blobfuse_dysk.device.holder.keeper import (
    MORE_PARTS,
    PARTS,
    SystemdKeeper,
    kept_names,
    newest_config,
    process_of,
    read_life,
)
from blobfuse_dysk.device.holder.lifecycle import Lifecycle
from blobfuse_dysk.device.holder.machine import Worker
from blobfuse_dysk.device.holder.record import Record
from blobfuse_dysk.device.holder.reservation import Reservation
from blobfuse_dysk.device.holder.sdnotify import Notify, kept
from blobfuse_dysk.device.holder.workers import Crew, WorkerProcess
from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.ipc.log import WARNING, Log
from blobfuse_dysk.errors import DeviceError

TYPE_CHECKING = False  # importing typing would cost half a MiB
if TYPE_CHECKING:
    from typing import Any

    from blobfuse_dysk.device.ipc.statefile import Process, StateFile

__all__ = ["end_process", "later_holder", "main"]


def _follow(notify: Notify, fds: dict[str, int], life: dict[str, Any], earlier: StateFile) -> Holder:
    """The holder after one that died. earlier: what state.json has."""
    known, order = earlier["worker"], life["order"]
    names = kept_names(known) if known else ()
    adopted = _adopt(known, *(fds.get(name) for name in names)) if known else None
    if not adopted:
        names = ()
        end_process(known)
    config = newest_config(fds) or "config"
    others = fds.keys() - {*(part for part in PARTS if part != "config"), *MORE_PARTS, config, *names}
    for name in others:
        if name.startswith("channel-"):
            end_process(process_of(name))
    for name in others:
        os.close(fds[name])
        notify.forget(name)
    # A program that has not shown that it can serve is not started again.
    command, former = life["command"], life["former"]
    if former and not adopted:
        command, former = former, None
    worker = adopted or WorkerProcess.start(command)
    place = Reservation.taken_over(
        order["run"], order["dev"], order["name"], fds["fuse"], base64.b64decode(life["init"]), fds["control"]
    )
    log = Log("dysk-holder", order["name"], order["log"])
    record = Record(order["run"], order["name"], order["state"], log, earlier)
    record.fields["restarts"] += not adopted
    died = message.error_to_message(DeviceError("the holder died meanwhile", remedy="try again"))
    for asked in record.fields["upgrades"].values():
        if not asked["done"]:
            asked |= {"done": True, "error": died}
    now = time.monotonic()
    its = Worker(worker.pid, now, served=adopted is not None)
    handover = Handover(command, record.fields["upgrades"], former)
    lifecycle = Lifecycle.following(record.fields, its, handover, adopted=adopted is not None, now=now)
    crew = Crew(order["name"], order["log"], place, fds[config], fds["ring"], fds.get("taken"))
    keeper = SystemdKeeper(notify, order, place, fds["life"], config)
    how = "goes on" if adopted else "is new, too"
    log(f"the holder died; this is the next one, and worker {worker.pid} {how}", WARNING)
    return Holder(Actions(None, record, log, worker, place, crew, keeper), lifecycle, follows=True)


def end_process(process: Process | None) -> None:
    """Kill it and wait for its end, however long that takes."""
    pidfd = state.open_process(process)
    if pidfd is None:
        return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    state.has_ended(pidfd)
    os.close(pidfd)


def _adopt(process: Process, channel: int | None, stderr: int | None) -> WorkerProcess | None:
    """The worker whose descriptors these are, if it is there still."""
    if channel is None or stderr is None or not state.alive(process):
        return None
    pidfd = state.open_process(process)
    if pidfd is None:
        return None
    return WorkerProcess(process["pid"], pidfd, socket.socket(fileno=channel), stderr, ours=False)


def later_holder(notify: Notify, run: str, name: str, fds: dict[str, int]) -> Holder | None:
    """After the death of a holder that had committed. When the state is gone, the attachment was ended meanwhile."""
    earlier = state.read(run, name)
    if earlier is None or newest_config(fds) is None or any(part not in fds for part in PARTS if part != "config"):
        return None
    return _follow(notify, fds, read_life(fds["life"]), earlier)


def _attach(notify: Notify, run: str, name: str) -> Holder | None:
    """A new attachment, for the process that waits for us; without one this service has nothing to do."""
    attacher = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        attacher.connect(state.launch_path(run, name))
    except OSError:
        return None
    return first_holder(attacher, lambda order, place: SystemdKeeper(notify, order, place))


def main() -> int:
    """Hold, as a service. Return the exit status; systemd starts us again when it is not 0.

    An attach that failed is no failure of the service: it was reported.
    """
    run, name = (sys.argv[sys.argv.index(option) + 1] for option in ("--run", "--name"))
    variables = environment.service_variables()
    os.umask(0o077)
    notify = Notify(variables.get("NOTIFY_SOCKET"))
    fds = kept(variables)
    notify.ready()
    holder = later_holder(notify, run, name, fds) if "life" in fds else _attach(notify, run, name)
    if holder:
        holder.run()
    return 0


if __name__ == "__main__":
    os._exit(main())  # nothing is left to tidy up, and somebody waits for the end
