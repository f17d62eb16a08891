"""The parts of the device layer that need no device: state, messages, names, formats of the kernel."""

from __future__ import annotations

import errno
import json
import mmap
import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from blobfuse_dysk.azure.credential.resolve import resolve
from blobfuse_dysk.device.attacher import naming
from blobfuse_dysk.device.holder.reservation import Reservation, explain
from blobfuse_dysk.device.holder.workers import Pauses, WorkerProcess
from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.ipc.config import Config
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.device.kernel import fuse, loop
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import (
    AttachedError,
    DeviceError,
)
from blobfuse_dysk.options import AttachOptions
from tests.unit.states import a_state


def test_state_is_written_and_read(tmp_path: Path) -> None:
    run = str(tmp_path)
    (tmp_path / "db").mkdir()
    assert state.read(run, "db") is None
    state.write(run, "db", a_state(name="db"))
    assert state.read(run, "db") == a_state(name="db")
    assert (tmp_path / "db" / "state.json").stat().st_mode & 0o777 == 0o600
    (tmp_path / "begun").mkdir()
    (tmp_path / ".db.launch").touch()
    assert state.names(run) == ["begun", "db"], "a name is taken before there is a state"
    (tmp_path / "begun").rmdir()
    (tmp_path / "db" / "fs").mkdir()
    state.remove(run, "db")
    assert state.names(run) == []
    state.remove(run, "db")
    assert state.names(str(tmp_path / "none")) == []


def test_a_directory_that_is_half_removed_still_says_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "db").mkdir()
    state.write(str(tmp_path), "db", a_state())
    (tmp_path / "db" / "control.sock").touch()

    def killed(path: str) -> None:
        if path.endswith("control.sock"):
            raise KeyboardInterrupt
        real(path)

    real = os.unlink
    monkeypatch.setattr(os, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        state.remove(str(tmp_path), "db")
    assert state.exists(str(tmp_path), "db")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", r"is damaged \(it is not JSON: "),
        ("[" * 100_000, r"is damaged \(it is too deep\)"),
        ("[]", r"is damaged \(it is no object\)"),
        ("{}", "has version None"),
        (json.dumps({**a_state(), "version": 2, "state": "new"}), "has version 2"),
        (json.dumps({"version": 1}), r"is damaged \(disk is missing\)"),
        (json.dumps(a_state(version=True)), r"is damaged \(version is true, not a whole number\)"),
        (json.dumps(a_state(state="odd")), r"is damaged \(state is 'odd', not 'starting' or"),
        (json.dumps(a_state(io_timeout_s=float("nan"))), r"is damaged \(it is not JSON: NaN is no number\)"),
        (json.dumps(a_state(holder=None)), r"is damaged \(holder is null, not an object\)"),
        (json.dumps(a_state(worker={"pid": 1 << 31, "start": 1})), r"is damaged \(worker.pid is 2147483648, not "),
        (json.dumps(a_state(upgrades={"1": {"done": True}})), r"is damaged \(upgrades\['1'\].error is missing\)"),
    ],
)
def test_state_of_another_program_is_refused(tmp_path: Path, content: str, match: str) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "state.json").write_text(content)
    with pytest.raises(DeviceError, match=match) as caught:
        state.read(str(tmp_path), "db")
    assert caught.value.remedy


def test_what_a_later_version_added_to_a_state_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "state.json").write_text(json.dumps({**a_state(), "color": "blue"}))
    assert state.read(str(tmp_path), "db") == a_state()


def test_a_full_disk_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "db").mkdir()
    state.write(str(tmp_path), "db", a_state())

    def full(source: str, target: str) -> None:
        assert json.loads(Path(source).read_text())["name"] == "new", "it takes the old one's place before it is whole"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        state.write(str(tmp_path), "db", a_state(name="new"))
    assert state.read(str(tmp_path), "db") == a_state()
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == ["state.json"]


