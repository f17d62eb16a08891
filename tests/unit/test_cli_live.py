"""dyskctl upgrade, and the other verbs that change an attachment in use: what they ask, and what they print."""

from __future__ import annotations

import json
from dataclasses import replace

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


def test_upgrade_one(machine: Machine) -> None:
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
