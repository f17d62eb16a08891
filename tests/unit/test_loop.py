"""Loop devices: what the driver is asked for, with answers of this test's own."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.device.kernel import loop, mountinfo
from blobfuse_dysk.errors import DeviceError

GET_FREE, CONFIGURE, CLR_FD = loop._LOOP_CTL_GET_FREE, loop._LOOP_CONFIGURE, loop._LOOP_CLR_FD
ROSET = loop._BLKROSET


class Driver:
    """Answers ioctl(2). `answers`: an errno, or 0, for each LOOP_CONFIGURE; the last one again and again."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.node = directory / "node"
        self.node.touch()
        self.answers = [0]
        self.configs: list[tuple[Any, ...]] = []
        self.modes: list[int] = []
        self.refusals: list[bool] = []
        self.partitions = directory / "sysfs"
        self.busy: list[int] = []  # an errno for each attempt to have partitions go
        self.opened_at_clear = 0
        self.clear_answer = 0
        patch.setattr(fcntl, "ioctl", self.ioctl)
        patch.setattr(loop, "_CONTROL", str(self.node))
        patch.setattr(loop, "_SYSFS", str(self.partitions))
        patch.setattr(loop, "_open_node", self.open)
        patch.setattr(loop.time, "sleep", lambda pause_s: None)  # type: ignore[attr-defined]

    def open(self, device: str, flags: int) -> int:
        self.modes.append(flags & os.O_ACCMODE)
        return os.open(self.node, flags)

    def ioctl(self, fd: int, request: int, argument: Any = 0) -> int:
        if request == GET_FREE:
            return len(self.configs)
        if request == ROSET:
            self.refusals.append(bool(struct.unpack("=i", argument)[0]))
            return 0
        if request in (loop._BLKPG, loop._BLKRRPART):
            answer = self.busy.pop(0) if self.busy else 0
            if not answer and request == loop._BLKPG:
                operation, _, size, address = loop._BLKPG_ARGUMENT.unpack(argument)
                number = loop._BLKPG_PARTITION.unpack(ctypes.string_at(address, size))[2]
                assert operation == loop._DEL_PARTITION
                (found,) = self.partitions.glob(f"*/*p{number}")
                found.rmdir()
        elif request == CONFIGURE:
            self.configs.append(loop._CONFIG.unpack(argument))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        else:
            assert request == CLR_FD
            links = [str(path.resolve()) for path in [*Path("/proc/self/fd").iterdir()]]
            self.opened_at_clear = links.count(str(self.node))
            answer = self.clear_answer
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path, monkeypatch)


def configure(fd: int = 9, **options: Any) -> str:
    options = {"read_only": False, "partscan": False, "autoclear": False, **options}
    device, opened = loop.configure(fd, block_size=512, label="account/disk", **options)
    os.close(opened)
    return device


@pytest.mark.parametrize(
    ("option", "flag"), [(None, 0), ("read_only", 1), ("autoclear", 4), ("partscan", 8)], ids=lambda value: str(value)
)
def test_a_device_has_direct_io_and_what_was_asked_for(driver: Driver, option: str | None, flag: int) -> None:
    assert configure(**({option: True} if option else {})) == "/dev/loop0"
    config = driver.configs[0]
    assert config[:2] == (9, 512)
    assert config[10] == 16 | flag, "lo_flags"
    assert config[11].rstrip(b"\0") == b"account/disk"
    assert driver.modes == [os.O_RDONLY if option == "read_only" else os.O_RDWR]
    taken_back = [] if option == "read_only" else [False]
    assert driver.refusals == taken_back, "who had the device before may have left it read-only (blockdev --setro)"


def test_a_device_that_somebody_else_took_is_not_the_last(driver: Driver) -> None:
    driver.answers = [errno.EBUSY, errno.EBUSY, 0]
    assert configure() == "/dev/loop2"
    driver.answers = [errno.EBUSY]
    with pytest.raises(DeviceError, match="64 tries"):
        configure()
    assert len(driver.configs) == 3 + 64


