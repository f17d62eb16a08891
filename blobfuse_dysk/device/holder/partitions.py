"""Hears of partitions of the device that come and go. Standard library only, as the holder.

Whoever changes a partition table (fdisk, parted, partx) has the kernel make and remove the devices, and the kernel says
so to everybody: a datagram for each, which udev reads, too. So links follow where there is no udev.

    add@/devices/virtual/block/loop0/loop0p1\\0ACTION=add\\0...

Source: lib/kobject_uevent.c; netlink(7), NETLINK_KOBJECT_UEVENT. The datagrams with group 1 are the kernel's.
"""

from __future__ import annotations

import os
import socket

__all__ = ["PartitionWatch"]

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL = 1
_MOST_BYTES = 16 << 10  # a uevent has at most 2 KiB of variables


class PartitionWatch:
    """An open socket; to poll, it reads as ready when the kernel said something."""

    def __init__(self, channel: socket.socket) -> None:
        self._socket = channel

    @classmethod
    def begin(cls) -> PartitionWatch | None:
        """None where there is nothing to hear (another kernel, a sandbox)."""
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            channel = socket.socket(socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT)
        except OSError:
            return None
        try:
            channel.bind((0, _KERNEL))
        except OSError:
            channel.close()
            return None
        return cls(channel)

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def heard(self, device: str | None) -> bool:
        """Read what came; whether some of it may be about partitions of the device. None: of any loop device."""
        wanted = f"/block/{os.path.basename(device)}/".encode() if device else b"/block/loop"
        found = False
        while True:
            try:
                path = self._socket.recv(_MOST_BYTES).partition(b"\0")[0]
                found |= wanted in path and b"/" in path.rpartition(b"/block/")[2]
            except BlockingIOError:
                return found
            except OSError:  # some were lost (ENOBUFS), and nobody knows what they said
                found = True
