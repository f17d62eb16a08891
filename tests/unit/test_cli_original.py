"""The original dysk's verbs and flags: what they become, and that they print what it printed, but no secret."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.vhd import parse_footer
from tests.unit.cli_fakes import EXAMPLE, KEY, Machine, machine

__all__ = ["machine"]

GIB = 1 << 30
LEASE = "00112233-4455-6677-8899-aabbccddeeff"
DISK = "mystore/dysks/data.vhd"
NULL = os.stat("/dev/null").st_rdev  # noqa: PTH116


def given(machine: Machine, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def attaching(**options: Any) -> AttachOptions:
    """As the original's verbs do: with a link /dev/NAME."""
    return AttachOptions(original_link=True, **options)


def test_mount_prints_the_table_of_the_original(machine: Machine) -> None:
    machine.disks[DISK] = 2 * GIB
    result = machine.run("mount", "-a", "mystore", "-k", KEY, "-p", "data.vhd", "-d", "dysk01")
    assert result.code == 0
    head, row = result.out.splitlines()
    columns = ["Type", "Name", "VHD", "SizeGB", "AccountName", "Path"]
    assert re.split(" +", head) == columns
    assert [head.index(name) for name in columns] == [0, 32, 64, 96, 128, 160]
    assert re.split(" +", row) == ["RW", "dysk01", "No", "2", "mystore", "/dysks/data.vhd"]
    assert machine.calls == [("attach", DISK, attaching(name="dysk01"))]
    assert machine.secrets == [(KEY, None)]
    assert "Device:dysk01 is /dev/dysk/dysk01" in result.err


def test_a_secret_on_the_command_line_is_warned_of_and_never_repeated(machine: Machine) -> None:
    machine.disks[DISK] = GIB
    for words in (["-k", KEY], ["-s", "sv=1&sig=hush"]):
        for form in ("table", "json"):
            result = machine.run("mount", "-a", "mystore", *words, "-p", "data.vhd", "-o", form)
            assert result.code == 0
            assert f"what stands behind {words[0]} from the process list" in result.err
            assert KEY not in result.out + result.err and "hush" not in result.out + result.err
    assert set(machine.secrets) == {(KEY, None), (None, "sv=1&sig=hush")}


def test_a_dash_reads_the_secret_from_standard_input(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.disks[DISK] = GIB
    given(machine, monkeypatch, f"{KEY}\n")
    result = machine.run("mount", "-a", "mystore", "-k", "-", "-p", "data.vhd")
    assert result.code == 0 and "warning" not in result.err
    assert machine.secrets == [(KEY, None)]
    given(machine, monkeypatch, "")
    assert "-k - found nothing" in machine.run("mount", "-a", "mystore", "-k", "-", "-p", "data.vhd").err


@pytest.mark.parametrize("option", ["-k", "-s"])
def test_a_secret_that_is_empty_is_none(machine: Machine, option: str) -> None:
    """It fell back to the account's file in silence: the wrong one of two credentials, if a variable was not set."""
    machine.disks[DISK] = GIB
    result = machine.run("mount", "-a", "mystore", option, "", "-p", "data.vhd")
    assert result.code == 2 and f"{option} has no value" in result.err
    assert machine.secrets == []


def test_mount_as_json_has_the_keys_of_the_original_in_its_order(machine: Machine) -> None:
    machine.disks[DISK] = 2 * GIB
    result = machine.run("mount", "-a", "mystore", "-p", "data.vhd", "-o", "json", "-d", "d1", "-r")
    found = json.loads(result.out)
    assert list(found.items()) == [
        ("Type", "R"),
        ("Name", "d1"),
        ("AccountName", "mystore"),
        ("Sas", ""),
        ("Path", "/dysks/data.vhd"),
        ("LeaseId", "00112233-4455-6677-8899-aabbccddeeff"),
        ("Major", os.major(NULL)),
        ("Minor", os.minor(NULL)),
        ("Vhd", False),
        ("SizeGB", 2),
        ("AccountRealm", "core.windows.net"),
    ]
    assert result.out.startswith('{\n    "Type"')


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], attaching(name="d")),
        (["-v"], attaching(name="d", vhd="yes")),
        (["-v=false"], attaching(name="d", vhd="no")),
        (["--vhd=true"], attaching(name="d", vhd="yes")),
        (["-r"], attaching(name="d", read_only=True)),
        (["--read-only=false"], attaching(name="d")),
        (["-b"], attaching(name="d", break_lease=True)),
        (["-i", LEASE], attaching(name="d", lease_id=LEASE)),
        (["-l=false", "-i", LEASE], attaching(name="d", lease_id=LEASE)),
        (["--realm", "core.chinacloudapi.cn"], attaching(name="d", realm="core.chinacloudapi.cn")),
        (["--realm", "core.windows.net"], attaching(name="d")),
    ],
)
def test_flags_of_mount(machine: Machine, words: list[str], expected: AttachOptions) -> None:
    machine.disks["mystore/c-1/x"] = GIB
    assert machine.run("mount", "-a", "mystore", "-c", "c-1", "-p", "x", "-d", "d", *words).code == 0
    assert machine.calls == [("attach", "mystore/c-1/x", expected)]


