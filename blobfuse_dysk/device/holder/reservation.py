"""An attachment's place on this machine: its name, its directory, its FUSE mount. Made and cleared by the holder.

Standard library only, as the holder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket

from blobfuse_dysk.device.holder import freezeguard
from blobfuse_dysk.device.holder.workers import run_apart
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.device.kernel import devlink, fuse, loop
from blobfuse_dysk.errors import AttachedError, DeviceError

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from blobfuse_dysk.device.ipc.statefile import StateFile

__all__ = ["Reservation", "explain"]


class Reservation:
    """The place of one attachment. `make` before anything else; `clear` at the end, also after a failed `make`."""

    def __init__(self, run: str, dev: str, name: str) -> None:
        self._run = run
        self._name = name
        self._dev = dev
        self._made = False
        self.disk = state.disk_path(run, name)
        self.fuse_fd = -1
        self.init = b""
        self.control: socket.socket | None = None

    @classmethod
    def taken_over(cls, run: str, dev: str, name: str, fuse_fd: int, init: bytes, control_fd: int) -> Reservation:
        """A place that a holder before made. The descriptors belong to this from now on."""
        place = cls(run, dev, name)
        place._made = True
        place.fuse_fd, place.init = fuse_fd, init
        place.control = socket.socket(fileno=control_fd)
        return place

    def make(self, mine: StateFile) -> None:
        """Take the name, write the first state, mount FUSE, take the kernel's INIT.

        Raises AttachedError when the name or the disk is in use, DeviceError when the machine cannot.
        """
        try:
            self._take_name(mine)
            path = state.mount_path(self._run, self._name)
            os.mkdir(path, 0o700)
            self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.control.bind(state.control_path(self._run, self._name))
            self.control.listen(16)
        except OSError as error:
            raise explain(error, self._run) from None
        self.fuse_fd = fuse.open_device()
        fuse.mount(self.fuse_fd, path, f"dysk:{self._name}", read_only=mine["read_only"])
        self.init = fuse.read_init(self.fuse_fd)

    def bound(self, device: str | None = None) -> str | None:
        """The loop device that has our file, if there (still) is one; `device` is where to look first."""
        return loop.bound_to(self.disk, device)

    def let_go(self, device: str | None) -> None:
        """Have the loop device let go of the file, now or when its last user closes it."""

        def clear() -> None:
            connection = fuse.connection(state.mount_path(self._run, self._name))
            bound = loop.bound_to(self.disk, device, connection)
            if bound:
                loop.clear(bound)

        run_apart(clear)

    def disconnect(self) -> None:
        """Close our descriptor of the FUSE connection. Once the worker is gone too, all I/O in it fails."""
        if self.fuse_fd >= 0:
            os.close(self.fuse_fd)
            self.fuse_fd = -1

    def clear(self, mine: StateFile) -> None:
        """Take mount, directory and the device's other names away. The directory goes last: others wait for that."""
        self.disconnect()
        if not self._made:
            return
        fuse.unmount(state.mount_path(self._run, self._name))
        with contextlib.ExitStack() as locked:
            with contextlib.suppress(DeviceError):  # somebody was stopped with it; the name is ours until it is gone
                locked.enter_context(state.lock(self._run))
            self.unlink(mine)
            state.remove(self._run, self._name)
        self._made = False

    def unlink(self, mine: StateFile) -> None:
        """Take the device's other names away, as soon as it has another file or none."""
        if mine["device"]:
            loop.make_partition_nodes(mine["device"])
        heir = state.device_of_disk(self._run, mine["disk"], mine["endpoint"], but=self._name)
        devlink.Links(self._dev, self._name, mine["disk"]).remove(mine["device"], heir)

    def follow_partitions(self, device: str, disk: str) -> None:
        """Link the partitions that the kernel knows by now."""
        loop.make_partition_nodes(device)
        devlink.Links(self._dev, self._name, disk).follow(device)

    def guard_freeze(self, device: str | None) -> None:
        """See to it that what is frozen, or going to be, is thawed; nothing if there is no record of such a thing."""
        freezeguard.start(self._run, self._name, device)

    def _take_name(self, mine: StateFile) -> None:
        state.make_run(self._run)
        with state.lock(self._run):
            self._refuse_collisions(mine)
            os.mkdir(state.directory(self._run, self._name), 0o700)
            self._made = True
            state.write(self._run, self._name, mine)

    def _refuse_collisions(self, mine: StateFile) -> None:
        """Raise AttachedError if the name is taken, or the disk is attached and one of the two may write."""
        names = state.names(self._run)
        if self._name in names and not state.exists(self._run, self._name):  # its holder died before the first state
            fuse.unmount(state.mount_path(self._run, self._name))
            state.remove(self._run, self._name)
            names.remove(self._name)
        taken_by = ""
        for name in names:
            try:
                other = state.read(self._run, name)
            except DeviceError:
                continue  # damaged, or of a later version: it is in nobody's way but its own
            if other and name == self._name:
                taken_by = f" by {other['disk']}"
            if not other or (other["disk"], other["endpoint"]) != (mine["disk"], mine["endpoint"]):
                continue
            if not (other["read_only"] and mine["read_only"]) and state.alive(other["holder"]):
                where = f" ({other['device']})" if other["device"] else ""
                raise AttachedError(
                    f"{mine['disk']} is attached here already, as {name}{where}", remedy=f"first: dyskctl detach {name}"
                )
        if self._name in names:
            raise AttachedError(
                f"the name {self._name} is taken{taken_by}",
                remedy="choose another: --name NAME, or --any-name (of mount: -o name=NAME, or -o any-name)",
            )


def explain(error: OSError, run: str) -> DeviceError:
    """A refused system call under /run/dysk, for people."""
    remedy = f"free space in {run}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return DeviceError(f"cannot keep state in {run}: {error.strerror or error}", remedy=remedy)
