"""What each verb of dyskctl asks of the layers below, and what it prints."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace

import pytest

from blobfuse_dysk.azure.management import DiskRow
from blobfuse_dysk.cli import output
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
    assert machine.calls == [("delete", DISK, {"break_lease": True, "lease_id": None})]


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


def test_list_shows_each_attachment_in_a_line(machine: Machine) -> None:
    machine.attached = {
        "data": EXAMPLE,
        "x": replace(EXAMPLE, name="x", read_only=True, mountpoints=[], state="fenced", size=1536),
    }
    assert machine.run("list").out == (
        "NAME  DEVICE     SIZE    MODE  STATE     MOUNTPOINT  DISK\n"
        "data  /dev/null  32GiB   rw    attached  /data       mystore/disks/data\n"
        "x     /dev/null  1.5KiB  ro    fenced    -           mystore/disks/data\n"
    )
    assert [row["name"] for row in json.loads(machine.run("list", "-o", "json").out)] == ["data", "x"]


def test_list_remote_shows_the_disks_of_a_container(machine: Machine) -> None:
    machine.rows = [
        DiskRow(DISK, 32 * GIB, 4096, "leased", "node1", "2026-01-31T12:00:00Z"),
        DiskRow("mystore/disks/other", GIB, 0, "available", None, None),
        DiskRow("mystore/elsewhere/x", GIB, 0, "available", None, None),
    ]
    assert machine.run("list", "--remote", "mystore/disks").out == (
        "DISK                 SIZE   ALLOCATED  LEASE      HOLDER\n"
        "mystore/disks/data   32GiB  4KiB       leased     node1\n"
        "mystore/disks/other  1GiB   0B         available  -\n"
    )
    found = json.loads(machine.run("list", "--remote", "mystore/disks/", "-o", "json").out)
    assert found[0]["allocated"] == 4096 and found[1]["holder"] is None


@pytest.mark.parametrize("text", ["mystore", "", "UPPER/case", "https://x", "mystore/disks/data", "mystore/disks/a/b"])
def test_list_remote_of_what_is_no_container(machine: Machine, text: str) -> None:
    result = machine.run("list", "--remote", text)
    assert result.code == 2 and "--remote ACCOUNT/CONTAINER" in result.err
    assert "/any" not in result.err and "disk '" not in result.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mystore", "container 'mystore' is not complete"),
        ("https://mystore/d#x", "container 'https://mystore/d#x' has a '#'"),
        ("ftp://mystore.test/disks/", "container 'ftp://mystore.test/disks' is not an http or https URL"),
    ],
)
def test_list_remote_names_the_container_as_it_was_given(machine: Machine, text: str, says: str) -> None:
    assert says in machine.run("list", "--remote", text).err


def test_options_of_an_account_are_for_remote(machine: Machine) -> None:
    result = machine.run("list", "--endpoint", "http://127.0.0.1:10000")
    assert result.code == 2 and "add --remote ACCOUNT/CONTAINER" in result.err


def test_get_and_status_for_people(machine: Machine) -> None:
    machine.attached["data"] = EXAMPLE
    text = machine.run("get", "data").out
    assert "size:        32GiB\n" in text
    assert "read only:   no\n" in text
    assert "mountpoints: /data\n" in text
    assert "detail:      -\n" in text
    assert "lease:\n  id:      00112233-4455-6677-8899-aabbccddeeff\n  epoch:   7\n  seconds: 60\n" in text
    text = machine.run("status", "data").out
    assert "state:    attached\n" in text
    assert "requests:\n  read:  5\n  write: 0\n" in text
    assert "warnings: -\n" in text


def test_a_lease_without_end_is_told_as_one(machine: Machine) -> None:
    machine.attached["data"] = replace(EXAMPLE, lease={"id": "x", "epoch": 1, "seconds": None})
    assert "seconds: infinite\n" in machine.run("get", "data").out
    assert json.loads(machine.run("get", "data", "-o", "json").out)["lease"]["seconds"] is None


def test_get_and_status_for_programs(machine: Machine) -> None:
    machine.attached["data"] = EXAMPLE
    found = json.loads(machine.run("-o", "json", "get", DISK).out)
    assert (found["size"], found["lease"]["id"][:8]) == (32 * GIB, "00112233")
    assert json.loads(machine.run("-o", "json", "status", "data").out)["requests"] == {"read": 5, "write": 0}


def test_numbers_are_shown_with_three_decimals(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_pairs({"a": 59.78227006, "b": 60.0, "c": {}, "d": [1, None]})
    assert capsys.readouterr().out == "a: 59.782\nb: 60\nc: -\nd: 1, -\n"


def test_warnings_of_the_layers_below_are_shown_once(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.run("list")
    machine.run("list")
    logging.getLogger("blobfuse_dysk.somewhere").warning("io-timeout is lowered to %d s", 5)
    assert capsys.readouterr().err == "dyskctl: warning: io-timeout is lowered to 5 s\n"
