"""Making a snapshot: by the worker that has the disk, with what is mounted on it frozen; or by the service alone.

Of a disk that is attached here, in this order:

1. what is mounted on it is frozen (device/attacher/freezing.py, for a bounded time). If that cannot be, the snapshot is
   crash consistent, and says why;
2. the worker has everything at the service, and tells the ETag that the blob has then (`barrier`);
3. it still is frozen? Then what has this ETag is a clean file system, for ever: each later write gives another one;
4. the worker asks for a snapshot on the condition of that ETag, under its lease;
5. it is thawed.

So whatever is delayed, lost, or thawed too soon: a snapshot that says file-system is one. One that fails at 2 to 4 is
made again without freezing, with another id. An answer that is lost is looked for by its id (`once`).
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from blobfuse_dysk import environment
from blobfuse_dysk.azure import snapshots
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.explain import holder_in
from blobfuse_dysk.azure.properties import BlobProperties
from blobfuse_dysk.azure.snapshots import SnapshotRow
from blobfuse_dysk.device.attacher.freezing import Freezing, NotFrozenError, frozen
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.device.ipc.statefile import StateFile
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError, Kind, LaterError, StoreError
from blobfuse_dysk.patience import telling
from blobfuse_dysk.store import snapshot as making

__all__ = ["Account", "Consistency", "Made", "lowered", "of_attached", "of_the_service", "once"]

Consistency = Literal["file-system", "crash"]
_TIMEOUT_S = 30.0  # of a request
_WORKER_S = 90.0  # for what was written to be at the service, and the snapshot
_TRIES = 3
_CHANGES = 5  # of the blob's ETag while nobody writes: a raised epoch, the holder's name
_LATER_S = 2.0  # for an answer that says that the time is over
_MOST_WHY = 400  # characters


@dataclass(frozen=True, slots=True)
class Account:
    """Where the disk is, and what is allowed there."""

    address: DiskAddress
    credential: Credential


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot was made; see disks.snapshot.Snapshot."""

    time: str
    size: int
    consistent: Consistency
    why: str


def of_attached(found: StateFile, account: Account | None, metadata: Mapping[str, str], freeze_s: float | None) -> Made:
    """Of a disk that a worker of this machine has. account: None where none is known: then nothing is looked up there.

    freeze_s: the bound of a freeze; None for none. Raises DyskError.
    """
    name, device = found["name"], found["device"]
    if device is None:
        raise LaterError(f"{name} is being attached still", remedy="try again in a moment")
    why = "it was not to be frozen"
    if freeze_s is not None:
        try:
            return _with_clean_file_systems(found, device, account, metadata, freeze_s)
        except NotFrozenError as error:
            why = str(error)
        except OSError as error:
            why = f"it was not frozen: {error.strerror}"
        except DyskError as error:
            why = f"it was frozen in vain: {error}"
    marks = _marks("crash", why)
    control_path = state.control_path(_run_dir(), name)

    def make() -> tuple[str, int]:
        with Control(control_path, name, timeout_s=_WORKER_S + _LATER_S) as control:
            answer = control.ask("snapshot", metadata={**metadata, **marks}, etag=None, timeout_s=_WORKER_S)
        return answer["time"], answer["size"]

    what = f"waiting for what was written to {name} to be at the service; given up after {_WORKER_S:g} s"
    with telling(lambda: what):
        taken, size = once(make, marks[making.REQUEST], account)
    return Made(taken, size, "crash", marks[making.WHY])


def of_the_service(account: Account, metadata: Mapping[str, str], why: str | None) -> Made:
    """Of a disk as the service has it. why: the reason for asking there; None if it is not attached here."""
    import trio

    from blobfuse_dysk.azure.blob import BlobClient
    from blobfuse_dysk.disks.asking import waiting
    from blobfuse_dysk.store.lease.requests import BlobLease
    from blobfuse_dysk.store.open import check_blob, errors_for_people

    marks = _marks("crash", why or "")

    async def take() -> tuple[str, int]:
        async with BlobClient(account.address, account.credential) as client:
            requests = BlobLease(client, timeout_s=_TIMEOUT_S)
            blob = await requests.properties()
            check_blob(blob, account.address)
            if why is None:
                marks[making.WHY] = _why_not_here(blob)
            return await making.take(blob, requests, {**metadata, **marks}), blob.size

    with errors_for_people(account.address, account.credential, read_only=False), waiting(account.address):
        taken, size = once(lambda: trio.run(take), marks[making.REQUEST], account)
    return Made(taken, size, "crash", marks[making.WHY])


