"""What dyskctl shows of attachments and disks: list, get, status."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from blobfuse_dysk.azure.management import DiskRow
from tests.unit.cli_fakes import EXAMPLE, Machine, machine

__all__ = ["machine"]

GIB = 1 << 30
DISK = "mystore/disks/data"


def test_list_shows_those_that_are_named(machine: Machine) -> None:
    machine.attached = {name: replace(EXAMPLE, name=name, device=f"/dev/{name}") for name in ("a", "b", "c")}
    lines = machine.run("list", "c", "/dev/a").out.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "c", "a"]
    assert machine.run("list", "nobody").code == 1
    assert machine.run("list", "a", "--remote", "mystore/disks").code == 2
    assert machine.run("list", "--allocated").code == 2


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


@pytest.mark.parametrize(
    ("state", "code"), [("paused", 0), ("recovering", 0), ("fenced", 1), ("failed", 1), ("dead", 1)]
)
def test_list_says_what_is_wrong_and_exits_with_1_if_that_is_for_good(machine: Machine, state: Any, code: int) -> None:
    machine.attached = {"data": replace(EXAMPLE, state=state, detail="why: what to do", state_since="T1"), "x": EXAMPLE}
    found = machine.run("list")
    assert (found.code, found.err) == (code, f"dyskctl: warning: data is {state} since T1: why: what to do\n")
    assert machine.run("list", "-o", "json").code == code


def test_list_remote_shows_the_disks_of_a_container(machine: Machine) -> None:
    machine.rows = [
        DiskRow(DISK, 32 * GIB, 4096, "leased", "node1", "2026-01-31T12:00:00Z"),
        DiskRow("mystore/disks/other", GIB, 0, "available", None, None),
        DiskRow("mystore/elsewhere/x", GIB, 0, "available", None, None),
    ]
    assert machine.run("list", "--remote", "mystore/disks").out == (
        "SIZE   LEASE      HOLDER  DISK\n"
        "32GiB  leased     node1   mystore/disks/data\n"
        "1GiB   available  -       mystore/disks/other\n"
    )
    assert machine.run("list", "--remote", "mystore/disks", "--allocated").out == (
        "SIZE   ALLOCATED  LEASE      HOLDER  DISK\n"
        "32GiB  4KiB       leased     node1   mystore/disks/data\n"
        "1GiB   0B         available  -       mystore/disks/other\n"
    )
    assert [call[2] for call in machine.calls] == [False, True], "a request a disk only when it is asked for"
    found = json.loads(machine.run("list", "--remote", "mystore/disks/", "-o", "json").out)
    assert found[0]["allocated"] is None and found[1]["holder"] is None and not found[0]["incomplete"]


def test_list_remote_tells_disks_from_what_is_to_become_one(machine: Machine) -> None:
    machine.rows = [DiskRow(DISK, GIB, None, "available", None, None, incomplete=True)]
    assert machine.run("list", "--remote", "mystore/disks").out.endswith(f"  {DISK} (unfinished clone)\n")


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
    text = machine.run("status", "data", "--verbose").out
    assert "state:       attached\n" in text
    assert "requests:\n  read:  5\n  write: 0\n" in text
    assert "warnings:    -\n" in text


COUNTED: dict[str, object] = {
    "state": "recovering",
    "state_since": "2026-01-31T12:00:00Z",
    "detail": "no answer: wait",
    "waiting": {"calls": 3, "since_s": 12.4, "fails_in_s": 287.6, "reason": "connection refused"},
    "lease": {"term_s": 60.0, "expires_in_s": 42.3},
    "credential": {"what": "SAS from a file", "expires": "2026-02-01T00:00:00Z", "expires_in_s": 1.0},
    "io": {
        "calls": {"read": 1200, "flush": 2},
        "bytes": {"read": 4 << 20, "flush": 0},
        "errors": {"timeout": 1},
        "in_flight": 3,
        "latency_ms": {"read": {"p50": 1.84, "p90": 3.0, "p99": 9.26}, "flush": {"p50": None, "p99": None}},
    },
    "cache": {"mode": "readwrite", "dirty_bytes": 1536, "ring_bytes": 64 << 20},
}


def test_status_is_ten_lines_in_human_units(machine: Machine) -> None:
    machine.attached["data"] = EXAMPLE
    machine.counted = COUNTED
    assert machine.run("status", "data").out == (
        "name:       data, /dev/null\n"
        "mounted on: /data\n"
        "disk:       mystore/disks/data, 32GiB, read-write\n"
        "state:      recovering since 2026-01-31T12:00:00Z: no answer: wait\n"
        "waits:      3 calls, for 12 s, for 288 s more at most: connection refused\n"
        "lease:      60 s, ends in 42 s unless it is renewed\n"
        "credential: SAS from a file, until 2026-02-01T00:00:00Z\n"
        "I/O:        read 1200 (4MiB), flush 2, failed 1, in flight 3\n"
        "latency:    read 1.8 ms (99 %: 9.3)\n"
        "cache:      readwrite, 1.5KiB not written yet, of 64MiB\n"
    )


def test_status_of_a_disk_without_a_worker_or_lease_has_its_ten_lines_too(machine: Machine) -> None:
    machine.attached["data"] = replace(EXAMPLE, read_only=True, mountpoints=[], device="", state="failed")
    machine.counted = {"state": "failed", "lease": None, "cache": {"mode": "none"}}
    lines = machine.run("status", "data").out.splitlines()
    assert len(lines) == 10
    assert lines[0] == "name:       data, no device yet"
    assert lines[3] == "state:      failed"
    assert lines[5] == "lease:      none, as it is read-only"
    assert lines[9] == "cache:      none"
    machine.counted = {"lease": {"term_s": None, "expires_in_s": None}, "waiting": {"fails_in_s": None, "reason": "no"}}
    text = machine.run("status", "data").out
    assert "lease:      infinite\n" in text and "waits:      I/O, for ever: no\n" in text


def test_status_says_why_a_newer_credential_is_not_in_use(machine: Machine) -> None:
    machine.attached["data"] = EXAMPLE
    machine.counted = {
        "credential": {"what": "SAS from a file", "expires": None, "problem": "no write right: make one"}
    }
    line = "credential: SAS from a file; the newest one is not in use: no write right: make one\n"
    assert line in machine.run("status", "data").out


def test_a_lease_without_end_is_told_as_one(machine: Machine) -> None:
    machine.attached["data"] = replace(EXAMPLE, lease={"id": "x", "epoch": 1, "seconds": None})
    assert "seconds: infinite\n" in machine.run("get", "data").out
    assert json.loads(machine.run("get", "data", "-o", "json").out)["lease"]["seconds"] is None


def test_get_and_status_for_programs(machine: Machine) -> None:
    machine.attached["data"] = EXAMPLE
    found = json.loads(machine.run("-o", "json", "get", DISK).out)
    assert (found["size"], found["lease"]["id"][:8]) == (32 * GIB, "00112233")
    assert json.loads(machine.run("-o", "json", "status", "data").out)["requests"] == {"read": 5, "write": 0}
