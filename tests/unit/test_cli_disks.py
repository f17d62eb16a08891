"""The verbs about disks of the account: what they ask of the layers below, what they ask a person, what they print."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from blobfuse_dysk.azure import deletion, management
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks import look
from blobfuse_dysk.disks import resize as resizing
from blobfuse_dysk.disks.look import Disk
from blobfuse_dysk.disks.resize import Resized
from blobfuse_dysk.errors import HasSnapshotsError, NotFoundError
from blobfuse_dysk.options import AttachOptions
from tests.unit.cli_fakes import EXAMPLE, Machine, machine

__all__ = ["machine"]

GIB = 1 << 30
DISK = "mystore/disks/data"
LOOKED_AT = Disk(
    disk=DiskAddress.parse(DISK),
    size=32 * GIB,
    blob_size=32 * GIB + 512,
    vhd=True,
    metadata={"team": "a"},
    tier="P4",
    lease_state="leased",
    holder="n1",
    since="2026-01-31T12:00:00Z",
    snapshot=None,
    created="Sat, 31 Jan 2026 12:00:00 GMT",
    etag='"0x1"',
    copy_status=None,
    incomplete=False,
    allocated=None,
)


class Terminal:
    """Somebody who types these lines."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def isatty(self) -> bool:
        return True

    def readline(self, size: int = -1) -> str:
        return self.lines.pop(0)


def test_create_hands_on_tier_metadata_and_tags(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(management, "create_disk", lambda *words, **options: asked.append(options))
    flags = ["--tier", "p10", "--metadata", "a=b", "--metadata", "c=d e", "--tags", "team=web"]
    result = machine.run("create", DISK, "--size", "64GiB", *flags)
    assert result.code == 0
    assert asked == [{"tier": "P10", "metadata": {"a": "b", "c": "d e"}, "tags": {"team": "web"}}]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tier", "P5"], "no tier 'P5'"),
        (["--tier", "P4"], "use P6 or a higher one"),
        (["--metadata", "a"], "is not NAME=VALUE"),
        (["--metadata", "a-b=c"], "cannot be named 'a-b'"),
        (["--tags", "a=,"], "a tag cannot be"),
    ],
)
def test_what_no_disk_can_have_makes_none(machine: Machine, flags: list[str], says: str) -> None:
    result = machine.run("create", DISK, "--size", "64GiB", *flags)
    assert result.code == 2 and says in result.err
    assert result.err.count("\n") == 1
    assert machine.calls == []


@pytest.mark.parametrize("agrees", [True, False])
def test_delete_asks_about_snapshots(machine: Machine, monkeypatch: pytest.MonkeyPatch, agrees: bool) -> None:
    asked: list[bool] = []

    def delete(*words: object, snapshots: bool, **options: object) -> None:
        asked.append(snapshots)
        if not snapshots:
            raise HasSnapshotsError(f"disk {DISK} has snapshots", remedy="--snapshots")

    monkeypatch.setattr(deletion, "delete_disk", delete)
    monkeypatch.setattr(sys, "stdin", Terminal("y\n", "y\n" if agrees else "n\n"))
    result = machine.run("delete", DISK)
    assert "has snapshots. Delete them, too?" in result.err
    assert (result.code, asked) == ((0, [False, True]) if agrees else (2, [False]))


