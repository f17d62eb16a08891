"""The mount helpers' outermost part: what each kind of error becomes for mount(8)."""

from __future__ import annotations

import pytest

from blobfuse_dysk.errors import DeviceError, LeasedError, UsageError
from blobfuse_dysk.mount import helper as helpers
from blobfuse_dysk.mount.options import MountRequest

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
def test_an_error_ends_mount_with_the_exit_code_that_mount_documents(
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


def test_help_shows_the_usage_of_each_helper(capsys: pytest.CaptureFixture[str]) -> None:
    assert helpers.mount_main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: mount.dysk DISK DIR")
    assert helpers.umount_main(["-h"]) == 0
    assert capsys.readouterr().out.startswith("usage: umount.dysk DIR|DEVICE")
