"""dyskctl attach-file: what a file in /etc/dysk/disks.d has attached."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from blobfuse_dysk.options import AttachOptions
from tests.unit.cli_fakes import EXAMPLE, Machine, machine

__all__ = ["machine"]

DISK = "mystore/disks/db"
SNAPSHOT = f"{DISK}?snapshot=2026-01-31T12:00:00.0000000Z"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db.conf"


def test_the_disk_is_attached_with_the_options_of_its_file(machine: Machine, path: Path) -> None:
    machine.disks[DISK] = 1 << 30
    path.write_text(f"disk = {DISK}\nio_timeout = never\niops = 500\nallow-http = yes\n")
    result = machine.run("attach-file", str(path))
    assert (result.code, result.out, result.err) == (0, "/dev/null\n", "")
    options = AttachOptions(name="db", io_timeout_s=None, iops=500, allow_http=True)
    assert machine.calls == [("attach", DISK, options)]


def test_a_snapshot_is_attached_read_only(machine: Machine, path: Path) -> None:
    machine.disks[SNAPSHOT] = 1 << 30
    path.write_text(f"disk = {SNAPSHOT}\n")
    result = machine.run("attach-file", str(path), "-o", "json")
    assert json.loads(result.out)["name"] == "db"
    assert machine.calls == [("attach", SNAPSHOT, AttachOptions(name="db", read_only=True))]


def test_what_is_attached_already_is_left_as_it_is(machine: Machine, path: Path) -> None:
    machine.attached["db"] = replace(EXAMPLE, name="db", disk=DISK, device="/dev/zero")
    path.write_text(f"disk = {DISK}\n")
    result = machine.run("attach-file", str(path))
    assert (result.code, result.out, machine.calls) == (0, "/dev/zero\n", [])


def test_a_dead_attachment_is_attached_again(machine: Machine, path: Path) -> None:
    machine.disks[DISK] = 1 << 30
    machine.attached["db"] = replace(EXAMPLE, name="db", disk=DISK, state="dead")
    path.write_text(f"disk = {DISK}\n")
    assert machine.run("attach-file", str(path)).code == 0
    assert [call[0] for call in machine.calls] == ["attach"]


def test_a_name_that_another_disk_has_is_an_error(machine: Machine, path: Path) -> None:
    machine.attached["db"] = replace(EXAMPLE, name="db", disk="mystore/disks/other")
    path.write_text(f"disk = {DISK}\n")
    result = machine.run("attach-file", str(path))
    assert result.code != 0 and machine.calls == []
    assert result.err == "dyskctl: the name db is taken by mystore/disks/other: first: dyskctl detach db\n"


def test_a_mistake_is_named_with_file_and_line(machine: Machine, path: Path) -> None:
    path.write_text(f"disk = {DISK}\nmbps = 0.01\n")
    result = machine.run("attach-file", str(path))
    assert (result.code, machine.calls) == (2, [])
    assert result.err == f"dyskctl: {path}, line 2: mbps of 0.01: use 0.1 or more, or none for no limit\n"
