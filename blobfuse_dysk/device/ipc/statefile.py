"""What stands in state.json, and the parts that messages have in common with it, as types.

A state.json is read by every version that knows its VERSION (state.py): by commands, by the next holder, and by the
next worker, which gets it with its briefing. A field that comes later is NotRequired, or VERSION changes. Readers leave
out what they do not know at the top; records inside stay as they are for as long as VERSION does.
"""

from __future__ import annotations

from blobfuse_dysk.device.ipc.shapes import Rule, at_least, at_most_characters

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from typing import Annotated, Literal, NotRequired, TypedDict
else:
    from blobfuse_dysk.device.ipc.shapes import Annotated, Literal, NotRequired, TypedDict

__all__ = [
    "Change",
    "Failure",
    "FirstState",
    "Lease",
    "Process",
    "Seconds",
    "State",
    "StateFile",
    "StateSeen",
    "Text",
    "UpgradeAnswer",
]

# starting    it is being attached: nobody may use it yet
# attached    all is well
# recovering  a new worker takes over, or the service does not answer: I/O waits, up to io-timeout
# paused      the lease cannot be renewed for now: writes wait, up to io-timeout
# fenced      another node has the disk, or had it: all I/O fails, for good
# failed      nothing is written any more, for good, for another reason: see `detail`; what can be read still may be
State = Literal["starting", "attached", "recovering", "paused", "fenced", "failed"]
# dead        the holder is gone, so that nobody could write it down: whoever reads state.json sees that
StateSeen = Literal["starting", "attached", "recovering", "paused", "fenced", "failed", "dead"]

Seconds = Annotated[float, at_least(0)]
Text = Annotated[str, at_most_characters(4096)]  # for people; who sends one cuts it off far below (message.clip)
_Pid = Annotated[int, Rule("a process id", lambda value: 0 < value < 1 << 31)]


class Process(TypedDict):
    """What names a process for ever: see state.identity."""

    pid: _Pid
    start: int


class Lease(TypedDict):
    """id: as the service knows it. epoch: the blob's sequence number. seconds: its term; None for infinite."""

    id: str
    epoch: int
    seconds: float | None


class Failure(TypedDict):
    """An error that crosses processes: see message.error_to_message.

    data: the fields of its class; not there from a version that knew none.
    """

    type: str
    message: Text
    remedy: Text | None
    data: NotRequired[dict[str, object]]


class UpgradeAnswer(TypedDict):
    """What became of a request for another worker. error: None if it was replaced, or is being replaced."""

    done: bool
    error: Failure | None


class FirstState(TypedDict):
    """What the attaching process gives. Sizes in bytes, of the device and of the blob; 0 until a worker knows.

    disk: ACCOUNT/CONTAINER/BLOB[?snapshot=TIME]. io_timeout_s, iops, mbps: as AttachOptions has them, and as `dyskctl
    set` changed them; None for no limit. since: ISO 8601, UTC.
    """

    disk: str
    endpoint: str
    size: int
    blob_size: int
    vhd: bool
    read_only: bool
    sector_size: int
    cache: Literal["none", "readonly", "readwrite"]
    io_timeout_s: Seconds | None
    iops: int | None
    mbps: float | None
    since: str


class StateFile(FirstState):
    """All of state.json.

    detail: why it is in that state, and what to do. state_since: when it came into that state, ISO 8601, UTC.
    device: /dev/loopN; None until the attachment is committed. worker: None while there is none. connection: number
    of the FUSE connection; None until it is mounted. restarts: of the worker, by surprise. protocol: what the
    holder speaks (message.py). upgrades: by the request's id, the last few. lease: None for a read-only attachment,
    and until it is taken. lost: why the first write that was refused was, if one was.
    """

    version: int
    name: str
    state: State
    state_since: NotRequired[str]
    detail: str | None
    device: str | None
    holder: Process
    worker: Process | None
    connection: int | None
    restarts: int
    protocol: int
    worker_version: str | None
    upgrades: dict[str, UpgradeAnswer]
    lease: Lease | None
    lost: str | None


class Change(TypedDict):
    """Some fields of a StateFile: those that change while the attachment lasts."""

    state: NotRequired[State]
    state_since: NotRequired[str]
    detail: NotRequired[str | None]
    device: NotRequired[str | None]
    worker: NotRequired[Process | None]
    connection: NotRequired[int | None]
    restarts: NotRequired[int]
    worker_version: NotRequired[str | None]
    upgrades: NotRequired[dict[str, UpgradeAnswer]]
    lease: NotRequired[Lease | None]
    lost: NotRequired[str | None]
    size: NotRequired[int]
    blob_size: NotRequired[int]
    vhd: NotRequired[bool]
    io_timeout_s: NotRequired[Seconds | None]
    iops: NotRequired[int | None]
    mbps: NotRequired[float | None]