def test_the_device_name_is_random_if_none_is_given(machine: Machine) -> None:
    machine.disks[DISK] = GIB
    machine.run("mount", "-a", "mystore", "-p", "data.vhd")
    (name,) = machine.attached
    assert re.fullmatch(r"dysk[A-Za-z0-9]{8}", name)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mount", "-a", "mystore"], "needs its name: add -p NAME"),
        (["mount", "-p", "x"], "missing option '-a'"),
        (["mount", "-a", "mystore", "-p", "x", "-n", "4"], "-n goes with mount auto-create"),
        (["mount", "-a", "mystore", "-p", "x", "-l=false"], "-l=false needs a lease id"),
        (["mount", "-a", "mystore", "-p", "x", "-v=perhaps"], "neither true nor false"),
        (["mount", "autocreate", "-a", "mystore"], "'auto-create'"),
        (["mount", "auto-create", "-a", "mystore", "-n", "0"], "0 is not in the range"),
        (["mount-file", "-f", "/nonexistent"], "cannot read /nonexistent: No such file"),
        (["unmount"], "missing option '-d'"),
        (["create", "-a", "mystore", "-l"], "create takes no lease"),
        (["delete", "-a", "mystore"], "add -p NAME"),
    ],
)
def test_words_that_do_not_fit(machine: Machine, words: list[str], says: str) -> None:
    result = machine.run(*words)
    assert result.code == 2 and says in result.err
    assert machine.calls == []


def test_mount_auto_create_puts_the_footer_inside_the_size(machine: Machine) -> None:
    result = machine.run("mount", "auto-create", "-a", "mystore", "-k", KEY, "-d", "dysk02", "-n", "4")
    assert result.code == 0
    create, attach = machine.calls
    assert create[:3] == ("create", "mystore/dysks/dysk02.vhd", 4 * GIB)
    assert isinstance(create[3], bytes)
    parsed = parse_footer(create[3])
    assert parsed is not None and parsed.current_size == 4 * GIB
    assert attach == ("attach", "mystore/dysks/dysk02.vhd", attaching(name="dysk02"))
    assert set(machine.secrets) == {(KEY, None)}


def test_mount_auto_create_without_a_footer_and_with_options_in_front(machine: Machine) -> None:
    assert machine.run("mount", "-a", "mystore", "-v=false", "-p", "blob", "auto-create").code == 0
    assert machine.calls[0] == ("create", "mystore/dysks/blob", 2 * GIB, None)


def test_create_delete_and_get_of_the_original_are_told_by_their_flags(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = machine.run("create", "-a", "mystore", "-p", "blob", "-n", "3", "-o", "json")
    found = json.loads(result.out)
    assert (found["Path"], found["SizeGB"], found["Vhd"], found["LeaseId"]) == ("/dysks/blob.vhd", 3, True, "")
    assert machine.disks == {"mystore/dysks/blob.vhd": 3 * GIB}
    result = machine.run("delete", "-a", "mystore", "-p", "blob.vhd", "-b", "-i", "abc")
    assert result.err == "Status:\nDeleted page blob mystore/dysks/blob.vhd\n"
    assert machine.calls[-1] == (
        "delete",
        "mystore/dysks/blob.vhd",
        {"break_lease": True, "lease_id": "abc", "snapshots": False},
    )
    machine.attached["data"] = EXAMPLE
    assert "SizeGB" in machine.run("get", "-d", "data").out
    assert machine.run("get", "data").out.startswith("name:")


def test_create_without_a_name_takes_that_of_the_device(machine: Machine) -> None:
    machine.run("create", "-a", "mystore", "-d", "dysk07", "-v=false")
    assert machine.disks == {"mystore/dysks/dysk07": 2 * GIB}


def test_mount_file_takes_what_mount_printed(machine: Machine, tmp_path: Path) -> None:
    machine.disks[DISK] = GIB
    path = tmp_path / "d.json"
    path.write_text(machine.run("mount", "-a", "mystore", "-p", "data.vhd", "-d", "d1", "-o", "json").out)
    machine.calls.clear()
    assert machine.run("mount-file", "-f", str(path)).code == 0
    assert machine.calls == [("attach", DISK, attaching(name="d1", lease_id=LEASE))]


@pytest.mark.parametrize(
    ("sas", "expected"), [("", (None, None)), (KEY, (KEY, None)), ("?sv=1&sig=x", (None, "?sv=1&sig=x"))]
)
def test_mount_file_of_the_original_may_have_a_secret_of_either_kind(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, sas: str, expected: tuple[str | None, str | None]
) -> None:
    machine.disks[DISK] = GIB
    values = {"Type": "R", "Name": "d1", "AccountName": "mystore", "Sas": sas, "Path": "/dysks/data.vhd", "Extra": 1}
    given(machine, monkeypatch, json.dumps(values))
    result = machine.run("mount-file", "-f", "-", "-o", "json")
    assert result.code == 0
    assert machine.secrets == [expected]
    assert machine.calls == [("attach", DISK, attaching(name="d1", read_only=True))]
    assert json.loads(result.out)["Sas"] == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not the JSON of a dysk"),
        ("[]", "is not the JSON of a dysk"),
        ("7", "is not the JSON of a dysk"),
        ('{"Name": "d", "Path": "/c/b"}', "has no AccountName"),
        ('{"Name": 7, "Path": "/c/b", "AccountName": "mystore"}', "has no Name"),
        ('{"Name": "d", "Path": "/c/b", "AccountName": "mystore", "Type": "X"}', "not R or RW"),
        ('{"Name": "d", "Path": "nothing", "AccountName": "mystore"}', "blob name"),
    ],
)
def test_files_that_are_no_dysk(machine: Machine, monkeypatch: pytest.MonkeyPatch, text: str, says: str) -> None:
    given(machine, monkeypatch, text)
    result = machine.run("mount-file", "-f", "-")
    assert result.code == 2 and says in result.err