def test_a_process_is_known_by_id_and_start() -> None:
    me = state.identity(os.getpid())
    assert state.alive(me)
    assert not state.alive({**me, "start": me["start"] + 1})
    assert not state.alive(None)
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not state.alive(state.identity(child.pid)), "a zombie"
    child.wait()
    assert state.identity(child.pid)["start"] == 0


def test_messages_carry_descriptors_and_ends() -> None:
    ours, theirs = message.channel()
    with ours, theirs, Path("/proc/self/stat").open() as file:
        assert message.send(ours, {"op": "start", "name": "ü"}, [file.fileno()])
        received, fds, whole = message.receive_packet(theirs)
        assert (json.loads(received), whole) == ({"op": "start", "name": "ü"}, True)
        assert os.path.samestat(os.fstat(fds[0]), os.fstat(file.fileno()))
        assert not os.get_inheritable(fds[0])
        os.close(fds[0])
        ours.close()
        assert message.receive_packet(theirs) == (b"", [], True)
        assert not message.send(theirs, {"op": "end"})


def test_a_message_that_is_not_taken_does_not_wait() -> None:
    ours, theirs = message.channel()
    with ours, theirs:
        text = "x" * 60_000
        while message.send(ours, {"text": text}, wait=False):
            pass
        with pytest.raises(ValueError, match="bytes"):
            message.send(ours, {"text": "x" * message.MOST_BYTES})


def test_config_survives_the_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "UseDevelopmentStorage=true")
    options = AttachOptions(sector_size=4096, lease_s=None, io_timeout_s=None, endpoint="http://127.0.0.1:1")
    address, credential = resolve(
        DiskAddress.parse("devstoreaccount1/disks/a/b?snapshot=2026-01-31T12:00:00.0000000Z"), options
    )
    secrets = json.loads(json.dumps(credential.to_config()))
    config = Config(
        address, secrets, options, "node-a", {"AZURE_CLIENT_ID": "x"}, {"id": "i", "epoch": 3, "seconds": None}
    )
    assert Config.decode(config.encode()) == config
    assert secrets["proof"]["account_key"] not in repr(config)


@pytest.mark.parametrize(
    ("blob", "name"),
    [
        ("data", "data"),
        ("dir/data", "data"),
        ("data.vhd", "data.vhd"),
        ("data@", "data_40"),
        ("data+", "data_2B"),
        ("a/b/c d", "c_20d"),
        (".hidden", "x.hidden"),
        ("é", "x_C3_A9"),
        ("by-blob", "by-blob_"),
        ("data-part1", "data-part1_"),
        ("x" * 63, "x" * 63),
    ],
)
def test_a_name_is_the_blobs_last_part_and_no_two_such_parts_share_one(blob: str, name: str) -> None:
    address = DiskAddress("account", "container", blob)
    assert list(naming.candidates(address, None, any_name=False)) == [name]
    AttachOptions(name=name)


def test_names_that_are_too_long_differ_where_the_blobs_do() -> None:
    blobs = ["x" * 64, "x" * 65, "x" * 70 + "-part1", "é" * 80, "é" * 81, ("y" * 49) + "-part1" * 4]
    names = [next(naming.candidates(DiskAddress("a", "c", blob), None, any_name=False)) for blob in blobs]
    assert len(set(names)) == len(blobs)
    for name in names:
        AttachOptions(name=name)


def test_a_snapshot_has_another_name_than_its_disk() -> None:
    address = DiskAddress("a", "c", "data", "2026-01-31T12:00:00.0000000Z")
    assert list(naming.candidates(address, None, any_name=False)) == ["data-20260131T120000.0000000Z"]


def test_another_name_is_taken_only_where_any_will_do() -> None:
    address = DiskAddress("a", "c", "data")
    assert list(naming.candidates(address, "mine", any_name=False)) == ["mine"]
    assert list(naming.candidates(address, None, any_name=True))[:3] == ["data", "data-2", "data-3"]
    assert list(naming.candidates(address, "z" * 63, any_name=True))[1] == "z" * 59 + "-2"


def test_struct_loop_config_has_the_kernels_size() -> None:
    assert loop._CONFIG.size == 304  # sizeof(struct loop_config), linux/loop.h


