"""Snapshots without a service: what may be asked for, what dyskctl prints, what a record of a freeze tells."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from blobfuse_dysk.device.attacher.freezer import Freezer
from blobfuse_dysk.device.holder import freezeguard
from blobfuse_dysk.device.ipc.freezerecord import FreezeRecord
from blobfuse_dysk.device.kernel import freeze
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.disks import clone as clones
from blobfuse_dysk.disks import look, ranges
from blobfuse_dysk.disks import snapshot as snapshots
from blobfuse_dysk.disks.ranges import Changed
from blobfuse_dysk.disks.snapshot import NAME, Snapshot, check_metadata
from blobfuse_dysk.errors import NotFoundError, UsageError
from blobfuse_dysk.options import AttachOptions
from tests.unit.cli_fakes import EXAMPLE, Machine, machine

__all__ = ["machine"]

DISK = DiskAddress.parse("mystore/disks/data")
TIME = "2026-01-31T12:00:00.0000000Z"
MADE = Snapshot(
    replace(DISK, snapshot=TIME), TIME, 3 << 30, "file-system", "frozen: /data (ext4)", {NAME: "nightly", "team": "a"}
)


@pytest.mark.parametrize(
    "metadata",
    [
        {NAME: "täglich"},
        {NAME: ""},
        {NAME: " x"},
        {NAME: "a\nb"},
        {"a-b": "x"},
        {"1a": "x"},
        {"Dysk_Consistent": "file-system"},
        {"dysk_incomplete": "1"},
        {"a": "x" * 8192},
    ],
)
def test_metadata_that_a_snapshot_cannot_have(metadata: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        check_metadata(metadata)


def test_metadata_that_it_can_have() -> None:
    check_metadata({NAME: "before the upgrade; 2", "_a1": "x", "Team": "y"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What disks.snapshot was asked for; it answers with MADE."""
    calls: list[tuple[object, ...]] = []

    def create(target: object, options: AttachOptions, *, freeze_s: float | None, metadata: dict[str, str]) -> Snapshot:
        calls.append((str(target), freeze_s, metadata))
        return MADE

    monkeypatch.setattr(snapshots, "create_snapshot", create)
    monkeypatch.setattr(snapshots, "list_snapshots", lambda disk, options: [MADE, replace(MADE, metadata={})])
    monkeypatch.setattr(snapshots, "delete_snapshot", lambda disk, options: calls.append((str(disk),)))
    return calls


def test_the_address_of_a_new_snapshot_is_printed(machine: Machine, asked: list[tuple[object, ...]]) -> None:
    done = machine.run("snapshot", "create", "data", "--name", "nightly", "--freeze-timeout", "3s")
    assert (done.code, done.out, done.err) == (0, f"mystore/disks/data?snapshot={TIME}\n", "")
    assert machine.run("snapshot", "create", str(DISK), "--no-freeze").code == 0
    assert asked == [("data", 3.0, {NAME: "nightly"}), (str(DISK), None, {})]