def test_unmount_detaches_and_says_so_as_the_original_does(machine: Machine) -> None:
    machine.attached["data"] = EXAMPLE
    result = machine.run("unmount", "-d", "data", "-b")
    assert (result.code, result.out, result.err) == (0, "", "Status:\nDevice:data unmounted\n")
    assert machine.calls == [("detach", "data", False, False)]


def test_convert_pv_of_a_dysk(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "Type": "R",
        "Name": "dyskA",
        "AccountName": "mystore",
        "Sas": KEY,
        "Path": "/dysks/a/b.vhd",
        "LeaseId": "",
        "Major": 1,
        "Minor": 2,
        "Vhd": True,
        "SizeGB": 5,
        "AccountRealm": "core.windows.net",
    }
    given(machine, monkeypatch, json.dumps(values))
    result = machine.run("convert-pv", "--secret-name", "creds", "--labels", "a=1,b=", "--storageclass-name", "s")
    found = json.loads(result.out)
    assert found["metadata"] == {"name": "dyska", "labels": {"a": "1", "b": ""}}
    assert found["spec"]["capacity"] == {"storage": "5Gi"}
    assert found["spec"]["storageClassName"] == "s"
    assert found["spec"]["flexVolume"]["readOnly"] is True
    assert found["spec"]["flexVolume"]["options"] == {
        "accountName": "mystore",
        "container": "dysks",
        "blob": "a/b.vhd",
    }
    assert KEY not in result.out


def test_convert_pv_of_a_disk_asks_the_service_for_its_size(machine: Machine) -> None:
    machine.disks = {"mystore/disks/data": 3 * GIB}
    words = ["convert-pv", "mystore/disks/data", "--secret-name", "creds", "--csi"]
    spec = json.loads(machine.run(*words).out)["spec"]
    assert spec["csi"]["volumeHandle"] == "mystore/disks/data"
    assert spec["capacity"] == {"storage": "3Gi"}
    assert "  csi:\n    driver: csi-dysk\n" in machine.run(*words, "--yaml").out
    assert machine.calls == [("properties", "mystore/disks/data")] * 2
    machine.disks = {}
    assert "does not exist" in machine.run(*words).err
    assert json.loads(machine.run(*words, "--size", "7GiB").out)["spec"]["capacity"] == {"storage": "7Gi"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mystore/disks/data"], "missing option '--secret-name'"),
        (["mystore/disks/data", "-f", "x", "--secret-name", "s"], "one too many"),
        (["mystore/disks/data", "--secret-name", "s", "--size", "1GiB", "--labels", "x"], "is not KEY=VALUE"),
        (["mystore/disks/data", "--secret-name", "s", "--access-mode", "Any"], "'ReadWriteOnce'"),
        (["mystore/disks/b?d", "--secret-name", "s"], "unknown word"),
        (
            ["mystore/disks/b?snapshot=2026-01-31T12:00:00.0000000Z", "--secret-name", "s", "--size", "1GiB"],
            "not a snapshot",
        ),
    ],
)
def test_convert_pv_of_words_that_do_not_fit(machine: Machine, words: list[str], says: str) -> None:
    result = machine.run("convert-pv", *words)
    assert result.code == 2 and says in result.err