@pytest.mark.parametrize(("number", "remedy"), [(errno.EINVAL, "Linux 5.8"), (errno.ENOMEM, None)])
def test_what_the_driver_cannot_do_is_not_tried_again(driver: Driver, number: int, remedy: str | None) -> None:
    driver.answers = [number]
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(DeviceError, match="cannot set up /dev/loop0") as caught:
        configure()
    assert len(driver.configs) == 1
    assert (remedy in str(caught.value.remedy)) if remedy else caught.value.remedy is None
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_partitions_of_the_file_before_go(driver: Driver) -> None:
    for number in (1, 12):
        (driver.partitions / "loop0" / f"loop0p{number}").mkdir(parents=True)
    assert configure() == "/dev/loop0"
    assert not loop.partitions("/dev/loop0")


@pytest.mark.parametrize("partscan", [False, True])
def test_a_device_with_a_partition_in_use_is_given_back(
    driver: Driver, partscan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (driver.partitions / "loop0" / "loop0p1").mkdir(parents=True)
    driver.busy = [errno.EBUSY]
    cleared: list[str] = []
    monkeypatch.setattr(loop, "clear", cleared.append)
    assert configure(partscan=partscan) == "/dev/loop1"
    assert cleared == ["/dev/loop0"]


def test_those_that_the_driver_found_in_the_new_file_stay(driver: Driver) -> None:
    (driver.partitions / "loop0" / "loop0p1").mkdir(parents=True)
    assert configure(partscan=True) == "/dev/loop0"
    assert loop.partitions("/dev/loop0") == ["/dev/loop0p1"]


def test_one_that_somebody_else_removed_is_gone_too(driver: Driver) -> None:
    (driver.partitions / "loop0" / "loop0p1").mkdir(parents=True)
    driver.busy = [errno.ENXIO]
    assert configure() == "/dev/loop0"


def test_partitions_go_with_the_device(driver: Driver) -> None:
    (driver.partitions / "node" / "nodep1").mkdir(parents=True)
    assert loop.clear(str(driver.node))
    assert not loop.partitions(str(driver.node))


def test_to_let_go_is_not_to_cut_off(driver: Driver) -> None:
    """As the only opener we would: what the page cache has would be lost. See loop.clear."""
    assert loop.clear(str(driver.node))
    assert driver.opened_at_clear == 2
    driver.clear_answer = errno.ENXIO
    assert not loop.clear(str(driver.node))
    driver.clear_answer = errno.EPERM
    with pytest.raises(DeviceError, match="cannot detach"):
        loop.clear(str(driver.node))


def test_only_our_file_behind_a_device_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = "/run/dysk/db/fs/disk"
    for name, backing in (
        ("loop1", "/home/disk"),
        ("loop2", "/run/dysk/db2/fs/disk"),
        ("loop3", "/x/run/dysk/db/fs/disk"),
    ):
        (tmp_path / name / "loop").mkdir(parents=True)
        (tmp_path / name / "loop" / "backing_file").write_text(f"{backing}\n")
    monkeypatch.setattr(loop, "_SYSFS", str(tmp_path))
    monkeypatch.setattr(loop, "_device_behind", lambda device: os.makedev(0, 44) if device == "/dev/loop1" else 7)
    assert loop.bound_to(ours) is None
    for device in ("/dev/loop1", "/dev/loop2", "/dev/loop3", "/dev/loop4"):
        assert loop.bound_to(ours, device) is None
        assert loop.bound_to(ours, device, 45) is None
    assert loop.bound_to(ours, "/dev/loop1", 44) == "/dev/loop1", "seen from another mount namespace"
    (tmp_path / "loop2" / "loop" / "backing_file").write_text(f"{ours}\n")
    assert loop.bound_to(ours, "/dev/loop1") == "/dev/loop2", "it was put behind another one since"
    assert loop.bound_to(ours, "/dev/loop4", 45) is None, "it has the same path in another container"
    assert loop.bound_to(ours, "/dev/loop4", os.minor(7)) == "/dev/loop2"


@pytest.mark.parametrize("fstype", ["tmpfs", "devtmpfs"])
def test_nodes_of_partitions_are_those_that_the_kernel_has_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str
) -> None:
    """A node that stayed would be that of another disk's partition, as soon as the number is given away again."""
    dev, sys_block = tmp_path / "dev", tmp_path / "block"
    dev.mkdir()
    for name, number in (("loop1p1", "259:1"), ("loop1p2", "259:2")):
        (sys_block / "loop1" / name).mkdir(parents=True)
        (sys_block / "loop1" / name / "dev").write_text(f"{number}\n")
    nodes = {"loop1p1": (259, 7), "loop1p3": (259, 3), "loop11p3": (259, 4)}
    for name in nodes:
        (dev / name).touch()
    (dev / "loop1p4").touch()  # somebody's file
    made: dict[str, str] = {}
    monkeypatch.setattr(loop, "_SYSFS", str(sys_block))
    monkeypatch.setattr(loop, "_DEV", str(dev))
    monkeypatch.setattr(loop, "partitions", lambda device: [f"{dev}/loop1p1", f"{dev}/loop1p2"])
    numbers = {f"{dev}/{name}": f"{major}:{minor}" for name, (major, minor) in nodes.items()}
    monkeypatch.setattr(loop, "_node_number", numbers.get)
    monkeypatch.setattr(loop, "_make_node", lambda path, number: made.update({Path(path).name: number}))
    monkeypatch.setattr(mountinfo, "mounts", lambda: [mountinfo.Mount("0:5", str(dev), fstype, "dev")])
    loop.make_partition_nodes("/dev/loop1")
    assert sorted(path.name for path in dev.iterdir()) == ["loop11p3", "loop1p4"]
    assert made == {"loop1p1": "259:1", **({} if fstype == "devtmpfs" else {"loop1p2": "259:2"})}


