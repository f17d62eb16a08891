"""The end of an attachment whatever state it is in. What can still be written is; the rest is counted, and lost.

In this order:
1. a device that is mounted, swap space or below another device is refused, unless its loss was agreed to;
2. file systems and page cache are written out, and the worker's ring with them, for as long as the service takes it;
3. the FUSE connection is aborted, which fails all I/O that waits, so nothing waits for ever any more; the worker then
   tries for a moment to write what it has, and to release the lease;
4. who does not end is killed, and what is left is cleared away;
5. the ring, which outlives both processes while we have it open, says what was accepted and never written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from dataclasses import dataclass

from blobfuse_dysk.device.attacher import teardown
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.ipc.statefile import Process, StateFile
from blobfuse_dysk.device.kernel import fuse, loop
from blobfuse_dysk.device.kernel.pagecache import unwritten
from blobfuse_dysk.device.kernel.usage import users
from blobfuse_dysk.errors import BusyError, DeviceError

__all__ = ["Loss", "by_force", "refuse_used"]

_BLKFLSBUF = 0x1261  # linux/fs.h: has the file system on a device written out, or else its page cache
_STILL_S = 15.0  # without any progress; 16 MiB that are on their way together need as long at 1 MB/s
_LOOK_S = 0.1
_GRACE_S = 3.0  # for an orderly end once the FUSE connection is aborted: the last writes, release of the lease
_RING = "/memfd:dysk-ring (deleted)"  # as device/holder/workers.py names it


@dataclass(frozen=True, slots=True)
class Loss:
    """Bytes that were written to the device and are not in the service.

    accepted: acknowledged to the kernel, at most; None if that cannot be known. cached: what the kernel had not handed
    over yet, 0 if it had handed over all, None if it had not and does not say how much.
    """

    accepted: int | None
    cached: int | None

    def __bool__(self) -> bool:
        return self.accepted != 0 or self.cached != 0

    def __str__(self) -> str:
        """For people: `12,288 bytes, and what...`"""
        parts = []
        if self.accepted is None:
            parts.append("what its worker had accepted last (how much is not known)")
        known = (self.accepted or 0) + (self.cached or 0)
        if known:
            parts.append(f"up to {known:,} bytes")
        if self.cached is None:
            parts.append("what the kernel had in memory of it (how much is not known)")
        return ", and ".join(parts)


def refuse_used(name: str, device: str) -> None:
    """Raise BusyError if something is built on the device that would lose data with it."""
    found = [use for use in users(device) if use.kind in ("mount", "swap", "device", "claim")]
    if found:
        raise BusyError(
            f"{device} ({name}) is in use: {'; '.join(map(str, found))}",
            remedy=f"{teardown.how_to_end(name, found)}; --force --lose-data cuts it off and loses what is not written",
        )


def by_force(run: str, dev: str, found: StateFile | teardown.Unreadable) -> Loss:
    """End an attachment, and say what was lost. Raises DeviceError or OSError."""
    device = teardown.device_of(run, found)
    alive = state.alive(found["holder"]) or state.alive(found["worker"])
    rings = (_open_ring(process) for process in (found["holder"], found["worker"]))
    ring = next((fd for fd in rings if fd is not None), None)
    try:
        cached = _write_out(device, ring) if device and state.alive(found["worker"]) else 0
        _end(run, dev, found)
        unseen = None if alive else 0  # not allowed to look; of processes that are dead the ring is gone, too
        return Loss(unseen if ring is None else _left_in(ring), cached)
    finally:
        if ring is not None:
            os.close(ring)


def _end(run: str, dev: str, found: StateFile | teardown.Unreadable) -> None:
    name = found["name"]
    connection = fuse.connection(state.mount_path(run, name))
    if connection is None and (state.alive(found["holder"]) or state.alive(found["worker"])):
        connection = found["connection"]  # the mount is in another mount namespace; its processes keep the number
    with contextlib.suppress(OSError):
        if connection is not None:
            fuse.abort(connection)
            teardown.wait_end(found["holder"], _GRACE_S)  # which also has the loop device let go
    if not teardown.wait_end(found["holder"], 0.0):
        _kill_holder(found["holder"])
    with contextlib.suppress(DeviceError):
        found = state.read(run, name) or found  # it names the last worker
    if name in state.names(run):
        teardown.clear_dead(run, dev, found, patience_s=0.0)


def _kill_holder(process: Process | None) -> None:
    """End it for good: SIGUSR2 tells systemd that nobody is to come back, and must be heard, whatever it is doing."""
    teardown.kill(process, signal.SIGUSR2, signal.SIGCONT, wait_s=_GRACE_S)
    if not teardown.wait_end(process, 0.0):
        teardown.kill(process)


def _write_out(device: str, ring: int | None) -> int | None:
    """Have everything above the service written, as long as it gets on. What of it the kernel keeps: see Loss.cached.

    The thread may wait in the kernel for a service that does not answer; aborting the connection ends that.
    """
    failed: list[OSError] = []
    nodes = [*loop.partitions(device), device]
    thread = threading.Thread(target=_flush, args=(nodes, failed), daemon=True)
    thread.start()
    before, since = None, time.monotonic()
    while thread.is_alive():
        thread.join(_LOOK_S)
        now, reached = time.monotonic(), _taken(device, ring)
        if reached != before:
            before, since = reached, now
        elif now - since > _STILL_S:
            return _in_kernel(device)
    return _in_kernel(device) if failed else 0


def _taken(device: str, ring: int | None) -> object:
    """Something that changes when the service takes a write; not when the worker alone does, which it may for long."""
    records = _records(ring) if ring is not None else None
    if records:
        return records[0][0]
    with contextlib.suppress(OSError), open(f"/sys/class/block/{os.path.basename(device)}/stat") as file:
        return file.read().split()[4:7]  # writes that were completed: requests, merges, sectors
    return None


def _flush(nodes: list[str], failed: list[OSError]) -> None:
    """Write file systems, page cache and, by the flush at the end, the worker's ring out."""
    for node in nodes:
        try:
            fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, _BLKFLSBUF, 0)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            failed.append(error)


def _in_kernel(device: str) -> int | None:
    return unwritten(device, mounted=any(use.kind == "mount" for use in users(device)))


def _open_ring(process: Process | None) -> int | None:
    """A descriptor of our own of an attachment's dirty ring; None if the process is gone or has none."""
    if not state.alive(process):
        return None
    assert process
    with contextlib.suppress(OSError):
        directory = f"/proc/{process['pid']}/fd"
        for entry in os.listdir(directory):
            if os.readlink(f"{directory}/{entry}") == _RING:
                return os.open(f"{directory}/{entry}", os.O_RDWR | os.O_CLOEXEC)
    return None


def _left_in(ring: int) -> int | None:
    """Bytes of the disk that the log has and the service may not have; None if it is damaged."""
    records = _records(ring)
    if records is None:
        return None
    total = reached = 0
    for _, offset, length in sorted(records, key=lambda record: record[1]):
        total += max(0, offset + length - max(offset, reached))
        reached = max(reached, offset + length)
    return total


def _records(ring: int) -> list[tuple[int, int, int]] | None:
    """Each record's place in the log, oldest first, and its offset and length on the disk; None if it is damaged."""
    from blobfuse_dysk.store.parts.ring import Ring, RingError  # loads trio

    if os.fstat(ring).st_size == 0:
        return []
    try:
        log = Ring(ring)
    except RingError:
        return None
    try:
        return [(each.position, each.offset, each.length) for each in log.replay()]
    except RingError:
        return None
    finally:
        log.close()
