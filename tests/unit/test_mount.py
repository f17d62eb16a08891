"""The mount helpers' outermost part: what each kind of error becomes for mount(8)."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobfuse_dysk import mount as helpers
from blobfuse_dysk import mounttools
from blobfuse_dysk.errors import DeviceError, LeasedError, UsageError
from blobfuse_dysk.mountoptions import MountRequest

WORDS = ["mystore/disks/data", "/mnt"]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UsageError("wrong", remedy="do it right"), 1, "mount.dysk: wrong: do it right\n"),
        (DeviceError("no /dev/fuse", remedy="modprobe\nfuse"), 2, "mount.dysk: no /dev/fuse: modprobe fuse\n"),
        (LeasedError("leased by node b"), 32, "mount.dysk: leased by node b\n"),
        (helpers.Interrupted(), 8, "mount.dysk: interrupted, nothing was mounted\n"),
        (KeyboardInterrupt(), 8, "mount.dysk: interrupted, nothing was mounted\n"),
        (RuntimeError("boom"), 4, "mount.dysk: unexpected RuntimeError: boom: please report it\n"),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, says: str
) -> None:
    def fail(request: MountRequest) -> int:
        raise error

    monkeypatch.setattr(helpers, "mount", fail)
    assert helpers.mount_main(WORDS) == code
    assert capsys.readouterr() == ("", says)


@pytest.mark.parametrize("words", [[], ["a/b/c"], [*WORDS, "-z"], [*WORDS, "-o", "fstyp=ext4"], ["a/b", "/mnt"]])
def test_words_that_cannot_be_taken(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert helpers.mount_main(words) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("mount.dysk: ") and captured.err.count("\n") == 1


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert helpers.mount_main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: mount.dysk DISK DIR")
    assert helpers.umount_main(["-h"]) == 0
    assert capsys.readouterr().out.startswith("usage: umount.dysk DIR|DEVICE")


def test_a_tool_that_is_missing_is_named_with_where_it_was_looked_for() -> None:
    with pytest.raises(DeviceError) as caught:
        mounttools.find_tool("mkfs.nosuchfs")
    assert str(caught.value) == "mkfs.nosuchfs is not installed"
    assert caught.value.remedy and "/usr/sbin" in caught.value.remedy


def test_mountinfo_is_read_with_its_escapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "40 22 7:1 /sub /mnt/with\\040blank\\134 ro,noatime master:2 shared:3 - xfs /dev/loop1p2 ro,attr2\n"
        "41 22 0:40 / /mnt/with\\040blank\\134 rw - tmpfs none rw\n"
    )
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *more, **options: real(table, *more, **options))
    found = mounttools.mounted()
    assert found[1] == mounttools.Mounted("7:1", "/mnt/with blank\\", ("ro", "noatime"), "xfs", "/dev/loop1p2")
    assert mounttools.top_mount("/mnt/with blank\\") == found[2]
    assert mounttools.top_mount("/elsewhere") is None


@pytest.mark.parametrize(
    ("source", "device"),
    [("/dev/loop3", "/dev/loop3"), ("/dev/loop3p1", "/dev/loop3"), ("/dev/loop12p10", "/dev/loop12"), ("none", "none")],
)
def test_the_device_that_a_partition_is_on(source: str, device: str) -> None:
    assert mounttools.whole_device(source) == device
