"""Why a mount failed, where what failed knows of an I/O error only, and what helps then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from blobfuse_dysk.attached import once_detached
from blobfuse_dysk.device.holder import lifecycle
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DeviceError, DyskError
from blobfuse_dysk.mount import helper as helpers
from blobfuse_dysk.store import stack
from blobfuse_dysk.store.lease import watch
from tests.unit.mount_fakes import Machine, machine
from tests.unit.test_mount_steps import NAME, request

__all__ = ["machine"]


@pytest.mark.parametrize(
    ("state", "detail", "said"),
    [
        ("failed", "it is immutable: use another container", "it is immutable: use another container"),
        ("recovering", "no answer", "is the disk large enough?"),
        ("failed", None, "is the disk large enough?"),
    ],
)
def test_a_disk_that_failed_says_why_mkfs_did(machine: Machine, state: Any, detail: str | None, said: str) -> None:
    """mkfs hears of an I/O error only; under an immutability policy the advice was to look at the disk's size."""
    machine.fails["mkfs"] = DeviceError("mkfs.ext4 failed: Input/output error", remedy="is the disk large enough?")
    machine.becomes = {"state": state, "detail": detail}
    with pytest.raises(DeviceError, match=r"mkfs\.ext4 failed") as caught:
        helpers.mount(request(machine))
    assert caught.value.line().endswith(said)
    assert machine.named("detach") == [("detach", NAME)]


@pytest.mark.parametrize(
    ("remedy", "left"),
    [
        ("unmount and detach it here, then attach it where it is needed", "attach it where it is needed"),
        (stack._AFTER_LOSS, "attach it again and check its file system"),
        (watch._RESTORE, "a snapshot, or soft delete in the portal, may still have what was on it"),
        (watch._REPLACED, "see what it is now before attaching it again"),
        (
            "another node had the disk meanwhile; detach it here and attach it anew",
            "another node had the disk meanwhile; attach it anew",
        ),
        ("detach the disk, then attach it and check its file system", "attach it and check its file system"),
        (lifecycle._AFTER_FAILURE, "what was not flushed before is lost; attach it again, and check its file system"),
        ("the policy ends in 3 days", "the policy ends in 3 days"),
    ],
)
def test_nobody_is_told_to_detach_what_is_not_attached_any_more(machine: Machine, remedy: str, left: str) -> None:
    assert once_detached(remedy) == left
    machine.fails["mkfs"] = DeviceError("mkfs.ext4 failed: Input/output error")
    machine.becomes = {"state": "fenced", "detail": f"it is lost: {remedy}"}
    with pytest.raises(DeviceError) as caught:
        helpers.mount(request(machine))
    assert caught.value.line().endswith(f" is fenced: it is lost: {left}")
    assert machine.named("detach") == [("detach", NAME)]


@pytest.mark.parametrize(
    ("writer", "snapshot", "says"),
    [
        (None, "", "mount it once without ro"),
        ("leased by node seven since 2026-01-31T12:00:00Z", "", "it is leased by node seven since 2026-01-31T12:"),
        (None, "?snapshot=2026-01-31T12:00:00.0000000Z", "a snapshot stays as it is"),
    ],
)
def test_a_blank_disk_that_is_only_read_is_to_be_formatted_by_who_may(
    machine: Machine, writer: str | None, snapshot: str, says: str
) -> None:
    """Where another node writes, to mount it without ro would be the second writer."""
    machine.writer = writer
    wanted = request(machine, read_only=True)
    wanted = replace(wanted, disk=DiskAddress.parse(f"{wanted.disk}{snapshot}"))
    with pytest.raises(DyskError, match="is blank") as caught:
        helpers.mount(wanted)
    assert caught.value.remedy and caught.value.remedy.startswith(says)
    assert machine.named("mkfs", "mount") == []


@pytest.mark.parametrize(("fstype", "says"), [("xfs", True), ("ext4", False)])
def test_an_xfs_that_is_not_mounted_may_be_a_copy_of_one_that_is(machine: Machine, fstype: str, says: bool) -> None:
    machine.blank, machine.probed, machine.fails = False, {"TYPE": fstype}, {"mount": 32}
    with pytest.raises(DyskError, match=r"mounting .* failed") as caught:
        helpers.mount(request(machine))
    assert ("if what it is a copy of is mounted here, add -o nouuid" in (caught.value.remedy or "")) is says
    assert f"fsck.{fstype}" in (caught.value.remedy or "")
