"""What each verb of dyskctl asks of the layers below, and what it prints."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from dataclasses import replace

import pytest

from blobfuse_dysk import __version__, attachment
from blobfuse_dysk.cli import output
from blobfuse_dysk.cli.main import main
from blobfuse_dysk.errors import BusyError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.vhd import footer, parse_footer
from tests.unit.cli_fakes import EXAMPLE, Machine, machine

__all__ = ["machine"]

GIB = 1 << 30
DISK = "mystore/disks/data"


def test_create_makes_a_disk_of_the_size_asked_for(machine: Machine) -> None:
    result = machine.run("create", DISK, "--size", "32GiB")
    assert (result.code, result.out, result.err) == (0, f"created {DISK}, 32GiB\n", "")
    assert machine.calls == [("create", DISK, 32 * GIB, None)]


def test_create_says_the_bytes_of_a_size_that_is_not_round(machine: Machine) -> None:
    assert machine.run("create", DISK, "--size", "1.5KiB").out == f"created {DISK}, 1.5KiB (1536 bytes)\n"


def test_create_vhd_puts_the_footer_behind_the_size(machine: Machine) -> None:
    result = machine.run("create", DISK, "--size", "2GiB", "--vhd", "-o", "json")
    assert json.loads(result.out) == {"disk": DISK, "size": 2 * GIB, "blob_size": 2 * GIB + 512, "vhd": True}
    (_, _, size, written) = machine.calls[0]
    assert size == 2 * GIB + 512 and isinstance(written, bytes)
    parsed = parse_footer(written)
    assert parsed is not None and parsed.current_size == 2 * GIB
    assert len(footer(512)) == len(written)


@pytest.mark.parametrize(
    ("size", "says"), [("1536KiB", "a VHD for Azure is a whole number of MiB: use --size 2MiB"), ("8TiB", "8191GiB")]
)
def test_sizes_that_no_vhd_has(machine: Machine, size: str, says: str) -> None:
    result = machine.run("create", DISK, "--size", size, "--vhd")
    assert result.code == 2 and says in result.err
    assert machine.calls == []


def test_a_snapshot_is_neither_created_nor_deleted(machine: Machine) -> None:
    snapshot = f"{DISK}?snapshot=2026-01-31T12:00:00.0000000Z"
    assert machine.run("create", snapshot, "--size", "1GiB").code == 2
    assert machine.run("delete", snapshot, "--yes").code == 2
    assert machine.calls == []


def test_delete_asks_on_a_terminal(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def __init__(self, *lines: str) -> None:
            self.lines = list(lines)

        def isatty(self) -> bool:
            return True

        def readline(self, *limits: int) -> str:
            return self.lines.pop(0) if self.lines else ""

    machine.disks[DISK] = GIB
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    result = machine.run("delete", DISK)
    assert result.code == 1 and DISK in machine.disks
    assert f"Delete {DISK} and everything on it?" in result.err and "nothing was deleted" in result.err
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    result = machine.run("delete", DISK)
    assert (result.code, result.out) == (0, f"deleted {DISK}\n")
    assert machine.disks == {}


def test_delete_with_yes_asks_nobody_and_hands_on_break_lease(machine: Machine) -> None:
    machine.disks[DISK] = GIB
    result = machine.run("delete", DISK, "--yes", "--break-lease", "-o", "json")
    assert json.loads(result.out) == {"disk": DISK, "deleted": True}
    assert machine.calls == [("delete", DISK, {"break_lease": True, "lease_id": None, "snapshots": False})]


def test_attach_prints_the_device_and_nothing_else(machine: Machine) -> None:
    machine.disks[DISK] = GIB
    result = machine.run("attach", DISK)
    assert (result.code, result.out, result.err) == (0, "/dev/null\n", "")
    assert machine.calls == [("attach", DISK, AttachOptions())]


def test_every_option_of_attach_reaches_its_place(machine: Machine) -> None:
    machine.disks[DISK] = GIB
    lease_id = "00112233-4455-6677-8899-aabbccddeeff"
    options = (
        "--name web --read-only --break-lease --lease infinite --sector-size 4096 --partscan --io-timeout never "
        "--cache readonly --write-cache-size 128MiB --read-cache-size 4MiB --write-delay 200ms --iops 500 --mbps 60.5 "
        "--vhd no --checksum md5 --credentials /c.conf --endpoint http://127.0.0.1:1 --realm x.net --allow-http"
    )
    assert machine.run("attach", DISK, *options.split(), "--lease-id", lease_id).code == 0
    assert machine.calls[0][2] == AttachOptions(
        name="web",
        read_only=True,
        break_lease=True,
        lease_s=None,
        lease_id=lease_id,
        sector_size=4096,
        partscan=True,
        io_timeout_s=None,
        cache="readonly",
        write_cache_size=128 << 20,
        read_cache_size=4 << 20,
        write_delay_s=0.2,
        iops=500,
        mbps=60.5,
        vhd="no",
        checksum="md5",
        credentials="/c.conf",
        endpoint="http://127.0.0.1:1",
        realm="x.net",
        allow_http=True,
    )


def test_times_of_attach(machine: Machine) -> None:
    machine.disks[DISK] = GIB
    machine.run("attach", DISK, "--lease", "15s", "--io-timeout", "2m")
    assert machine.calls[0][2] == AttachOptions(lease_s=15, io_timeout_s=120)


def test_a_snapshot_is_attached_read_only(machine: Machine) -> None:
    snapshot = f"{DISK}?snapshot=2026-01-31T12:00:00.0000000Z"
    machine.disks[snapshot] = GIB
    machine.run("attach", snapshot)
    assert machine.calls == [("attach", snapshot, AttachOptions(read_only=True))]


def test_attach_create_makes_a_disk_only_if_it_is_missing(machine: Machine) -> None:
    assert machine.run("attach", DISK, "--create", "--size", "1GiB").code == 0
    assert [call[0] for call in machine.calls] == ["attach", "create", "attach"]
    machine.calls.clear()
    assert machine.run("attach", DISK, "--create", "--size", "1GiB").code == 0
    assert [call[0] for call in machine.calls] == ["attach"]


def test_attach_create_vhd(machine: Machine) -> None:
    machine.run("attach", DISK, "--create", "--size", "1GiB", "--vhd", "yes")
    assert machine.disks == {DISK: GIB + 512}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--create"], "--create needs a size"),
        (["--size", "1GiB"], "--size goes with --create"),
        (["--create", "--size", "1GiB", "--read-only"], "cannot be attached read-only"),
    ],
)
def test_options_of_attach_that_do_not_fit(machine: Machine, words: list[str], says: str) -> None:
    result = machine.run("attach", DISK, *words)
    assert result.code == 2 and says in result.err
    assert machine.calls == []


def test_a_sas_in_the_url_is_taken_with_a_warning_that_does_not_repeat_it(machine: Machine) -> None:
    machine.disks[DISK] = GIB
    url = "https://mystore.blob.core.windows.net/disks/data?sv=1&sig=hush%3D"
    result = machine.run("attach", url)
    assert result.code == 0
    assert "warning" in result.err and "/etc/dysk/mystore.conf" in result.err
    assert "hush" not in result.out + result.err
    assert machine.secrets == [(None, "sv=1&sig=hush%3D")]


def test_detach_takes_a_name_or_a_disk(machine: Machine) -> None:
    machine.attached["data"] = EXAMPLE
    assert machine.run("detach", "data").out == ""
    assert machine.calls == [("detach", "data", False, False)]
    machine.attached["data"] = EXAMPLE
    result = machine.run("detach", DISK, "--force", "-o", "json")
    assert json.loads(result.out) == {"target": DISK, "detached": True}
    assert machine.calls[1:] == [("detach", DISK, True, False)]
    machine.attached["data"] = EXAMPLE
    assert machine.run("detach", DISK, "--force", "--lose-data").code == 0
    assert machine.calls[2:] == [("detach", DISK, True, True)]


def test_to_lose_data_is_asked_for_twice_or_not_at_all(machine: Machine) -> None:
    machine.attached["data"] = EXAMPLE
    result = machine.run("detach", "data", "--lose-data")
    assert result.code == 2 and "--lose-data goes with --force" in result.err
    assert machine.calls == []


def test_detach_takes_several_and_all(machine: Machine) -> None:
    def fill() -> None:
        machine.calls.clear()
        machine.attached = {name: replace(EXAMPLE, name=name, disk=f"mystore/disks/{name}") for name in ("a", "b", "c")}

    fill()
    assert machine.run("detach", "a", "c").code == 0
    assert list(machine.attached) == ["b"]
    fill()
    result = machine.run("detach", "--all", "-o", "json")
    assert [row["target"] for row in json.loads(result.out)] == ["a", "b", "c"] and not machine.attached
    fill()
    result = machine.run("detach", "a", "nobody", "b")
    assert result.code == 1 and list(machine.attached) == ["c"]
    assert "dyskctl: nobody is not attached here" in result.err
    for words in ((), ("--all", "a")):
        assert machine.run("detach", *words).code == 2


def test_version_and_help_are_where_they_are_looked_for(machine: Machine) -> None:
    version = machine.run("--version")
    assert (version.code, version.out) == (0, f"dyskctl {__version__}\n")
    assert machine.run("help").out == machine.run("--help").out
    assert machine.run("help", "attach").out == machine.run("attach", "--help").out
    assert machine.run("help", "atach").code == 2


def test_mount_of_a_disk_on_a_directory_points_to_the_mount_that_does_it(machine: Machine) -> None:
    result = machine.run("mount", DISK, "/data")
    assert result.code == 2 and f"mount -t dysk {DISK} /data" in result.err
    assert machine.run("mount", "auto-creat").code == 2


class Full(io.StringIO):
    """Standard output on a device without space."""

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("words", [(), ("-o", "json")])
@pytest.mark.parametrize("stays", [False, True])
def test_an_attach_that_cannot_say_its_device_is_taken_back(
    machine: Machine,
    words: tuple[str, ...],
    stays: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine.disks[DISK] = GIB
    if stays:
        monkeypatch.setattr(attachment, "detach", in_use)
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(os, "dup2", lambda *fds: None)
    monkeypatch.setattr(Full, "fileno", lambda self: 1)
    code = main(["attach", DISK, *words])
    monkeypatch.undo()
    assert code == 1
    said = capsys.readouterr().err
    assert "the result cannot be written: No space left on device" in said
    if stays:
        assert "warning: data could not be detached again: data is busy: unmount it" in said
        return
    assert [call[0] for call in machine.calls] == ["attach", "detach"] and not machine.attached
    assert "warning: data is detached again, since its device could not be printed" in said


def in_use(name: str) -> None:
    raise BusyError(f"{name} is busy", remedy="unmount it")


def test_names_that_others_gave_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_pairs({"blob_size": 1, "metadata": {"dysk_node": "vm7", "my_team": "blue"}})
    assert capsys.readouterr().out == "blob size: 1\nmetadata:\n  dysk_node: vm7\n  my_team:   blue\n"


def test_numbers_are_shown_with_three_decimals(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_pairs({"a": 59.78227006, "b": 60.0, "c": {}, "d": [1, None]})
    assert capsys.readouterr().out == "a: 59.782\nb: 60\nc: -\nd: 1, -\n"


def test_warnings_of_the_layers_below_are_shown_once(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.run("list")
    machine.run("list")
    logging.getLogger("blobfuse_dysk.somewhere").warning("io-timeout is lowered to %d s", 5)
    assert capsys.readouterr().err == "dyskctl: warning: io-timeout is lowered to 5 s\n"