def test_one_as_after_a_power_cut_is_told_with_the_reason(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = replace(MADE, consistent="crash", why="not attached here")
    monkeypatch.setattr(snapshots, "create_snapshot", lambda *words, **options: crash)
    assert machine.run("snapshot", "create", str(DISK)).err == (
        "dyskctl: warning: it is as after a power cut: not attached here\n"
    )
    assert machine.run("snapshot", "create", str(DISK), "--no-freeze").err == ""


def test_a_disk_that_is_not_there_has_no_empty_list(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(disk: DiskAddress, options: AttachOptions) -> None:
        raise NotFoundError(f"disk {disk} does not exist", missing="disk", remedy="create it")

    monkeypatch.setattr(snapshots, "list_snapshots", lambda disk, options: [])
    monkeypatch.setattr(look, "get_disk", missing)
    done = machine.run("snapshot", "list", str(DISK))
    assert (done.code, done.out, done.err) == (1, "", f"dyskctl: disk {DISK} does not exist: create it\n")
    monkeypatch.setattr(look, "get_disk", lambda disk, options: None)
    assert machine.run("snapshot", "list", str(DISK), "-o", "json").out == "[]\n"


def test_lists_for_people_and_for_programs(machine: Machine, asked: list[tuple[object, ...]]) -> None:
    lines = machine.run("snapshot", "list", str(DISK)).out.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["nightly", "-"]
    assert lines[1].split("  ")[-1] == "frozen: /data (ext4)"
    (first, _) = json.loads(machine.run("snapshot", "list", str(DISK), "-o", "json").out)
    assert first == {
        "disk": f"{DISK}?snapshot={TIME}",
        "time": TIME,
        "size": 3 << 30,
        "name": "nightly",
        "consistent": "file-system",
        "why": "frozen: /data (ext4)",
        "metadata": {NAME: "nightly", "team": "a"},
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["create", str(DISK), "--freeze-timeout", "0"], "is not between 0 and 300 s"),
        (["create", str(DISK), "--freeze-timeout", "10m"], "is not between 0 and 300 s"),
        (["create", str(DISK), "--freeze-timeout", "soon"], "is not a time"),
        (["create"], "missing argument"),
        (["creat", str(DISK)], "did you mean create"),
        (["delete", str(DISK), "--yes"], "is a disk, not a snapshot"),
        (["delete", f"{DISK}?snapshot={TIME}"], "add --yes"),
        (["delete", f"{DISK}?snapshot=yesterday", "--yes"], "not a snapshot's time"),
    ],
)
def test_what_snapshot_does_not_take(
    machine: Machine, asked: list[tuple[object, ...]], words: list[str], told: str
) -> None:
    done = machine.run("snapshot", *words)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert told in done.err
    assert asked == []


def test_a_snapshot_that_is_attached_here_is_not_deleted(machine: Machine, asked: list[tuple[object, ...]]) -> None:
    machine.disks[f"{DISK}?snapshot={TIME}"] = 1 << 30
    assert machine.run("attach", str(DISK), "--snapshot", TIME).code == 0
    done = machine.run("snapshot", "delete", f"{DISK}?snapshot={TIME}", "--yes")
    assert done.code == 1 and "is attached here" in done.err
    machine.attached.clear()
    assert machine.run("snapshot", "delete", f"{DISK}?snapshot={TIME}", "--yes").code == 0
    assert asked == [(f"{DISK}?snapshot={TIME}",)]