def test_backing_files_of_loop_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, backing in (("loop3", "/run/dysk/db/fs/disk\n"), ("loop4", "/disk\n"), ("loop5", None), ("sda", None)):
        (tmp_path / name / "loop").mkdir(parents=True)
        if backing:
            (tmp_path / name / "loop" / "backing_file").write_text(backing)
    for number in (2, 10, 1):
        (tmp_path / "loop3" / f"loop3p{number}").mkdir()
    monkeypatch.setattr(loop, "_SYSFS", str(tmp_path))
    assert loop.backing_file("/dev/loop3") == "/run/dysk/db/fs/disk"
    assert loop.backing_file("/dev/loop5") is loop.backing_file("/dev/loop6") is loop.backing_file("/dev/sda") is None
    assert loop.bound_to("/run/dysk/db/fs/disk") == "/dev/loop3"
    assert loop.bound_to("/run/dysk/other/fs/disk") is None
    assert loop.bound_to("/run/dysk/other/fs/disk", "/dev/loop4") == "/dev/loop4"
    assert loop.bound_to("/run/dysk/other/fs/disk", "/dev/loop3") is None
    assert loop.partitions("/dev/loop3") == ["/dev/loop3p1", "/dev/loop3p2", "/dev/loop3p10"]
    assert loop.partitions("/dev/loop5") == []


def test_queue_settings_that_are_refused_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = tmp_path / "loop3" / "queue"
    queue.mkdir(parents=True)
    (queue / "scheduler").write_text("[mq-deadline] none")
    (queue / "read_ahead_kb").write_text("128")
    (queue / "max_sectors_kb").write_text("1280")
    (queue / "max_hw_sectors_kb").write_text("1280")
    monkeypatch.setattr(loop, "_SYSFS", str(tmp_path))
    assert loop.tune("/dev/loop3", read_ahead_kb=512) == []
    assert (queue / "scheduler").read_text() == "none"
    assert (queue / "read_ahead_kb").read_text() == "512"
    assert (queue / "max_sectors_kb").read_text() == "1024"
    (queue / "discard_max_bytes").symlink_to("/proc/version")
    assert len(loop.tune("/dev/loop3", read_ahead_kb=512)) == 1
    assert "cannot set discard_max_bytes of /dev/loop3 to 0" in loop.tune("/dev/loop3", read_ahead_kb=512)[0]


def test_a_device_without_a_file_is_not_cleared() -> None:
    assert not loop.clear("/dev/loop-none")
    with pytest.raises(DeviceError, match="cannot detach /dev/null"):
        loop.clear("/dev/null")


def init_request(flags: int, flags2: int, opcode: int = 26) -> bytes:
    return struct.pack("<IIQQIIIIIIIII", 104, opcode, 2, 0, 0, 0, 0, 0, 7, 45, 0, flags, flags2) + bytes(44)


@pytest.mark.parametrize(
    ("init", "resend"),
    [
        (init_request(1 << 30, 1 << 7), True),
        (init_request(1 << 30, 0), False),
        (init_request(0, 1 << 7), False),
        (init_request(0, 0)[:56], False),
    ],
)
def test_whether_a_kernel_sends_requests_again(init: bytes, resend: bool) -> None:
    assert fuse.can_resend(init) is resend


def test_the_first_request_is_init() -> None:
    for opcode, good in ((26, True), (1, False)):
        read_end, write_end = os.pipe()
        os.write(write_end, init_request(0, 0, opcode))
        if good:
            assert fuse.read_init(read_end) == init_request(0, 0)
        else:
            with pytest.raises(DeviceError, match="not INIT"):
                fuse.read_init(read_end)
        os.close(read_end)
        os.close(write_end)


@pytest.mark.parametrize(
    ("default", "most", "expected"), [("0", "0", None), ("0", "100", 75.0), ("40", "100", 30.0), ("1", "0", 1.0)]
)
def test_request_timeouts_of_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default: str, most: str, expected: float | None
) -> None:
    (tmp_path / "default_request_timeout").write_text(f"{default}\n")
    (tmp_path / "max_request_timeout").write_text(f"{most}\n")
    monkeypatch.setattr(fuse, "_SYSCTL", str(tmp_path))
    assert fuse.request_timeout_s() == expected
    monkeypatch.setattr(fuse, "_SYSCTL", str(tmp_path / "older kernel"))
    assert fuse.request_timeout_s() is None