def test_a_script_that_did_not_agree_keeps_disk_and_snapshots(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete(*words: object, snapshots: bool, **options: object) -> None:
        assert not snapshots
        raise HasSnapshotsError(f"disk {DISK} has snapshots", remedy="--snapshots")

    monkeypatch.setattr(deletion, "delete_disk", delete)
    result = machine.run("delete", DISK, "--yes")
    assert result.code == 2 and "has snapshots: --snapshots" in result.err


def test_snapshots_that_go_as_well_are_in_the_question(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.disks[DISK] = GIB
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    result = machine.run("delete", DISK, "--snapshots")
    assert f"Delete {DISK} and everything on it, and all its snapshots?" in result.err
    assert machine.calls == [("delete", DISK, {"break_lease": False, "lease_id": None, "snapshots": True})]


def test_tier_raises_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(management, "set_tier", lambda address, credential, tier: asked.append(tier))
    assert machine.run("tier", DISK, "p20").out == f"{DISK} has tier P20\n"
    assert json.loads(machine.run("tier", DISK, "P30", "-o", "json").out) == {"disk": DISK, "tier": "P30"}
    assert machine.run("tier", DISK, "fast").code == 2
    assert machine.run("tier", f"{DISK}?snapshot=2026-01-31T12:00:00.0000000Z", "P30").code == 2
    assert asked == ["P20", "P30"]


def test_get_shows_a_disk_that_is_not_attached_here(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def get_disk(disk: DiskAddress, options: AttachOptions, *, allocated: bool) -> Disk:
        asked.append((str(disk), allocated))
        return LOOKED_AT

    monkeypatch.setattr(look, "get_disk", get_disk)
    shown = json.loads(machine.run("get", DISK, "-o", "json").out)
    assert shown["disk"] == DISK and shown["size"] == 32 * GIB and shown["holder"] == "n1" and shown["tier"] == "P4"
    text = machine.run("get", DISK, "--allocated").out
    assert "32GiB\n" in text and f"({32 * GIB + 512} bytes)" in text
    machine.attached["data"] = EXAMPLE
    assert "/dev/null" in machine.run("get", DISK).out
    assert "/dev/null" not in machine.run("get", DISK, "--in-account").out
    assert asked == [(DISK, False), (DISK, True), (DISK, False)]


@pytest.mark.parametrize("target", ["data", "/dev/loop7"])
def test_get_of_what_cannot_be_a_disk_asks_no_account(
    target: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_disk(*words: object, **options: object) -> Disk:
        raise NotFoundError("asked")

    monkeypatch.setattr(look, "get_disk", get_disk)
    result = machine.run("get", target)
    assert result.code == 1 and "is not attached here" in result.err


@pytest.mark.parametrize(
    ("done", "says"),
    [
        (
            Resized(DISK, 64 * GIB, 32 * GIB, True, "data", "ext4", True),
            "data: 64GiB, was 32GiB; its ext4 grew with it",
        ),
        (Resized(DISK, 64 * GIB, 32 * GIB, True, "data", "vfat"), "data: 64GiB, was 32GiB; its vfat is as it was"),
        (
            Resized(DISK, 64 * GIB, 32 * GIB, True, "data", partitions=2),
            "data: 64GiB, was 32GiB; its partitions are as they were",
        ),
        (
            Resized(DISK, 64 * GIB, 32 * GIB, False),
            f"{DISK}: 64GiB, was 32GiB; a file system on it grows at the next mount with -o grow",
        ),
        (Resized(DISK, 16 * GIB, 32 * GIB, False), f"{DISK}: 16GiB, was 32GiB"),
    ],
)
def test_resize_says_what_became_of_disk_and_file_system(
    done: Resized, says: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def resize(target: object, size: int, options: AttachOptions, *, by: bool, force: bool) -> Resized:
        asked.append((str(target), size, by, force))
        return done

    monkeypatch.setattr(resizing, "resize", resize)
    assert machine.run("resize", DISK, "64GiB").out == f"{says}\n"
    told = json.loads(machine.run("resize", "data", "+32GiB", "--force", "-o", "json").out)
    assert (told["size"], told["before"], told["grown"]) == (done.size, done.before, done.grown)
    assert asked == [(DISK, 64 * GIB, False, False), ("data", 32 * GIB, True, True)]


@pytest.mark.parametrize("size", ["", "+", "-1GiB", "++1GiB", "large", "+0"])
def test_a_size_that_is_none_resizes_nothing(size: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def resize(*words: object, **options: object) -> Resized:
        raise AssertionError("asked")

    monkeypatch.setattr(resizing, "resize", resize)
    result = machine.run("resize", "--", "data", size)
    assert result.code == 2 and result.err.count("\n") == 1
