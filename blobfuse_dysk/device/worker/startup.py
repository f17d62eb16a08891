"""What a worker needs before it serves: its orders, a process that is fit for it, and then the block layer of its disk.

A holder may be of another version than its worker. PROTOCOLS (message.py) are the numbers of the holders that this
worker can serve. One that is not among them is told so, and this worker ends without touching anything; so it is with
one whose briefing does not fit the table.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType

from blobfuse_dysk import __version__
from blobfuse_dysk.azure.credential import access
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.device.ipc import door, message, shapes
from blobfuse_dysk.device.ipc.config import Config
from blobfuse_dysk.device.ipc.log import ERROR, INFO, WARNING, Log
from blobfuse_dysk.device.ipc.messages import Failed, StandingBy
from blobfuse_dysk.device.ipc.statefile import Lease, StateFile
from blobfuse_dysk.device.kernel import hardening, privileges
from blobfuse_dysk.device.worker import delegate
from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.invariant import end_by
from blobfuse_dysk.store.lease.token import HoldState
from blobfuse_dysk.store.open import ResumeState, open_stack
from blobfuse_dysk.store.parts.ring import Ring
from blobfuse_dysk.store.stack import Stack, StackOptions

__all__ = [
    "Briefing",
    "LogHandler",
    "OpenStack",
    "await_go",
    "holder_channel",
    "leaves",
    "open_real_stack",
    "prepare_process",
    "resume_state",
    "say_why",
    "take_briefing",
]

_STACK_BYTES = 1 << 20  # of a thread (for a name service, for instance); what it has touched stays in memory
BROKEN_STATUS = 70  # EX_SOFTWARE; the holder logs it
_log = logging.getLogger(__name__)

OpenStack = Callable[
    [Config, Credential, ResumeState | None, int, Callable[[HoldState], None]], AbstractAsyncContextManager[Stack]
]


@dataclass(frozen=True, slots=True)
class Briefing:
    """What a worker knows when it begins to serve.

    init: the kernel's FUSE_INIT, base64. resume: state.json's fields, for a worker after the first. resend: requests
    died with the worker before. standby: begin when `await_go` says so. The descriptors belong to the worker. taken_fd:
    None where the kernel sends requests again, and from a holder that speaks protocol 2.
    """

    name: str
    log: str
    init: str
    resume: StateFile | None
    resend: bool
    standby: bool
    config_fd: int
    fuse_fd: int
    control_fd: int
    ring_fd: int
    taken_fd: int | None = None


def holder_channel() -> socket.socket:
    """The channel to the holder, which is this process's standard input; children of it must not keep that open."""
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return channel


def take_briefing(channel: socket.socket) -> Briefing | None:
    """Wait for the holder's briefing. None: the holder is gone, or is one that this version cannot serve."""
    data, fds, whole = message.receive_packet(channel)
    if not data:
        return None
    error = _unknown_holder(data)
    if error is None:
        refused: list[str] = []
        received = door.HOLDER_TO_WORKER.admit(data, fds, refused.append, whole=whole)
        order = received.message
        if order and (order["op"] == "start" or order["op"] == "standby"):
            return Briefing(
                order["name"],
                order["log"],
                order["init"],
                order["resume"],
                order["resend"],
                order["op"] == "standby",
                *received.fds,
            )
        error = DeviceError("; ".join(refused) or "the holder does not begin with a briefing")
        fds = received.fds
    for fd in fds:
        os.close(fd)
    event: Failed = {"event": "error", "error": message.error_to_message(error)}
    message.send(channel, event)
    print(error, file=sys.stderr)  # nobody has said yet where the log is; the holder reads this
    return None


def _unknown_holder(data: bytes) -> DeviceError | None:
    """What to say to a holder whose protocol is another, and with it perhaps everything else in its briefing."""
    try:
        protocol = shapes.parse(data)["protocol"]
    except (ValueError, TypeError, KeyError):
        return None  # the door says what is wrong with it
    if protocol in message.PROTOCOLS:
        return None
    return DeviceError(
        f"version {__version__} cannot take over from a holder that speaks protocol {protocol}, "
        f"it knows {', '.join(map(str, message.PROTOCOLS))}",
        remedy="detach the disk and attach it again to have the new version",
    )


