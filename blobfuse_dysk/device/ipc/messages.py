"""Every message between the processes of an attachment, once: who sends it, who answers, since when, which fields.

TABLE is the whole of it. The class of a row is the message, for mypy as for the door of its receiver (door.py), which
lets nothing in that does not fit. An order says what is to be done and has its name in `op`; an event says what
happened and has it in `event`.

Holder and worker may be of different versions (message.py). They have one number, the protocol, and what has that
number is one table: a message or a field more is another number, since the other side would refuse it. So a worker that
knows several numbers sends a holder only what is `since` its number or before, and the receiver may be as strict as it
is. A holder hands its number to a worker in the briefing, where it is read before anything else is looked at
(worker/startup.py). Between attaching process and holder, which are of one version, the number says nothing.
"""

from __future__ import annotations

from blobfuse_dysk.device.ipc.shapes import Rule, at_most_characters
from blobfuse_dysk.device.ipc.statefile import Failure, FirstState, Lease, Seconds, State, StateFile, Text

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from typing import Annotated, Any, Literal, NotRequired, TypedDict
else:
    from blobfuse_dysk.device.ipc.shapes import Annotated, Literal, NotRequired, TypedDict

__all__ = [
    "ATTACHER",
    "HOLDER",
    "TABLE",
    "TEMPLATE",
    "WORKER",
    "Abandon",
    "AttacherOrder",
    "Begin",
    "Briefing",
    "Command",
    "Commit",
    "Committed",
    "ConfigChanged",
    "Drain",
    "Drained",
    "End",
    "Ended",
    "Environment",
    "Failed",
    "Flush",
    "Fork",
    "Forked",
    "Freezing",
    "Go",
    "HolderEvent",
    "HolderOrder",
    "Message",
    "Program",
    "Ready",
    "Released",
    "Resume",
    "StandingBy",
    "StateChanged",
    "UpgradeAsked",
    "WorkerEvent",
    "WorkerReady",
]

_no_nul = Rule("without a NUL", lambda value: "\0" not in value)
Argument = Annotated[str, _no_nul]
Argv = Annotated[list[Argument], Rule("with a program", lambda value: bool(value and value[0]))]
Environment = Annotated[
    dict[Argument, Argument], Rule("with names that can be", lambda value: all(key and "=" not in key for key in value))
]
RequestId = Annotated[str, at_most_characters(64)]


class Program(TypedDict):
    """How workers are started."""

    worker: Argv
    environment: Environment


# Between the attaching process and the template (device/template), which are of one version.


class Fork(TypedDict):
    """Have this holder, which would be started by this command line, and inherit this. With its standard input."""

    op: Literal["fork"]
    holder: Argv
    environment: Environment
    inherited: str


class Forked(TypedDict):
    """There is one. Whoever is not told so starts it."""

    event: Literal["forked"]


# From the attaching process to the holder.


class Command(Program):
    """The first of all, so that the worker's imports, which take longest, begin at once."""

    op: Literal["command"]


class Begin(TypedDict):
    """What to attach, and where things are. With the worker's configuration (config.py)."""

    op: Literal["begin"]
    name: Argument
    run: Argument
    dev: Argument
    log: Argument
    state: FirstState


class Commit(TypedDict):
    """The device is set up: from now on the attachment is independent of this process."""

    op: Literal["commit"]
    device: str


class Abandon(TypedDict):
    """Take all back."""

    op: Literal["abandon"]


# From the holder to the attaching process.


class Ready(TypedDict):
    """The file can be opened."""

    event: Literal["ready"]
    state: StateFile


class Committed(TypedDict):
    """It is."""

    event: Literal["committed"]


class Failed(TypedDict):
    """Why there is no attachment, or no worker. To the attaching process, and from a worker to its holder."""

    event: Literal["error"]
    error: Failure


# From the holder to a worker.


class Briefing(TypedDict):
    """Serve, or stand by until `go`. With configuration, FUSE connection, control socket, dirty ring, and the
    memory of taken requests where the kernel cannot send them again (since protocol 3).

    init: the kernel's FUSE_INIT, base64. resume: for a worker after the first. resend: requests died with the one
    before. To a worker that has it already it changes nothing.
    """

    op: Literal["start", "standby"]
    protocol: int
    name: Argument
    log: Argument
    init: str
    resume: StateFile | None
    resend: bool


class Go(TypedDict):
    """The worker before this one is gone; so is what its briefing said of the state."""

    op: Literal["go"]
    resume: StateFile
    resend: bool


class Drain(TypedDict):
    """Take no more requests, and say when those that were taken are answered, or that they are not within limit_s."""

    op: Literal["drain"]
    id: RequestId
    limit_s: Seconds


class Resume(TypedDict):
    """Take requests again, after a drain."""

    op: Literal["resume"]