@pytest.mark.parametrize("named", ["web", "/dev/null"])
def test_a_disk_that_is_attached_here_is_named_by_its_attachment(
    machine: Machine, asked: list[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """Of an account elsewhere, so the endpoint is the attachment's."""
    where = Endpoint.parse("http://127.0.0.1:10000/mystore")
    machine.attached["web"] = replace(EXAMPLE, name="web", endpoint=str(where))
    listed: list[DiskAddress] = []

    def list_snapshots(disk: DiskAddress, options: AttachOptions) -> list[Snapshot]:
        listed.append(disk)
        return [MADE]

    monkeypatch.setattr(snapshots, "list_snapshots", list_snapshots)
    assert machine.run("snapshot", "list", named).code == 0
    assert listed == [replace(DISK, endpoint=where)]
    done = machine.run("snapshot", "delete", f"{named}?snapshot={TIME}", "--yes")
    assert (done.code, done.out) == (0, f"deleted {DISK}?snapshot={TIME}\n")
    assert asked == [(f"{DISK}?snapshot={TIME}",)]
    compared: list[tuple[DiskAddress, str]] = []

    def changed(disk: DiskAddress, since: str, options: AttachOptions) -> list[Changed]:
        compared.append((disk, since))
        return []

    monkeypatch.setattr(ranges, "changed_ranges", changed)
    assert machine.run("diff", named, "--from", TIME).code == 0
    assert machine.run("diff", named, "--from", f"{named}?snapshot={TIME}", "--to", f"{DISK}?snapshot={TIME}").code == 0
    assert compared == [(listed[0], TIME), (replace(listed[0], snapshot=TIME), TIME)]
    copied: list[DiskAddress] = []
    monkeypatch.setattr(clones, "abort_clone", lambda target, options, source_options: copied.append(target))
    assert machine.run("clone", named, "mystore/disks/copy", "--abort").code == 0
    assert [str(each) for each in copied] == ["mystore/disks/copy"]


@pytest.mark.parametrize(
    "words",
    [
        ["snapshot", "list", "web"],
        ["snapshot", "delete", f"/dev/loop9?snapshot={TIME}", "--yes"],
        ["diff", "web", "--from", TIME],
        ["diff", str(DISK), "--from", f"web?snapshot={TIME}"],
        ["clone", "web", "mystore/disks/copy"],
        ["tier", "web", "P30"],
    ],
)
def test_what_is_not_attached_here_is_told_as_that(machine: Machine, words: list[str]) -> None:
    done = machine.run(*words)
    assert (done.code, done.out) == (1, "")
    assert "is not attached here" in done.err and done.err.count("\n") == 1


def test_a_name_that_is_no_disk_and_a_time_that_is_none_are_told_as_such(machine: Machine) -> None:
    machine.attached["web"] = replace(EXAMPLE, name="web")
    done = machine.run("snapshot", "delete", "web?snapshot=yesterday", "--yes")
    assert done.code == 2 and "not a snapshot's time" in done.err


def test_two_snapshots_cannot_be_attached_as_one(machine: Machine) -> None:
    other = TIME.replace("2026", "2025")
    assert machine.run("attach", f"{DISK}?snapshot={TIME}", "--snapshot", other).code == 2
    assert machine.run("attach", str(DISK), "--snapshot", "yesterday").code == 2


class Kernel:
    """File systems by descriptor: which are frozen, by whom, and which cannot be.

    told: what the record said was to be thawed, at each call.
    """

    def __init__(self, patch: pytest.MonkeyPatch, directory: Path) -> None:
        self.directory = directory
        self.told: list[set[str] | None] = []
        self.frozen: set[int] = set()
        self.cannot: set[int] = set()
        self.calls: list[tuple[str, int]] = []
        patch.setattr(freeze, "freeze", self.freeze)
        patch.setattr(freeze, "thaw", self.thaw)
        patch.setattr("blobfuse_dysk.device.attacher.freezer._sync", lambda fd: 0)

    def freeze(self, fd: int) -> bool:
        self._look("freeze", fd)
        if fd in self.cannot:
            raise OSError(95, "Operation not supported")
        done = fd not in self.frozen
        self.frozen.add(fd)
        return done

    def thaw(self, fd: int) -> bool:
        self._look("thaw", fd)
        done = fd in self.frozen
        self.frozen.discard(fd)
        return done

    def _look(self, call: str, fd: int) -> None:
        self.calls.append((call, fd))
        record = FreezeRecord.open(str(self.directory), "data")
        if record:
            self.told.append(record.to_thaw("id"))
            record.close()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    return Kernel(monkeypatch, tmp_path)


@pytest.fixture
def record(tmp_path: Path) -> FreezeRecord:
    (tmp_path / "data").mkdir()
    made = FreezeRecord.make(str(tmp_path), "data", "id", 0.0)
    assert made
    return made


class Talk:
    """A freezer of two file systems, 101 and 102, and its pipes."""

    def __init__(self, record: FreezeRecord, orders: bytes, *, stays: bool = False) -> None:
        """stays: whoever gives the orders does not go away."""
        reader, writer = os.pipe()
        os.write(writer, orders)
        if not stays:
            os.close(writer)
        answers, ours = os.pipe()
        Freezer(record, {"7:1": 101, "7:2": 102}, 0.2, reader, ours).run()
        if stays:
            os.close(writer)
        os.close(ours)
        self.said = os.read(answers, 4096).decode().splitlines()
        os.close(answers)
        os.close(reader)


def test_all_or_none_is_frozen(kernel: Kernel, record: FreezeRecord) -> None:
    kernel.cannot = {102}
    said = Talk(record, b"freeze\n", stays=True).said
    assert said == ["synced", "failed 95 7:2"]
    assert kernel.frozen == set()
    assert record.to_thaw("id") == set()


def test_what_was_frozen_before_stays_so(kernel: Kernel, record: FreezeRecord) -> None:
    kernel.frozen = {102}
    assert Talk(record, b"freeze", stays=True).said == ["synced", "frozen 7:2"]  # until its bound is over
    assert kernel.frozen == {102}
    assert kernel.calls == [("freeze", 101), ("freeze", 102), ("thaw", 101)]
    assert kernel.told == [{"7:1"}, {"7:1", "7:2"}, {"7:1"}]  # whenever the freezer dies, the guard thaws no more


def test_nothing_is_frozen_once_the_command_is_gone(kernel: Kernel, record: FreezeRecord) -> None:
    assert Talk(record, b"").said == ["synced"]
    assert kernel.calls == []


def test_a_freeze_ends_with_the_command(kernel: Kernel, record: FreezeRecord) -> None:
    said = Talk(record, b"freeze").said  # whose end of the pipe is closed by then
    assert said == ["synced"]
    assert kernel.calls == [("freeze", 101), ("thaw", 101)]
    assert kernel.told == [{"7:1"}, {"7:1"}]


def test_the_record_tells_what_is_to_be_thawed(tmp_path: Path, record: FreezeRecord) -> None:
    assert record.to_thaw("id") == set()
    record.append("guarded 7:1 7:2")
    record.append("freezing 7:1")
    record.append("freezing 7:2")
    assert record.to_thaw("id") == {"7:1", "7:2"}
    record.append("spare 7:2")
    assert record.to_thaw("id") == {"7:1"}
    assert record.to_thaw("another") is None
    record.append("freezing 7:2")
    os.write(record.fd, b"do")  # of a line that is being written
    assert record.to_thaw("id") == {"7:1", "7:2"}
    os.write(record.fd, b"ne\n")
    assert record.to_thaw("id") == set()


def test_a_record_has_one_owner_and_is_made_anew_once_that_is_gone(tmp_path: Path, record: FreezeRecord) -> None:
    record.append("freezing 7:1")
    assert FreezeRecord.make(str(tmp_path), "data", "other", 1.0) is None
    record.close()
    other = FreezeRecord.make(str(tmp_path), "data", "other", 1.0)
    assert other
    assert other.read() == ("other", 1.0, [])
    other.remove()
    assert not other.is_in_place()
    other.close()


@pytest.mark.parametrize("done", [False, True])
def test_the_guard_thaws_what_was_left(
    kernel: Kernel, tmp_path: Path, record: FreezeRecord, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    monkeypatch.setattr(
        freeze, "file_systems", lambda device: [freeze.FileSystem(f"7:{n}", "ext4", []) for n in (1, 2, 3)]
    )
    monkeypatch.setattr(freeze, "open_root", lambda each: 100 + int(each.device[-1]))
    kernel.frozen = {101, 102, 103}
    for line in ("freezing 7:1", "freezing 7:2", "spare 7:2", *(["done"] * done)):
        record.append(line)
    record.close()  # its end
    freezeguard.guard(str(tmp_path), "data", "/dev/loop1")
    assert kernel.frozen == ({101, 102, 103} if done else {102, 103})
    assert FreezeRecord.open(str(tmp_path), "data") is None


def test_the_guard_does_not_wait_for_one_that_is_stopped(
    kernel: Kernel, tmp_path: Path, record: FreezeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeze, "file_systems", lambda device: [freeze.FileSystem("7:1", "ext4", [])])
    monkeypatch.setattr(freeze, "open_root", lambda each: 101)
    kernel.frozen = {101}
    record.append("freezing 7:1")
    waited = []
    inner = FreezeRecord.lock

    def lock(self: FreezeRecord) -> None:
        waited.append(set(kernel.frozen))
        inner(self)

    def thaw(fd: int) -> bool:
        if kernel.frozen:
            record.close()  # it goes on, and ends
        return kernel.thaw(fd)

    monkeypatch.setattr(freeze, "thaw", thaw)
    monkeypatch.setattr(FreezeRecord, "lock", lock)
    freezeguard.guard(str(tmp_path), "data", "/dev/loop1")
    assert waited == [{101}, set()]