def await_go(channel: socket.socket) -> tuple[StateFile | None, bool] | None:
    """Tell the holder that this worker stands by; return (resume, resend) when it is its turn, None if never."""
    event: StandingBy = {"event": "standing-by"}
    message.send(channel, event)
    while not (received := door.receive(channel, door.HOLDER_TO_WORKER, _log.error)).gone:
        for fd in received.fds:
            os.close(fd)
        order = received.message  # "go"; or "start", of a holder that does not know what the last one said
        if order and (order["op"] == "go" or order["op"] == "start"):
            return order["resume"], order["resend"]
    return None


def prepare_process(briefing: Briefing, monitor: socket.socket) -> None:
    """Log where the holder logs, and make this a process that serves block I/O, and can do little else.

    See device/kernel/hardening.py and privileges.py; what takes root after this is done by device/monitor.
    """
    sys.excepthook = say_why
    logging.basicConfig(level=logging.INFO, handlers=[LogHandler("dysk-worker", briefing.name, briefing.log)])
    os.set_blocking(sys.stderr.fileno(), False)  # where log lines may go, and nobody may read it for a while
    access.use(delegate.start(monitor, briefing.config_fd))
    for warning in hardening.harden("dysk-worker"):
        _log.warning("%s", warning)
    # CAP_SYS_RESOURCE is among what goes. With it libfuse makes a pipe large enough for any request and splices each
    # through that, which costs a small one a quarter of its time. Without it reads them into its buffers.
    if why := privileges.drop():
        _log.info("the worker has more rights than it needs; %s", why)
    threading.stack_size(_STACK_BYTES)


class LogHandler(logging.Handler):
    """Sends what Python's logging collects to the attachment's log."""

    def __init__(self, program: str, name: str, directory: str) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))  # as the holder's: the log has time, process and name
        self._write = Log(program, name, directory, holder=sys.stderr.fileno())

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, with its traceback if it has one."""
        priority = ERROR if record.levelno >= logging.ERROR else WARNING if record.levelno >= logging.WARNING else INFO
        level = "" if priority == INFO else f"{record.levelname.lower()}: "
        self._write(level + self.format(record), priority)


@asynccontextmanager
async def open_real_stack(
    config: Config,
    credential: Credential,
    held: ResumeState | None,
    ring_fd: int,
    on_state: Callable[[HoldState], None],
) -> AsyncIterator[Stack]:
    """Open the disk that the configuration names, dirty ring and stack; a broken invariant ends this process."""
    end_by(_die)
    options = StackOptions.of(config.options, config.node)
    ring = Ring(ring_fd, config.options.write_cache_size) if options.writes_back else None
    try:
        async with open_stack(config.address, credential, options, resume=held, ring=ring, on_state=on_state) as stack:
            yield stack
    finally:
        if ring:
            ring.close()


def _die(what: str) -> None:
    """Leave everything as it is to the next worker; no other task of this one gets another step."""
    _log.critical("this worker cannot be trusted any more and ends: %s", what, stack_info=True)
    os._exit(BROKEN_STATUS)


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions in a group and the groups in it: why an open block layer came to its end."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def say_why(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As sys.excepthook: the traceback, and then why this process ends, in one line.

    The holder hands its worker's last line on; that of a traceback of a group is a frame's lower edge.
    """
    traceback.print_exception(kind, error, trace)
    why = leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    print("; ".join(dict.fromkeys(" ".join(f"{type(each).__name__}: {each}".split()) for each in why)), file=sys.stderr)


def resume_state(lease: Lease | None) -> ResumeState | None:
    """What state.json says of the lease that is to be taken up."""
    return ResumeState(lease["id"], lease["epoch"], lease["seconds"]) if lease else None
