"""What the kernel says of partitions, as a holder hears it."""

from __future__ import annotations

import errno
import socket
from typing import cast

import pytest

from blobfuse_dysk.device.holder.partitions import PartitionWatch


class Kernel:
    """The other end: datagrams, or errors in their place."""

    def __init__(self, *events: str | int) -> None:
        self._events = list(events)

    def recv(self, most: int) -> bytes:
        if not self._events:
            raise BlockingIOError
        event = self._events.pop(0)
        if isinstance(event, int):
            raise OSError(event, "lost")
        return event.encode()


PATH = "/devices/virtual/block"


@pytest.mark.parametrize(
    ("events", "device", "counts"),
    [
        ([f"add@{PATH}/loop1/loop1p1\0ACTION=add\0"], "/dev/loop1", True),
        ([f"change@{PATH}/sda\0", f"remove@{PATH}/loop1/loop1p1\0"], "/dev/loop1", True),
        ([f"add@{PATH}/loop11/loop11p1\0ACTION=add\0"], "/dev/loop1", False),
        ([f"add@{PATH}/loop11/loop11p1\0ACTION=add\0"], None, True),
        (
            [f"change@{PATH}/loop11\0ACTION=change\0", f"add@{PATH}/sda/sda1\0", "add@/devices/virtual/bdi/0:42\0"],
            None,
            False,
        ),
        ([f"change@{PATH}/sda\0X={PATH}/loop1/loop1p1"], "/dev/loop1", False),
        ([errno.ENOBUFS], "/dev/loop1", True),
        ([], "/dev/loop1", False),
    ],
)
def test_only_what_may_be_about_the_devices_partitions_counts(
    events: list[str | int], device: str | None, counts: bool
) -> None:
    assert PartitionWatch(cast(socket.socket, Kernel(*events))).heard(device) is counts


@pytest.mark.parametrize("fails", ["socket", "bind"])
def test_where_nobody_can_hear_the_kernel_there_is_nothing_to_poll(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sandbox(socket.socket):
        def __init__(self, family: int, *arguments: int) -> None:
            if fails == "socket":
                raise OSError(errno.EPROTONOSUPPORT, "no netlink")
            super().__init__(socket.AF_UNIX, socket.SOCK_DGRAM)

        def bind(self, address: object) -> None:
            raise PermissionError(errno.EPERM, "not here")

    monkeypatch.setattr(socket, "socket", Sandbox)
    assert PartitionWatch.begin() is None


def test_the_kernel_is_heard() -> None:
    watch = PartitionWatch.begin()
    if watch:  # not in every sandbox
        watch.heard("/dev/loop1")
        assert watch.fileno() >= 0
        watch._socket.close()