def once(make: Callable[[], tuple[str, int]], request: str, account: Account | None) -> tuple[str, int]:
    """Call `make` until a snapshot with this id in its metadata is known to be made; return its time and size.

    make: one attempt. Only a StoreError of which the outcome is unknown is followed by another. Where this credential
    may not list, there is no looking: then the same is asked for again. What several requests made is one snapshot in
    the end, unless one is carried out even later; that one has the same id.
    """
    for left in reversed(range(_TRIES)):
        try:
            taken, size = make()
        except StoreError as error:
            if not error.unknown or not left:
                raise
            if found := _made(request, account):
                return found[0].disk.snapshot or "", found[0].size
            continue
        if account and left < _TRIES - 1:
            for other in _made(request, account):
                if other.disk.snapshot != taken:
                    with contextlib.suppress(DyskError):
                        snapshots.delete_snapshot(other.disk, account.credential)
        return taken, size
    raise AssertionError("the last attempt either succeeds or fails")


def lowered(metadata: Mapping[str, str]) -> dict[str, str]:
    """With names in lower case: to the service that makes no difference."""
    return {name.lower(): value for name, value in metadata.items()}


def _with_clean_file_systems(
    found: StateFile, device: str, account: Account | None, metadata: Mapping[str, str], bound_s: float
) -> Made:
    """With a freeze. Raises NotFrozenError or DyskError, and then has made none, as far as can be known."""
    run, name = _run_dir(), found["name"]
    path = state.control_path(run, name)

    def tell_holder() -> None:
        with Control(path, name, timeout_s=bound_s) as control:
            control.ask("guard")

    protected = {
        "/": "the root file system",
        run: "where attachments keep their state",
        str(environment.log_dir()): "where attachments write their log",
    }
    problem: StoreError
    with frozen(run, name, device, bound_s, tell_holder, protected) as freezing:
        what = ", ".join(f"{each.directory} ({each.fstype})" for each in freezing.file_systems)
        marks = _marks("file-system", f"frozen: {what}")
        try:
            taken, size = _of_frozen(freezing, path, name, {**metadata, **marks})
            return Made(taken, size, "file-system", marks[making.WHY])
        except StoreError as error:
            problem = error
    if account and problem.unknown and (made := _made(marks[making.REQUEST], account)):
        return Made(made[0].disk.snapshot or "", made[0].size, "file-system", marks[making.WHY])
    raise problem


def _of_frozen(freezing: Freezing, path: str, name: str, metadata: Mapping[str, str]) -> tuple[str, int]:
    """Steps 2 to 4, as long as the freeze lasts."""
    for left in reversed(range(_CHANGES)):
        left_s = max(0.0, freezing.deadline - time.monotonic())
        with Control(path, name, timeout_s=left_s + _LATER_S) as control:
            etag = control.ask("barrier", timeout_s=left_s)["etag"]
            freezing.check()
            left_s = max(0.0, freezing.deadline - time.monotonic())
            try:
                answer = control.ask("snapshot", metadata=metadata, etag=etag, timeout_s=left_s)
            except StoreError as error:
                if error.kind is Kind.CHANGED and left:
                    continue
                raise
            return answer["time"], answer["size"]
    raise AssertionError("the last attempt either succeeds or fails")


def _marks(consistent: Consistency, why: str) -> dict[str, str]:
    """What a snapshot has in its metadata of us. Metadata is ASCII, names of directories need not be."""
    told = why.encode("ascii", "backslashreplace").decode()
    told = "".join(c if c.isprintable() else "?" for c in told)[:_MOST_WHY].strip()
    return {making.CONSISTENT: consistent, making.WHY: told, making.REQUEST: str(uuid.uuid4())}


def _made(request: str, account: Account | None) -> list[SnapshotRow]:
    """Those with this id, oldest first; none if that cannot be found out."""
    if account is None:
        return []
    try:
        rows = snapshots.list_snapshots(account.address, account.credential)
    except DyskError:
        return []
    return [row for row in rows if lowered(row.metadata).get(making.REQUEST) == request]


def _why_not_here(blob: BlobProperties) -> str:
    """Why the service was asked, and not this machine."""
    node, _ = holder_in(blob.metadata)
    if blob.lease_state == "leased":
        return f"attached on {node}, not here" if node else "leased by another holder, not attached here"
    return "not attached here"


def _run_dir() -> str:
    return str(environment.run_dir().resolve())
