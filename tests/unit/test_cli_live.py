"""dyskctl upgrade, and the other verbs that change an attachment in use: what they ask, and what they print."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from blobfuse_dysk.errors import DeviceError
from tests.unit.cli_fakes import EXAMPLE, Machine, machine

__all__ = ["machine"]


def two(machine: Machine) -> None:
    """Two attachments that live, and a dead one."""
    machine.attached = {
        "data": EXAMPLE,
        "db": replace(EXAMPLE, name="db", device="/dev/zero", disk="mystore/disks/db"),
        "old": replace(EXAMPLE, name="old", device="", disk="mystore/disks/old", state="dead"),
    }


def test_upgrade_tells_the_version_before_and_after(machine: Machine) -> None:
    two(machine)
    result = machine.run("upgrade", "db")
    assert (result.code, result.out, result.err) == (0, "db: version 0.2.0 (was 0.1.0)\n", "")
    assert machine.calls == [("upgrade", "db")]


def test_upgrade_all_that_live(machine: Machine) -> None:
    two(machine)
    result = machine.run("upgrade", "--all", "-o", "json")
    assert result.code == 0
    assert json.loads(result.out) == [
        {"name": "data", "before": "0.1.0", "after": "0.2.0"},
        {"name": "db", "before": "0.1.0", "after": "0.2.0"},
    ]


def test_upgrade_all_of_none(machine: Machine) -> None:
    result = machine.run("upgrade", "--all")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_upgrade_all_goes_on_after_one_that_fails(machine: Machine) -> None:
    two(machine)
    machine.failure = DeviceError("the new worker could not start", remedy="see the log")
    result = machine.run("upgrade", "--all")
    assert result.code == 1
    assert result.err.splitlines() == [
        "dyskctl: data: the new worker could not start: see the log",
        "dyskctl: db: the new worker could not start: see the log",
    ]
    assert machine.calls == [("upgrade", "data"), ("upgrade", "db")]


def test_upgrade_says_what_to_give(machine: Machine) -> None:
    two(machine)
    for words in ((), ("data", "--all")):
        result = machine.run("upgrade", *words)
        assert result.code == 2 and "--all" in result.err
    assert machine.calls == []


def test_set_changes_what_is_named_and_nothing_else(machine: Machine) -> None:
    two(machine)
    result = machine.run("set", "data", "io-timeout=10m", "iops=500", "mbps=none")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert machine.run("set", "data", "io-timeout=never").code == 0
    assert machine.calls == [
        ("change", "data", {"io_timeout_s": 600.0, "iops": 500, "mbps": None}),
        ("change", "data", {"io_timeout_s": None}),
    ]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("io-timout=5", "did you mean io-timeout"),
        ("cache=none", "these can: io-timeout, iops, mbps"),
        ("iops", "iops needs a value: write iops=VALUE"),
        ("iops=fast", "give a number, or none"),
        ("mbps=-1", "use 0.1 or more, or none"),
        ("io-timeout=soon", "is not a time"),
    ],
)
def test_set_refuses_what_cannot_be_changed_and_changes_nothing(machine: Machine, word: str, says: str) -> None:
    two(machine)
    result = machine.run("set", "data", word)
    assert result.code == 2 and says in result.err
    assert machine.calls == []


def test_reload_takes_a_credential_from_a_descriptor(machine: Machine, tmp_path: Path) -> None:
    two(machine)
    (tmp_path / "conf").write_text("sas = sig=1\n")
    with (tmp_path / "conf").open() as file:
        assert machine.run("reload", "data", "--credentials-fd", str(file.fileno())).code == 0
    assert machine.calls == [("reload", "data", {"text": "sas = sig=1\n"})]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--credentials-fd", "x"], "'x' is no descriptor: give a number"),
        (
            ["--credentials-fd", "987"],
            "--credentials-fd 987 cannot be read: Bad file descriptor: open it",
        ),
        (["--credentials-fd", "9" * 30], "cannot be read"),
        (["--credentials-fd", "0", "--credentials", "/f"], "give one of them"),
        (["--credentials-fd", "BINARY"], "is not text"),
        (["--credentials-fd", "LONG"], "has more than 64 KiB"),
    ],
)
def test_reload_from_what_is_no_credential_changes_nothing(
    machine: Machine, tmp_path: Path, words: list[str], says: str
) -> None:
    two(machine)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "long").write_bytes(b"#" * (64 << 10) + b"\n")
    with (tmp_path / "binary").open() as binary, (tmp_path / "long").open() as long:
        numbers = {"BINARY": str(binary.fileno()), "LONG": str(long.fileno())}
        result = machine.run("reload", "data", *(numbers.get(word, word) for word in words))
    assert result.code == 2 and says in result.err
    assert machine.calls == []


def test_reload_tells_which_credential_is_in_use_now(machine: Machine) -> None:
    two(machine)
    result = machine.run("reload", "data", "--credentials", "/etc/dysk/new.conf")
    assert (result.code, result.out) == (0, "data: SAS from a test, expires 2026-01-31T12:00:00Z\n")
    result = machine.run("reload", "--all", "-o", "json")
    assert [row["name"] for row in json.loads(result.out)] == ["data", "db"]
    assert machine.calls == [
        ("reload", "data", "/etc/dysk/new.conf"),
        ("reload", "data", None),
        ("reload", "db", None),
    ]
