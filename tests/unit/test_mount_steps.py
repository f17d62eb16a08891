"""Mounting step by step: what is formatted and what never is, what is mounted, and what is undone after a failure."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from blobfuse_dysk.errors import (
    AttachedError,
    BusyError,
    CredentialError,
    DeviceError,
    DyskError,
    NotFoundError,
    StoreError,
)
from blobfuse_dysk.errors import Kind as ErrorKind
from blobfuse_dysk.imageformat import Found
from blobfuse_dysk.mount import helper as helpers
from blobfuse_dysk.mount.options import MountRequest
from tests.unit.mount_fakes import DEVICE, DISK, Machine, machine

__all__ = ["machine"]

PARTITION = f"{DEVICE}p1"
NAME = "data"


def request(machine: Machine, **changes: Any) -> MountRequest:
    made = MountRequest(DISK, str(machine.directory), **changes)
    return replace(made, attach=replace(made.attach, read_only=made.read_only, autoclear=True))


@pytest.mark.parametrize(("fstype", "made"), [("auto", "ext4"), ("ext4", "ext4"), ("xfs", "xfs"), ("btrfs", "btrfs")])
def test_a_blank_disk_is_formatted_mounted_and_left_to_its_mount(machine: Machine, fstype: str, made: str) -> None:
    assert helpers.mount(request(machine, fstype=fstype, options=("noatime",))) == 0
    assert machine.calls == [
        ("attach", str(DISK)),
        ("is_blank", NAME),
        ("mkfs", made, DEVICE),
        ("mount", "-t", made, "-o", "rw,noatime,_netdev,helper=dysk", DEVICE, str(machine.directory)),
        ("let_go", NAME),
    ]


@pytest.mark.parametrize("fstype", ["auto", "xfs"])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_system_that_is_there_is_mounted_as_it_is(machine: Machine, fstype: str, read_only: bool) -> None:
    machine.blank, machine.probed = False, {"TYPE": "xfs"}
    assert helpers.mount(request(machine, fstype=fstype, read_only=read_only)) == 0
    options = f"{'ro' if read_only else 'rw'},_netdev,helper=dysk"
    assert machine.named("mount") == [("mount", "-t", "xfs", "-o", options, DEVICE, str(machine.directory))]
    assert machine.named("mkfs") == []


REFUSED: list[tuple[str, bool, dict[str, str], dict[str, Any]]] = [
    # says; whether the page map calls it blank; what blkid finds; the request
    ("is blank", True, {}, {"read_only": True}),
    ("mkfs=never", True, {}, {"make_blank": False}),
    ("it was not formatted", False, {}, {}),
    ("it was not formatted", False, {}, {"fstype": "ext4"}),
    ("it was not formatted", False, {"PART_ENTRY_NUMBER": "1"}, {"partition": 1, "fstype": "ext4"}),
    ("has a partition table", False, {"PTTYPE": "gpt"}, {}),
    ("has a partition table", False, {"PTTYPE": "dos"}, {"fstype": "ext4"}),
    ("has xfs on it, not ext4", False, {"TYPE": "xfs"}, {"fstype": "ext4"}),
    ("is an LVM physical volume; nothing was formatted", False, {"TYPE": "LVM2_member"}, {"fstype": "xfs"}),
    ("is a LUKS container", False, {"TYPE": "crypto_LUKS", "USAGE": "crypto"}, {}),
    ("is swap space", False, {"TYPE": "swap", "USAGE": "other"}, {}),
    ("is drbd, which is no file system", False, {"TYPE": "drbd", "USAGE": "raid"}, {}),
    ("is blank", True, {}, {"fstype": "vfat"}),
    ("is blank, and mkfs=never", True, {}, {"fstype": "ext3", "make_blank": False}),
    ("has ext4 on it, not ext3", False, {"TYPE": "ext4", "USAGE": "filesystem"}, {"fstype": "ext3"}),
    ("has no partition 2", True, {}, {"partition": 2}),
    ("has no partition 2", False, {"TYPE": "ext4"}, {"partition": 2}),
    ("partition 1 of", True, {}, {"partition": 1}),
    ("partition 1 of", True, {}, {"partition": 1, "fstype": "ext4"}),
]


@pytest.mark.parametrize(("says", "blank", "probed", "changes"), REFUSED)
def test_what_is_not_formatted_and_not_mounted(
    machine: Machine, says: str, blank: bool, probed: dict[str, str], changes: dict[str, Any]
) -> None:
    """A partition is never formatted: that the kernel found it is content, whatever the page map says."""
    machine.blank, machine.probed, machine.partitions = blank, probed, [PARTITION]
    with pytest.raises(DyskError, match=says):
        helpers.mount(request(machine, **changes))
    assert machine.named("mkfs", "mount") == []
    assert machine.calls[-1] == ("detach", NAME)


@pytest.mark.parametrize("call", ["is_blank", "probe"])
def test_a_question_without_an_answer_formats_nothing(machine: Machine, call: str) -> None:
    machine.blank = False
    machine.fails[call] = StoreError("the page list cannot be had", ErrorKind.INTERNAL)
    with pytest.raises(StoreError):
        helpers.mount(request(machine, fstype="ext4"))
    assert machine.named("mkfs", "mount") == []
    assert machine.calls[-1] == ("detach", NAME)


OPENED = [
    ("crypto_LUKS", "cryptsetup open /dev/dysk/by-blob/mystore/disks/data NAME"),
    ("swap", "swapon /dev/dysk/by-blob/mystore/disks/data"),
    ("LVM2_member", "vgchange -ay"),
    ("linux_raid_member", "mdadm --assemble --scan"),
    ("bcache", "echo /dev/dysk/by-blob/mystore/disks/data > /sys/fs/bcache/register"),
]


@pytest.mark.parametrize(("kind", "opens"), OPENED)
def test_what_has_to_be_opened_first_is_said_to_be_that_with_what_opens_it(
    machine: Machine, kind: str, opens: str
) -> None:
    machine.blank, machine.probed = False, {"TYPE": kind}
    with pytest.raises(DyskError) as caught:
        helpers.mount(request(machine))
    assert caught.value.remedy
    assert caught.value.remedy.startswith(f"dyskctl attach {DISK}, then: {opens}")
    assert "mkfs" not in caught.value.line() and "fsck" not in caught.value.line()


@pytest.mark.parametrize("read_only", [False, True])
def test_an_image_of_another_format_is_named_with_what_converts_it(machine: Machine, read_only: bool) -> None:
    machine.blank, machine.content = False, Found("image", "a qcow2 image", "qemu-img convert -f qcow2 {} FILE")
    with pytest.raises(DyskError, match="is a qcow2 image; nothing was formatted") as caught:
        helpers.mount(request(machine, read_only=read_only))
    flag = " --read-only" * read_only
    path = "/dev/dysk/by-blob/mystore/disks/data"
    assert caught.value.remedy == f"dyskctl attach {DISK}{flag}, then: qemu-img convert -f qcow2 {path} FILE"


@pytest.mark.parametrize("changes", [{}, {"partition": 1}])
def test_unknown_content_is_never_advised_to_be_formatted(machine: Machine, changes: dict[str, Any]) -> None:
    machine.blank, machine.probed, machine.partitions = False, {}, [PARTITION]
    with pytest.raises(DyskError) as caught:
        helpers.mount(request(machine, **changes))
    path = "/dev/dysk/by-blob/mystore/disks/data" + "-part1" * len(changes)
    assert f"file -s {path}" in str(caught.value.remedy) and "mkfs" not in str(caught.value.remedy)


def test_of_two_signatures_fstype_decides(machine: Machine) -> None:
    machine.blank, machine.signatures = False, ["ext4", "xfs"]
    assert helpers.mount(request(machine, fstype="xfs")) == 0
    assert machine.named("mount")[0][2] == "xfs"


def test_two_signatures_are_named_with_the_disk_and_not_with_a_device_that_will_be_gone(machine: Machine) -> None:
    machine.blank, machine.signatures = False, ["xfs", "linux_raid_member"]
    for fstype in ("auto", "ext4"):
        with pytest.raises(DyskError, match="has traces of more than one thing: xfs, linux_raid_member") as caught:
            helpers.mount(request(machine, fstype=fstype))
        assert str(DISK) in str(caught.value) and DEVICE not in caught.value.line()
        assert "fstype=" in str(caught.value.remedy)
        machine.attached.clear()
    assert machine.named("mkfs", "mount") == []


@pytest.mark.parametrize("fstype", ["ext3", "ext2", "vfat", "exfat", "ntfs", "ntfs3", "f2fs"])
def test_other_file_systems_are_mounted_where_they_are_and_made_only_when_asked(machine: Machine, fstype: str) -> None:
    with pytest.raises(DyskError, match="is blank") as caught:
        helpers.mount(request(machine, fstype=fstype))
    machine.attached.clear()
    assert caught.value.remedy == f"to have {fstype} made on it: mkfs=blank"
    assert machine.named("mkfs", "mount") == []
    assert helpers.mount(request(machine, fstype=fstype, make_blank=True)) == 0
    assert machine.named("mkfs") == [("mkfs", fstype, DEVICE)]
    machine.mounts.clear()
    machine.attached.clear()
    machine.blank, machine.probed = False, {"TYPE": fstype.removesuffix("3") if fstype == "ntfs3" else fstype}
    assert helpers.mount(request(machine, fstype=fstype)) == 0
    assert [call[2] for call in machine.named("mount")] == [fstype, fstype]


def test_ntfs_without_its_helper_is_the_kernels_own(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for helper, driver in ((True, "ntfs"), (False, "ntfs3")):
        monkeypatch.setattr(os, "access", lambda path, mode, there=helper: there)
        machine.mounts.clear()
        machine.attached.clear()
        machine.blank, machine.probed = False, {"TYPE": "ntfs"}
        assert helpers.mount(request(machine)) == 0
        assert machine.named("mount")[-1][2] == driver


@pytest.mark.parametrize(
    ("journal", "options", "said"),
    [
        (True, (), f"mount.dysk: made ext4 on {DISK}\n"),
        (False, ("-O", "^has_journal"), f"mount.dysk: made ext4 on {DISK}\n"),
        (
            False,
            (),
            f"mount.dysk: made ext4 on {DISK}, without a journal: 32GiB is too small for one, so a crash takes an",
        ),
    ],
)
def test_mkfs_leaves_a_word_and_says_what_it_left_out(
    machine: Machine, capsys: pytest.CaptureFixture[str], journal: bool, options: tuple[str, ...], said: str
) -> None:
    machine.journal = journal
    assert helpers.mount(request(machine, mkfs_options=options)) == 0
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize("writer", [None, "leased by node seven since 2026-01-31T12:00:00Z"])
def test_to_read_past_the_journal_is_no_advice_for_a_disk_that_another_node_writes(
    machine: Machine, writer: str | None
) -> None:
    machine.blank, machine.probed, machine.writer = False, {"TYPE": "ext4"}, writer
    machine.fails["mount"] = 32
    with pytest.raises(DyskError) as caught:
        helpers.mount(request(machine, read_only=True))
    remedy = str(caught.value.remedy)
    assert ("noload" in remedy) is (writer is None)
    assert (f"it is {writer}" in remedy and "snapshot" in remedy) is (writer is not None)


def test_a_partition_is_probed_and_mounted(machine: Machine) -> None:
    machine.blank, machine.probed, machine.partitions = False, {"TYPE": "ext4"}, [PARTITION]
    assert helpers.mount(request(machine, partition=1)) == 0
    assert machine.named("probe") == [("probe", PARTITION)]
    assert machine.named("mount")[0][-2] == PARTITION


@pytest.mark.parametrize("call", ["mkfs", "mount", "let_go"])
@pytest.mark.parametrize("error", [DeviceError("no"), helpers.Interrupted(), RuntimeError("boom")])
def test_whatever_fails_is_undone(machine: Machine, call: str, error: BaseException) -> None:
    machine.fails[call] = error
    with pytest.raises(type(error)):
        helpers.mount(request(machine))
    assert machine.mounts == []
    assert machine.calls[-1] == ("detach", NAME)


def test_a_mount_that_mount_8_refuses_is_a_failure(machine: Machine) -> None:
    machine.fails["mount"] = 32
    with pytest.raises(DyskError, match="it says no"):
        helpers.mount(request(machine))
    assert machine.named("let_go") == []
    assert machine.calls[-1] == ("detach", NAME)


def test_interrupted_just_after_mount_2_it_is_unmounted_first(machine: Machine) -> None:
    machine.after["mount"] = helpers.Interrupted()
    with pytest.raises(helpers.Interrupted):
        helpers.mount(request(machine))
    assert machine.calls[-2:] == [("umount", "-i", str(machine.directory)), ("detach", NAME)]


def test_undoing_leaves_alone_what_others_mounted_there(machine: Machine) -> None:
    machine.put("automounter", "autofs")
    machine.fails["mount"] = 32
    with pytest.raises(DyskError):
        helpers.mount(request(machine))
    assert machine.named("umount") == []
    assert [each.source for each in machine.mounts] == ["automounter"]


@pytest.mark.parametrize("error", [NotFoundError("data is not attached here"), DeviceError("no such device")])
def test_what_goes_wrong_while_it_is_taken_back_does_not_hide_why(machine: Machine, error: DyskError) -> None:
    """A disk that refuses every write ends by itself while the helper still waits for it."""
    machine.fails = {
        "mkfs": DeviceError("mkfs.ext4 failed: Input/output error"),
        "detach": BusyError("x"),
        "detach force": error,
    }
    with pytest.raises(DeviceError, match=r"mkfs\.ext4 failed"):
        helpers.mount(request(machine))


@pytest.mark.parametrize(("error", "forced"), [(BusyError("still writing"), True), (NotFoundError("gone"), False)])
def test_what_cannot_be_written_in_time_is_given_up(machine: Machine, error: DyskError, forced: bool) -> None:
    machine.fails |= {"mkfs": DeviceError("no"), "detach": error}
    with pytest.raises(DeviceError):
        helpers.mount(request(machine))
    assert machine.named("detach", "detach force") == [("detach", NAME)] + [("detach force", NAME)] * forced


def test_what_could_not_be_unmounted_is_cut_off_all_the_same_and_a_loss_is_no_news(machine: Machine) -> None:
    for failure, more in ((BusyError("mounted"), [("detach force", NAME, "and lose")]), (DyskError("lost"), [])):
        machine.calls.clear()
        machine.fails |= {"mkfs": DeviceError("no"), "detach": BusyError("still"), "detach force": failure}
        with pytest.raises((DeviceError, BusyError)):
            helpers.mount(request(machine))
        assert machine.named("detach force") == [("detach force", NAME), *more]
        machine.attached.clear()


def test_a_rehearsal_attaches_nothing(machine: Machine) -> None:
    assert helpers.mount(request(machine, fake=True)) == 0
    assert machine.calls == []


def test_nofail_is_about_disks_that_do_not_exist_only(machine: Machine) -> None:
    machine.fails["attach"] = NotFoundError("disk does not exist")
    assert helpers.mount(request(machine, nofail=True)) == 0
    with pytest.raises(NotFoundError):
        helpers.mount(request(machine))
    machine.fails["attach"] = CredentialError("refused")
    with pytest.raises(CredentialError):
        helpers.mount(request(machine, nofail=True))


# What is there already.


@pytest.mark.parametrize("source", [DEVICE, PARTITION])
def test_a_mount_that_is_there_already_is_a_success(machine: Machine, source: str) -> None:
    machine.have()
    machine.put(source)
    assert helpers.mount(request(machine)) == 0
    assert machine.calls == []


def test_but_not_read_write_where_read_only_is_wanted(machine: Machine) -> None:
    machine.have()
    machine.put(DEVICE)
    with pytest.raises(BusyError, match="read-write"):
        helpers.mount(request(machine, read_only=True))


@pytest.mark.parametrize(("there", "wanted"), [(False, False), (False, True), (True, False)])
def test_a_disk_is_not_attached_twice_unless_all_only_read(machine: Machine, there: bool, wanted: bool) -> None:
    machine.have(read_only=there)
    with pytest.raises(AttachedError):
        helpers.mount(request(machine, read_only=wanted))
    assert machine.calls == []


def test_several_may_read(machine: Machine) -> None:
    machine.have(read_only=True, device="/dev/loop8", name="other")
    machine.blank, machine.probed = False, {"TYPE": "ext4"}
    assert helpers.mount(request(machine, read_only=True)) == 0
    assert len(machine.named("attach")) == 1


def test_a_dead_attachment_is_no_obstacle(machine: Machine) -> None:
    machine.have(state="dead", device="/dev/loop8", name="other")
    assert helpers.mount(request(machine)) == 0


@pytest.mark.parametrize("read_only", [False, True])
def test_a_disk_that_is_attached_is_not_taken_for_mounted_because_something_else_is(
    machine: Machine, read_only: bool
) -> None:
    """Else the mount would be said to be there, and writes would go to what is."""
    machine.have(read_only=read_only)
    machine.put("/dev/sda1")
    with pytest.raises(BusyError if read_only else AttachedError):
        helpers.mount(request(machine, read_only=read_only))
    assert machine.calls == []


def test_an_automounters_mount_point_is_covered(machine: Machine) -> None:
    machine.put("automounter", "autofs")
    assert helpers.mount(request(machine)) == 0
    assert [each.source for each in machine.mounts] == ["automounter", DEVICE]


@pytest.mark.parametrize("other", ["/dev/sda1", "/dev/loop8"])
def test_something_else_on_the_directory_is_not_taken_for_the_disk(machine: Machine, other: str) -> None:
    machine.have(disk="mystore/disks/other", device="/dev/loop8", name="other")
    machine.put(other)
    with pytest.raises(BusyError, match="is busy"):
        helpers.mount(request(machine))
    assert machine.calls == []


@pytest.mark.parametrize("read_only", [False, True])
def test_a_remount_is_handed_on(machine: Machine, read_only: bool) -> None:
    machine.have()
    machine.put(DEVICE)
    assert helpers.mount(request(machine, remount=True, read_only=read_only)) == 0
    options = f"remount,{'ro' if read_only else 'rw'}"
    assert machine.calls == [("mount", "-t", "ext4", "-o", options, DEVICE, str(machine.directory))]


@pytest.mark.parametrize("there", ["nothing", "another disk", "no disk of ours"])
def test_a_remount_of_something_else_is_refused(machine: Machine, there: str) -> None:
    if there == "another disk":
        machine.have(disk="mystore/disks/other")
    if there != "nothing":
        machine.put(DEVICE)
    with pytest.raises(NotFoundError):
        helpers.mount(request(machine, remount=True))
    assert machine.calls == []
