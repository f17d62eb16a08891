"""What is done to disks, for whichever front end: the rules, and that nothing is printed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blobfuse_dysk.disk import MAX_SIZE, DiskAddress
from blobfuse_dysk.disks.create import attach_or_create, create_disk, create_within
from blobfuse_dysk.disks.delete import check_deletable, delete_disk
from blobfuse_dysk.disks.look import blob_size, list_disks
from blobfuse_dysk.errors import AttachedError, DyskError, NotFoundError, UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.vhd import parse_footer
from tests.unit.cli_fakes import EXAMPLE, Machine, machine

__all__ = ["machine"]

MIB = 1 << 20
DISK = DiskAddress.parse("mystore/disks/data")
SNAPSHOT = replace(DISK, snapshot="2026-01-31T12:00:00.0000000Z")
OPTIONS = AttachOptions()


def told_size(last_page: object) -> int:
    """The size that a footer tells of."""
    assert isinstance(last_page, bytes)
    parsed = parse_footer(last_page)
    assert parsed
    return parsed.current_size


def test_a_footer_lies_behind_the_disk_and_tells_its_size(machine: Machine) -> None:
    assert create_disk(DISK, 3 * MIB, OPTIONS, vhd=True) == 3 * MIB + 512
    _, name, blob_size, last_page = machine.calls[0]
    assert (name, blob_size, told_size(last_page)) == (str(DISK), 3 * MIB + 512, 3 * MIB)
    assert machine.capsys.readouterr() == ("", "")


def test_a_footer_of_the_originals_lies_within_the_size_that_it_tells(machine: Machine) -> None:
    create_within(DISK, 3 * MIB, OPTIONS, vhd=True)
    _, _, blob_size, last_page = machine.calls[0]
    assert (blob_size, told_size(last_page)) == (3 * MIB, 3 * MIB)
    create_within(replace(DISK, blob="plain"), 3 * MIB, OPTIONS, vhd=False)
    assert machine.calls[1][2:] == (3 * MIB, None)


@pytest.mark.parametrize("size", [MIB - 512, MIB + 512, 2 * MIB + 1024])
def test_a_vhd_is_whole_mib_and_other_disks_are_not(machine: Machine, size: int) -> None:
    with pytest.raises(UsageError, match="whole number of MiB"):
        create_disk(DISK, size, OPTIONS, vhd=True)
    assert machine.calls == []
    assert create_disk(DISK, size, OPTIONS) == size


def test_the_largest_disks(machine: Machine) -> None:
    assert create_disk(DISK, MAX_SIZE, OPTIONS) == MAX_SIZE
    with pytest.raises(UsageError, match="too large"):
        create_disk(replace(DISK, blob="other"), MAX_SIZE, OPTIONS, vhd=True)
    assert len(machine.calls) == 1


def test_one_that_is_there_is_attached_as_it_is(machine: Machine) -> None:
    machine.disks[str(DISK)] = 5 * MIB
    assert attach_or_create(DISK, 3 * MIB, OPTIONS).size == 5 * MIB
    assert [call[0] for call in machine.calls] == ["attach"]


@pytest.mark.parametrize(("vhd", "size"), [("yes", 3 * MIB + 512), ("no", 3 * MIB), ("auto", 3 * MIB)])
def test_one_that_is_not_there_is_created(machine: Machine, vhd: str, size: int) -> None:
    attach_or_create(DISK, 3 * MIB, AttachOptions(vhd=vhd))  # type: ignore[arg-type]
    assert [call[0] for call in machine.calls] == ["attach", "create", "attach"]
    assert machine.disks == {str(DISK): size}


def test_what_fails_otherwise_creates_nothing(machine: Machine) -> None:
    machine.failure = DyskError("the service does not answer")
    with pytest.raises(DyskError, match="does not answer"):
        attach_or_create(DISK, 3 * MIB, OPTIONS)
    assert [call[0] for call in machine.calls] == ["attach"]


@pytest.mark.parametrize("break_lease", [False, True])
def test_a_disk_that_is_attached_here_is_not_deleted(machine: Machine, break_lease: bool) -> None:
    machine.disks[str(DISK)] = MIB
    machine.attached["data"] = replace(EXAMPLE, disk=DISK.key)
    with pytest.raises(AttachedError, match=EXAMPLE.device):
        check_deletable(DISK)
    with pytest.raises(AttachedError):
        delete_disk(DISK, OPTIONS, break_lease=break_lease)
    assert machine.calls == []
    machine.attached["data"] = replace(EXAMPLE, disk="mystore/disks/data2")
    delete_disk(DISK, OPTIONS, break_lease=break_lease)
    assert machine.calls == [("delete", str(DISK), {"break_lease": break_lease, "lease_id": None, "snapshots": False})]


def test_a_snapshot_is_no_disk_to_create_or_delete(machine: Machine) -> None:
    for refused in (lambda: create_disk(SNAPSHOT, MIB, OPTIONS), lambda: delete_disk(SNAPSHOT, OPTIONS)):
        with pytest.raises(UsageError, match="snapshot"):
            refused()
    assert machine.calls == []


def test_the_size_of_one_is_asked_of_that_one(machine: Machine) -> None:
    machine.disks = {str(DISK): 3 * MIB, "mystore/disks/data2": 9 * MIB}
    assert blob_size(DISK, OPTIONS) == 3 * MIB
    assert machine.calls == [("properties", str(DISK))]
    with pytest.raises(NotFoundError):
        blob_size(replace(DISK, blob="none"), OPTIONS)
    assert list_disks(DISK, OPTIONS) == []
