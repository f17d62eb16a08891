"""Asking a worker something: one JSON object a line over /run/dysk/NAME/control.sock, one answer a line.

    {"op": "status"}                    -> {"ok": true, "status": {...}}
    {"op": "blank"}                     -> {"ok": true, "blank": bool}
    {"op": "set", "io_timeout_s": 60, "iops": 500, "mbps": null} -> {"ok": true}: those that are given; null: no limit
    {"op": "grow", "size": 2199023255552} -> {"ok": true}: the file has so many bytes now, the device not yet
    {"op": "guard"}                     -> {"ok": true}: the holder is told of a freeze (freezerecord.py)
    {"op": "barrier", "timeout_s": 10}  -> {"ok": true, "etag": "..."}: what was written is at the service, as of this
    {"op": "snapshot", "metadata": {...}, "etag": "...", "timeout_s": 10} -> {"ok": true, "time": "...", "size": 512}
    {"op": "reload", "file": "..."}     -> {"ok": true, "credential": {...}}; file: null for the one it came from
    {"op": "reload", "file": null, "descriptor": true}, with a memfd beside it that has the text of a credential file
    {"op": "upgrade", "id": "...", "worker": [...], "path": "..."} -> {"ok": true}: begun; state.json says how it ends
    {"op": "stop"}                      -> {"ok": true}: ends the attachment if no loop device is on it any more
    {"op": "watch"}                     -> {"ok": true} when the disk's end was clean, which may be long after
    anything that failed                -> {"ok": false, "error": {"type": ..., "message": ..., "remedy": ...}}

QUESTIONS has the same with all fields. A command may be of another version than the worker, so answers may have more
fields than are known here; a question may not, since the worker would not do what it says. What does not fit is
refused: a question with an answer that says why, and a line in the log; an answer as a DyskError.

The holder keeps the listening socket, so a question to an attachment whose worker is being replaced waits for the new
one.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence

from blobfuse_dysk.device.ipc import shapes
from blobfuse_dysk.device.ipc.message import message_to_error
from blobfuse_dysk.device.ipc.messages import Argument, Argv, RequestId
from blobfuse_dysk.device.ipc.statefile import Failure, Seconds
from blobfuse_dysk.errors import DeviceError, DyskError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, NotRequired, TypedDict
else:
    from blobfuse_dysk.device.ipc.shapes import Literal, NotRequired, TypedDict

__all__ = [
    "QUESTIONS",
    "BarrierAnswer",
    "BarrierQuestion",
    "BlankAnswer",
    "Control",
    "CredentialAnswer",
    "CredentialSeen",
    "Done",
    "GrowQuestion",
    "Question",
    "ReloadQuestion",
    "SetQuestion",
    "SimpleQuestion",
    "SnapshotAnswer",
    "SnapshotQuestion",
    "StatusAnswer",
    "UpgradeQuestion",
]


class SimpleQuestion(TypedDict):
    """One without arguments."""

    op: Literal["status", "blank", "guard", "stop", "watch"]


class SetQuestion(TypedDict):
    """The options that are changed, as in AttachOptions and LiveOptions, which say what may be (options.py)."""

    op: Literal["set"]
    io_timeout_s: NotRequired[float | None]
    iops: NotRequired[float | None]
    mbps: NotRequired[float | None]
    trace_s: NotRequired[float | None]


class GrowQuestion(TypedDict):
    """size: of the device from now on, in bytes; see growth.py."""

    op: Literal["grow"]
    size: int


class BarrierQuestion(TypedDict):
    """Flush, for timeout_s at most."""

    op: Literal["barrier"]
    timeout_s: Seconds


class SnapshotQuestion(TypedDict):
    """Have the service make a snapshot, in one request. See store/snapshot.py, and there for `etag`."""

    op: Literal["snapshot"]
    metadata: dict[str, str]
    etag: str | None
    timeout_s: Seconds


class ReloadQuestion(TypedDict):
    """file: the credential file from now on; None for the one it came from.

    descriptor: it is in the memfd that comes beside the question, so that no file ever has it.
    """

    op: Literal["reload"]
    file: Argument | None
    descriptor: NotRequired[bool]


class UpgradeQuestion(TypedDict):
    """See messages.UpgradeAsked."""

    op: Literal["upgrade"]
    id: RequestId
    worker: Argv
    path: Argument


class Done(TypedDict):
    """It is done, or begun."""

    ok: Literal[True]


class StatusAnswer(Done):
    """status: what the worker counts, see Stack.status."""

    status: dict[str, object]


class BlankAnswer(Done):
    """blank: no page of the device is allocated, and none that was read has a byte set."""

    blank: bool


class BarrierAnswer(Done):
    """etag: what the blob had after the flush."""

    etag: str


class SnapshotAnswer(Done):
    """time: names it. size: of the blob, in bytes. A failure of which `unknown` is true may have made one."""

    time: str
    size: int


class CredentialSeen(TypedDict):
    """A credential, for people. expires: ISO 8601, UTC, if it is known that it ends.

    problem: why a newer one that there is is not in use; not there in the answers of versions before 1.1.
    """

    what: str
    expires: str | None
    expires_in_s: float | None
    problem: NotRequired[str | None]


class CredentialAnswer(Done):
    """The credential that is in use now."""

    credential: CredentialSeen


class _Failed(TypedDict):
    ok: Literal[False]
    error: Failure


class Question:
    """A row: the class of a question, and that of its answer."""

    def __init__(self, record: Any, answer: Any) -> None:
        self.record = record
        self.answer = answer


QUESTIONS = {
    "status": Question(SimpleQuestion, StatusAnswer),
    "blank": Question(SimpleQuestion, BlankAnswer),
    "set": Question(SetQuestion, Done),
    "reload": Question(ReloadQuestion, CredentialAnswer),
    "grow": Question(GrowQuestion, Done),
    "guard": Question(SimpleQuestion, Done),
    "barrier": Question(BarrierQuestion, BarrierAnswer),
    "snapshot": Question(SnapshotQuestion, SnapshotAnswer),
    "upgrade": Question(UpgradeQuestion, Done),
    "stop": Question(SimpleQuestion, Done),
    "watch": Question(SimpleQuestion, Done),
}


class Control:
    """A connection to one worker; a context manager. Errors of the connection are DeviceErrors, others DyskErrors."""

    def __init__(self, path: str, name: str, *, timeout_s: float | None = 10.0) -> None:
        self._name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise self._silent(error) from None
        self._answers = self._socket.makefile("rb")
        self._asked: list[str] = []  # and not answered

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *args: object) -> None:
        self._answers.close()
        self._socket.close()

    def ask(self, op: str, fds: Sequence[int] = (), /, **arguments: object) -> dict[str, Any]:
        """Ask and wait for the answer. Raises the error that the worker answered with, or DeviceError.

        fds: descriptors that go along.
        """
        self.send(op, fds, **arguments)
        return self.answer()

    def send(self, op: str, fds: Sequence[int] = (), /, **arguments: object) -> None:
        """Ask without waiting."""
        line = json.dumps({"op": op, **arguments}).encode() + b"\n"
        try:
            # With its first bytes, so that none of them can come without the other.
            sent = socket.send_fds(self._socket, [line], list(fds)) if fds else 0
            self._socket.sendall(line[sent:])
        except OSError as error:
            raise self._silent(error) from None
        self._asked.append(op)

    def answer(self) -> dict[str, Any]:
        """The answer to the oldest question that has none yet."""
        try:
            line = self._answers.readline()
        except OSError as error:
            raise self._silent(error) from None
        if not line.endswith(b"\n"):
            raise self._silent(ConnectionResetError("it ended"))
        return self._judge(line, self._asked.pop(0))

    def _judge(self, line: bytes, op: str) -> dict[str, Any]:
        try:
            answer = shapes.parse(line)
            failed = isinstance(answer, dict) and answer.get("ok") is False
            record = _Failed if failed else QUESTIONS[op].answer if op in QUESTIONS else Done
            problem = shapes.problem(answer, record, "the answer", surplus=True)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise DyskError(
                f"the worker of {self._name} does not answer {op} as this version expects it: {problem}",
                remedy=f"dyskctl upgrade {self._name} makes them of one version",
            )
        if failed:
            raise message_to_error(answer["error"])
        return dict(answer)

    def _silent(self, error: OSError) -> DeviceError:
        return DeviceError(
            f"the worker of {self._name} does not answer: {error.strerror or error}",
            remedy=f"see the log of {self._name}; dyskctl detach {self._name} --force ends it",
        )