def test_the_largest_write_is_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fuse, "_SYSCTL", str(tmp_path))
    assert fuse.largest_write() == 256 * mmap.PAGESIZE, "kernels before 6.13 do not say it"
    for pages, expected in ((1, 256), (256, 256), (1024, 1024)):
        (tmp_path / "max_pages_limit").write_text(f"{pages}\n")
        assert fuse.largest_write() == expected * mmap.PAGESIZE


def test_no_fuse_device(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file") as caught:
        fuse.open_device(str(tmp_path / "fuse"))
    assert caught.value.remedy == "modprobe fuse"


def test_what_a_worker_logs_is_not_what_it_says_of_its_end() -> None:
    says = "echo log: one >&2; echo why >&2; echo log: two >&2; exit 3"
    worker = WorkerProcess.start({"worker": ["/bin/sh", "-c", says], "environment": {}})
    state.has_ended(worker.pidfd)
    assert worker.reap() == ["one", "why", "two"]
    assert worker.end_text() == "exit status 3: why"


def test_what_a_worker_says_last_is_kept() -> None:
    worker = WorkerProcess.start({"worker": ["/bin/sh", "-c", "echo one >&2; echo two >&2; exit 3"], "environment": {}})
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    assert worker.reap() == ["one", "two"]
    assert worker.end_text() == "exit status 3: two"
    worker = WorkerProcess.start({"worker": ["/bin/sh", "-c", "read never"], "environment": {}})
    worker.kill()
    worker.reap()
    assert worker.end_text() == "signal SIGKILL"


def test_pauses_grow_while_workers_die_young() -> None:
    pauses = Pauses()
    assert [pauses.after(0.1) for _ in range(12)] == [0.0] * 5 + [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert pauses.after(1.8) == 0.0, "one life of two seconds, in pieces, is worth one start"
    assert pauses.after(0.1) == 5.0
    assert pauses.after(60.0) == 0.0
    assert [pauses.after(0.0) for _ in range(5)] == [0.0] * 4 + [0.1]


def test_a_worker_that_is_killed_every_few_seconds_is_replaced_at_once() -> None:
    pauses = Pauses()
    assert [pauses.after(2.0) for _ in range(100)] == [0.0] * 100


def test_a_worker_that_does_not_answer(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="worker of db does not answer: No such file"):
        Control(str(tmp_path / "control.sock"), "db")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()
        with (
            Control(str(tmp_path / "control.sock"), "db", timeout_s=0.05) as control,
            pytest.raises(DeviceError, match="timed out"),
        ):
            control.ask("status")


def test_refused_system_calls_for_people() -> None:
    assert explain(OSError(errno.ENOSPC, "No space left"), "/run/dysk").remedy == "free space in /run/dysk"
    assert "Permission denied" in str(explain(PermissionError(errno.EACCES, "Permission denied"), "/run/dysk"))


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    mine = a_state(device="/dev/loop3", holder=state.identity(os.getpid()))
    first = Reservation(str(tmp_path), str(tmp_path), "db")
    first._take_name(mine)
    for name, disk, match in (
        ("db", "x/y/z", f"the name db is taken by {mine['disk']}"),
        ("db", mine["disk"], r"attached here already, as db \(/dev/loop3\)"),
        ("other", mine["disk"], r"attached here already, as db \(/dev/loop3\)"),
    ):
        with pytest.raises(AttachedError, match=match):
            Reservation(str(tmp_path), str(tmp_path), name)._take_name({**mine, "disk": disk})
    Reservation(str(tmp_path), str(tmp_path), "elsewhere")._take_name({**mine, "endpoint": "f"})
    first.clear(mine)
    assert state.names(str(tmp_path)) == ["elsewhere"]
