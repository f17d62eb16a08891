"""Volumes that are being copied from a snapshot or another volume.

That may take longer than a call may. So it goes on in a thread of its own; calls wait for it a while and are then told
ABORTED, upon which the side-car asks again, and finds it where it is by then. Nothing is lost if this process ends
meanwhile: what is there of the copy is marked as incomplete, and the next call goes on with it (disks/clone.py).
"""

from __future__ import annotations

import contextlib
import threading

from grpc import StatusCode

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks.clone import Progress, abort_clone, clone
from blobfuse_dysk.disks.look import get_disk
from blobfuse_dysk.errors import NotFoundError, UsageError
from blobfuse_dysk.kubernetes.csi.calls import Context
from blobfuse_dysk.kubernetes.csi.creation import Wanted
from blobfuse_dysk.kubernetes.csi.status import CallError
from blobfuse_dysk.options import AttachOptions

__all__ = ["Copies"]

_WAIT_S = 8.0  # for a call; external-provisioner gives up after 10 s by default
_SPARE_S = 1.0  # of what is left of a call, to tell it
_STOP_S = 20.0


class _Copy(threading.Thread):
    """One copy under way. error: how it ended, if not well."""

    def __init__(self, source: DiskAddress, source_options: AttachOptions, wanted: Wanted, size: int) -> None:
        super().__init__(name=f"copy to {wanted.disk}", daemon=True)
        self.source = source
        self.progress: Progress | None = None
        self.error: Exception | None = None
        self._source_options = source_options
        self._wanted = wanted
        self._size = size

    def run(self) -> None:
        wanted = self._wanted
        try:
            clone(
                self.source,
                wanted.disk,
                self._source_options,
                wanted.options,
                size=self._size,
                metadata=wanted.marks(),
                tier=wanted.parameters.tier or None,
                progress=self._heard,
            )
        except Exception as error:
            self.error = error

    def _heard(self, progress: Progress) -> None:
        self.progress = progress

    def told(self) -> str:
        """How far it is, for people."""
        far = self.progress
        return f", {100 * far.done // far.total} % are done" if far is not None and far.total else ""


class Copies:
    """Those of this process, by the disk that they make. Safe to use from several threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: dict[str, _Copy] = {}

    def make(
        self, source: DiskAddress, source_options: AttachOptions, wanted: Wanted, size: int, context: Context
    ) -> None:
        """Make the copy, or go on with it, and return when it is complete. Raises DyskError.

        CallError(ABORTED) says that it is under way still: the call is to be made again.
        """
        key = wanted.disk.key
        with self._guard:
            copy = self._running.get(key)
            if copy is None:
                copy = self._running[key] = _Copy(source, source_options, wanted, size)
                copy.start()
        left = context.time_remaining()
        copy.join(_WAIT_S if left is None else min(max(left - _SPARE_S, 0.0), _WAIT_S))
        if copy.is_alive():
            raise CallError(
                StatusCode.ABORTED, f"volume {wanted.disk} is being copied from {source}{copy.told()}", remedy="wait"
            )
        with self._guard:
            self._running.pop(key, None)
        if copy.error is not None:
            raise copy.error

    def stop(self, disk: DiskAddress, options: AttachOptions) -> None:
        """End a copy to this disk, whoever began it, and take back what is there of it. Raises DyskError."""
        try:
            if not get_disk(disk, options).incomplete:
                return
        except NotFoundError:
            return
        with contextlib.suppress(NotFoundError, UsageError):  # it has just ended, either way
            abort_clone(disk, options)
        with self._guard:
            copy = self._running.pop(disk.key, None)
        if copy is not None:
            copy.join(_STOP_S)