class Flush(TypedDict):
    """Write out what is accepted: the end may be near."""

    op: Literal["flush"]


class End(TypedDict):
    """Flush, release the lease, say `ended`, exit."""

    op: Literal["end"]


# From a worker to its holder.


class StandingBy(TypedDict):
    """It read its briefing and can go on at once."""

    event: Literal["standing-by"]


class WorkerReady(TypedDict):
    """It serves. lease: if the block layer is open by then."""

    event: Literal["ready"]
    size: int
    blob_size: int
    vhd: bool
    worker_version: str
    lease: NotRequired[Lease | None]


class StateChanged(TypedDict):
    """What is different now, for state.json."""

    event: Literal["state"]
    state: NotRequired[State]
    detail: NotRequired[Text | None]
    lease: NotRequired[Lease | None]
    lost: NotRequired[Text]
    size: NotRequired[int]
    blob_size: NotRequired[int]
    io_timeout_s: NotRequired[Seconds | None]
    iops: NotRequired[int | None]
    mbps: NotRequired[float | None]


class Released(TypedDict):
    """The last handle of the file was closed, or somebody asked for the end: look whether a device still has it."""

    event: Literal["released"]


class UpgradeAsked(TypedDict):
    """Replace this worker by that program. path: its PYTHONPATH. The answer stands in state.json, under the id."""

    event: Literal["upgrade"]
    id: RequestId
    worker: Argv
    path: Argument


class ConfigChanged(TypedDict):
    """Later workers begin with this configuration, which comes with it."""

    event: Literal["config"]


class Drained(TypedDict):
    """The answer to a drain. drained: all that was taken is answered."""

    event: Literal["drain"]
    id: RequestId
    drained: bool


class Freezing(TypedDict):
    """What is mounted on the disk is going to be frozen: see to it that it is thawed (ipc/freezerecord.py)."""

    event: Literal["freezing"]


class Ended(TypedDict):
    """Flushed, released, about to exit. aborted: the FUSE connection ended first."""

    event: Literal["ended"]
    aborted: bool


AttacherOrder = Command | Begin | Commit | Abandon
HolderEvent = Ready | Committed | Failed
HolderOrder = Briefing | Go | Drain | Resume | Flush | End
WorkerEvent = (
    StandingBy
    | WorkerReady
    | StateChanged
    | Released
    | UpgradeAsked
    | ConfigChanged
    | Drained
    | Freezing
    | Failed
    | Ended
)

ATTACHER, HOLDER, WORKER, TEMPLATE = "the attaching process", "the holder", "the worker", "the template"


class Message:
    """A row. record: its class. answer: the class of what answers it, if something does. since: which protocol.

    fds: how many descriptors come with it. more: and how many may.
    """

    def __init__(
        self,
        sender: str,
        receiver: str,
        record: Any,
        *,
        answer: Any = None,
        since: int = 1,
        fds: int = 0,
        more: int = 0,
    ) -> None:
        self.sender = sender
        self.receiver = receiver
        self.record = record
        self.answer = answer
        self.since = since
        self.fds = fds
        self.more = more


TABLE = (
    Message(ATTACHER, TEMPLATE, Fork, answer=Forked, fds=1),
    Message(TEMPLATE, ATTACHER, Forked),
    Message(ATTACHER, HOLDER, Command, since=2),
    Message(ATTACHER, HOLDER, Begin, answer=Ready, since=2, fds=1),
    Message(ATTACHER, HOLDER, Commit, answer=Committed),
    Message(ATTACHER, HOLDER, Abandon),  # answered by the end of the channel
    Message(HOLDER, ATTACHER, Ready),
    Message(HOLDER, ATTACHER, Committed),
    Message(HOLDER, ATTACHER, Failed),
    Message(HOLDER, WORKER, Briefing, answer=WorkerReady, fds=4, more=1),  # StandingBy, if it is to stand by
    Message(HOLDER, WORKER, Go, answer=WorkerReady),
    Message(HOLDER, WORKER, Drain, answer=Drained, since=2),
    Message(HOLDER, WORKER, Resume),
    Message(HOLDER, WORKER, Flush),
    Message(HOLDER, WORKER, End, answer=Ended),
    Message(WORKER, HOLDER, StandingBy, answer=Go),
    Message(WORKER, HOLDER, WorkerReady),
    Message(WORKER, HOLDER, StateChanged),
    Message(WORKER, HOLDER, Released, answer=End),  # if no device has the file
    Message(WORKER, HOLDER, UpgradeAsked),
    Message(WORKER, HOLDER, ConfigChanged, fds=1),
    Message(WORKER, HOLDER, Drained, since=2),
    Message(WORKER, HOLDER, Freezing, since=2),
    Message(WORKER, HOLDER, Failed),
    Message(WORKER, HOLDER, Ended),
)
