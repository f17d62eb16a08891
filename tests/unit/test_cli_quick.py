"""What is read without click is read as click reads it, and what is not plain is left to click, untouched."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from blobfuse_dysk import commands, environment
from blobfuse_dysk.cli import main
from blobfuse_dysk.cli.quick import understood
from blobfuse_dysk.errors import BusyError, DyskError
from blobfuse_dysk.options import ATTACH_OPTIONS
from tests.unit.cli_fakes import EXAMPLE, Machine, Outcome, machine

__all__ = ["machine"]

DISK = "mystore/disks/data"
VALUES = {  # of each option that takes one
    "name": "db",
    "lease": "infinite",
    "lease-id": "01234567-89ab-cdef-0123-456789abcdef",
    "sector-size": "4096",
    "io-timeout": "never",
    "vhd": "no",
    "checksum": "md5",
    "cache": "none",
    "write-cache-size": "32MiB",
    "read-cache-size": "2MiB",
    "write-delay": "500ms",
    "iops": "none",
    "mbps": "12.5",
    "credentials": "/etc/dysk/other.conf",
    "endpoint": "https://127.0.0.1:10000/mystore",
    "realm": "core.example.net",
    "proxy": "none",
}
PLAIN = [
    ["attach", DISK],
    ["-o", "json", "attach", DISK],
    ["attach", DISK, "--output", "json"],
    ["-o", "json", "attach", "-o", "table", DISK],
    ["--output", "table", "attach", DISK, "-o", "table", "-o", "json"],
    ["attach", "--name", "a", DISK, "--name=b"],
    ["attach", DISK, "--snapshot", "2026-01-31T12:00:00.0000000Z"],
    ["attach", DISK, "--snapshot", "yesterday"],
    ["attach", f"{DISK}?snapshot=2026-01-31T12:00:00.0000000Z", "--create", "--size", "32GiB"],
    ["attach", DISK, "--create"],
    ["attach", DISK, "--size=1MiB"],
    ["attach", "mystore/disks/new", "--create", "--size", "1MiB"],
    ["attach", "mystore/disks/missing"],
    ["attach", "https://mystore.blob.core.windows.net/disks/data?sv=2021-12-02&sig=c2VjcmV0"],
    *(["attach", DISK, f"--{key}", VALUES[key]] for key, row in ATTACH_OPTIONS.items() if not row.is_switch),
    *(["attach", DISK, f"--{key}={VALUES[key]}"] for key, row in ATTACH_OPTIONS.items() if not row.is_switch),
    *(["attach", f"--{key}", DISK] for key, row in ATTACH_OPTIONS.items() if row.is_switch),
    ["detach", "data"],
    ["-o", "json", "detach", "data"],
    ["detach", "data", "db", "-o", "json"],
    ["detach", "data", "gone"],
    ["detach", "gone"],
    ["detach", "--all"],
    ["detach", "--all", "-o", "json"],
    ["detach", "--all", "data"],
    ["detach"],
    ["detach", ""],
    ["detach", "--force", "data"],
    ["detach", "data", "--force", "--lose-data"],
    ["detach", "data", "--lose-data"],
]
NOT_PLAIN = [
    [],
    ["attach"],
    ["attach", "a", "b"],
    ["attach", "mystore/data"],
    ["attach", DISK, "--help"],
    ["attach", DISK, "-h"],
    ["attach", DISK, "--"],
    ["attach", "--", DISK],
    ["attach", DISK, "--nam", "x"],
    ["attach", DISK, "--name"],
    ["attach", DISK, "--name", "--read-only"],
    ["attach", DISK, "--name", ""],
    ["attach", DISK, "--name=-x"],
    ["attach", DISK, "--read-only=yes"],
    ["attach", DISK, "--lease", "soon"],
    ["attach", DISK, "--lease", "5"],
    ["attach", DISK, "-ojson"],
    ["attach", DISK, "--output=json"],
    ["attach", DISK, "-o", "xml"],
    ["attach", DISK, "-o"],
    ["attach", DISK, "--debug"],
    ["--debug", "attach", DISK],
    ["attach", DISK, "-"],
    ["detach", "--force=1", "data"],
    ["detach", "data", "--io-timeout", "5"],
    ["--version"],
    ["list"],
    ["atach", DISK],
    ["-o", "json"],
    ["-o", "attach", DISK],
]


def with_disks(machine: Machine) -> None:
    machine.disks[DISK] = 32 << 30
    for name in ("data", "db"):
        machine.attached[name] = replace(EXAMPLE, name=name)


def outcome(machine: Machine, words: list[str], *, quick: bool) -> tuple[Outcome, list[tuple[object, ...]]]:
    """Of one run on a fresh machine, and what the layers below were asked."""
    machine.disks.clear()
    machine.attached.clear()
    machine.calls.clear()
    with_disks(machine)
    if quick:
        command = understood(words)
        assert command is not None, "not understood"
        code = command()
    else:
        code = main.main(list(words))
    captured = machine.capsys.readouterr()
    return Outcome(code, captured.out, captured.err), list(machine.calls)


@pytest.mark.parametrize("words", PLAIN, ids=" ".join)
def test_what_is_plain_is_read_as_click_reads_it(machine: Machine, words: list[str]) -> None:
    assert outcome(machine, words, quick=True) == outcome(machine, words, quick=False)


@pytest.mark.parametrize("words", NOT_PLAIN, ids=" ".join)
def test_what_is_not_plain_is_clicks_and_nothing_was_said(machine: Machine, words: list[str]) -> None:
    assert understood(words) is None
    captured = machine.capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    "failure",
    [KeyboardInterrupt(), BusyError("it is used", remedy="wait"), DyskError("no"), PermissionError(1, "no", "/x"),
     ValueError("a bug")],
)  # fmt: skip
@pytest.mark.parametrize("words", [["attach", DISK], ["-o", "json", "attach", DISK], ["detach", "data"]])
def test_what_goes_wrong_is_said_alike(machine: Machine, words: list[str], failure: BaseException) -> None:
    machine.failure = failure
    assert outcome(machine, words, quick=True) == outcome(machine, words, quick=False)


def test_a_shell_that_completes_is_clicks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_DYSKCTL_COMPLETE", "bash_complete")
    assert environment.completes("dyskctl")
    assert understood(["attach", DISK]) is None


def test_dyskctl_reads_what_is_plain_so_and_all_else_by_click(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_disks(machine)
    by_click: list[object] = []

    def read() -> int:
        by_click.append(1)
        return 0

    monkeypatch.setattr(main, "main", read)
    monkeypatch.setattr(sys, "argv", ["dyskctl", "detach", "data"])
    assert commands.dyskctl() == 0
    assert machine.calls == [("detach", "data", False, False)]
    monkeypatch.setattr(sys, "argv", ["dyskctl", "list"])
    assert commands.dyskctl() == 0
    assert by_click == [1]


@pytest.mark.parametrize(
    "words",
    ["attach mystore/disks/data --name db --cache none", "-o json attach mystore/disks/data", "detach data --force"],
)
def test_reading_a_plain_command_line_loads_nothing_slow(words: str) -> None:
    program = (
        "import sys; from blobfuse_dysk.cli.quick import understood; "
        f"command = understood({words.split()!r}); assert command; "
        "import blobfuse_dysk.cli.attaching, blobfuse_dysk.attachment, blobfuse_dysk.ownlease; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    slow = {"azure", "click", "ctypes", "hashlib", "msal", "pyfuse3", "ssl", "trio", "uuid"}
    assert not {name for name in loaded if name.partition(".")[0] in slow}
    ours = {name.removeprefix("blobfuse_dysk.") for name in loaded if name.startswith("blobfuse_dysk.")}
    late = {"azure", "store", "disks", "device.kernel.loop", "device.kernel.fuse", "device.attacher.teardown", "vhd"}
    assert not ours & late, "the holder is started first, then this is loaded"