@pytest.mark.parametrize("moment", ["sysfs is listed", "a node is taken away"])
def test_a_partition_that_comes_meanwhile_keeps_the_node_that_the_kernel_made(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """devtmpfs makes its node once: what is taken away then is gone until the partition is removed."""
    dev, sys_block = tmp_path / "dev", tmp_path / "block"
    dev.mkdir()
    (sys_block / "loop1").mkdir(parents=True)
    nodes: dict[str, str] = {}

    def come() -> None:
        """As device_add() does: into sysfs, then the node."""
        (sys_block / "loop1" / "loop1p2").mkdir(exist_ok=True)
        (sys_block / "loop1" / "loop1p2" / "dev").write_text("259:2\n")
        make(f"{dev}/loop1p2", "259:2")

    def make(path: str, number: str) -> None:
        if path not in nodes:
            Path(path).touch()
            nodes[path] = number

    def partitions(device: str) -> list[str]:
        found = sorted(f"{dev}/{path.name}" for path in (sys_block / "loop1").iterdir())
        if moment == "sysfs is listed":
            come()
        return found

    def unlink(path: str) -> None:
        removed.append(path)
        if moment == "a node is taken away":
            remove(path)
            del nodes[path]
            come()
        remove(path)
        del nodes[path]

    remove, removed = os.unlink, list[str]()
    if moment == "a node is taken away":
        make(f"{dev}/loop1p2", "259:7")
    monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.setattr(loop, "_SYSFS", str(sys_block))
    monkeypatch.setattr(loop, "_DEV", str(dev))
    monkeypatch.setattr(loop, "partitions", partitions)
    monkeypatch.setattr(loop, "_node_number", nodes.get)
    monkeypatch.setattr(loop, "_make_node", make)
    monkeypatch.setattr(mountinfo, "mounts", lambda: [mountinfo.Mount("0:5", str(dev), "devtmpfs", "dev")])
    loop.make_partition_nodes("/dev/loop1")
    assert nodes == {f"{dev}/loop1p2": "259:2"}
    assert removed == ([] if moment == "sysfs is listed" else [f"{dev}/loop1p2"])


@pytest.mark.parametrize(
    ("hardware", "before", "after"),
    [
        ("1280", "1280", "1024"),
        ("1280", "512", "1024"),
        ("512", "512", "512"),
        ("4096", "4096", "1024"),
        (None, "9", "1024"),
    ],
)
def test_requests_are_as_large_as_fuse_takes_them_if_the_driver_can(
    hardware: str | None, before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = tmp_path / "loop3" / "queue"
    queue.mkdir(parents=True)
    (queue / "max_sectors_kb").write_text(before)
    if hardware:
        (queue / "max_hw_sectors_kb").write_text(hardware)
    monkeypatch.setattr(loop, "_SYSFS", str(tmp_path))
    assert loop.tune("/dev/loop3") == []
    assert (queue / "max_sectors_kb").read_text() == after


def test_a_queue_without_the_settings_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop3" / "queue").mkdir(parents=True)
    monkeypatch.setattr(loop, "_SYSFS", str(tmp_path))
    assert loop.tune("/dev/loop3") == loop.tune("/dev/loop4") == []
    assert list((tmp_path / "loop3" / "queue").iterdir()) == []
