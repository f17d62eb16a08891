"""The doctor's checks, each shown a machine or a service that is well and one that is not."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Never

import pytest

from blobfuse_dysk.cli.doctor import account as doctor_account
from blobfuse_dysk.cli.doctor import machine as doctor_machine
from blobfuse_dysk.cli.doctor import verb as doctor_verb
from blobfuse_dysk.cli.doctor.findings import Check, fail, ok, warn
from blobfuse_dysk.device.kernel import privileges
from blobfuse_dysk.device.kernel.privileges import User
from blobfuse_dysk.errors import DeviceError, UsageError
from tests.unit.cli_fakes import EXAMPLE, KEY, Machine, machine

__all__ = ["machine"]


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("6.18.44-fc", "ok"),
        ("6.8.12-azure", "ok"),
        ("5.15.0-1064-azure", "ok"),
        ("5.8.0", "ok"),
        ("5.4.0", "fail"),
        ("?", "fail"),
    ],
)
def test_a_kernel_that_is_too_old_is_told_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, release: str, level: str
) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    found = doctor_machine.kernel()
    assert found.level == level and release in found.found
    assert (found.remedy is None) == (level == "ok")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file"), PermissionError(1, "Not permitted"), OSError(19, "No such device")]
)
def test_fuse_device_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def refuse(path: str, flags: int) -> int:
        assert path == "/dev/fuse"
        raise error

    monkeypatch.setattr(os, "open", refuse)
    found = doctor_machine.fuse_device()
    assert found.level == "fail" and found.remedy


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Files of /proc and /sys as the test wants them; None stands for a file that is not there."""
    wanted: dict[str, str] = {}
    real_read, real_exists = Path.read_text, Path.exists
    monkeypatch.setattr(Path, "read_text", lambda path, *more: wanted.get(str(path)) or real_read(path, *more))
    monkeypatch.setattr(Path, "exists", lambda path: str(path) in wanted or real_exists(path))
    yield wanted


def test_a_kernel_that_aborts_slow_fuse_requests_is_warned_of(files: dict[str, str]) -> None:
    files["/proc/sys/fs/fuse/default_request_timeout"] = "0\n"
    files["/proc/sys/fs/fuse/max_request_timeout"] = "0\n"
    assert doctor_machine.fuse_timeouts().level == "ok"
    files["/proc/sys/fs/fuse/max_request_timeout"] = "120\n"
    found = doctor_machine.fuse_timeouts()
    assert found.level == "warn" and "120 s" in found.found
    assert found.remedy and "sysctl fs.fuse.max_request_timeout=0" in found.remedy


def test_a_missing_capability_is_warned_of(files: dict[str, str]) -> None:
    status = "/proc/self/status"
    files[status] = "Name:\tx\nCapEff:\t000001ffffffffff\n"
    assert doctor_machine.capabilities().level == "ok"
    files[status] = "CapEff:\t000001fffeffffff\n"
    found = doctor_machine.capabilities()
    assert (found.level, found.found) == ("warn", "no CAP_SYS_RESOURCE")
    assert "--cap-add SYS_RESOURCE" in str(found.remedy)
    files[status] = "CapEff:\t0000000000000000\n"
    found = doctor_machine.capabilities()
    assert found.level == "fail" and "CAP_SYS_ADMIN" in found.found


def test_workers_with_roots_user_id_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for user, level, says in ((User(9, 9), "ok", "run as the user _dysk"), (None, "warn", "have root's user id")):
        monkeypatch.setattr(privileges, "find_user", lambda user=user: user)
        found = doctor_machine.worker_user()
        assert found.level == level
        assert says in found.found
        assert bool(found.remedy) == (level == "warn")


def test_a_tool_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from blobfuse_dysk.mount import tools

    missing: set[str] = set()

    def find(name: str, remedy: str | None = None) -> str:
        if name in missing:
            raise DeviceError(f"{name} is not installed")
        return f"/usr/sbin/{name}"

    monkeypatch.setattr(tools, "find_tool", find)
    assert doctor_machine.tools().level == "ok"
    missing.add("mkfs.btrfs")
    assert (doctor_machine.tools().level, doctor_machine.tools().found) == ("warn", "no mkfs.btrfs")
    missing.add("blkid")
    assert doctor_machine.tools().level == "fail"


def test_mount_helpers_that_are_not_in_place_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert doctor_machine.mount_helpers().level == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = doctor_machine.mount_helpers()
    assert found.level == "warn" and found.remedy and "ln -s" in found.remedy


def test_a_run_directory_that_is_full_or_read_only_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYSK_RUN_DIR", str(tmp_path / "not" / "there"))
    assert doctor_machine.run_directory().level == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor_machine.run_directory().level == "fail"
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=3, f_frsize=4096))
    found = doctor_machine.run_directory()
    assert found.level == "fail" and "12KiB left" in found.found


def test_a_credential_file_that_others_can_read_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYSK_CONFIG_DIR", str(tmp_path))
    assert doctor_machine.credential_files() == ok("credential files", f"0 in {tmp_path}")
    path = tmp_path / "mystore.conf"
    path.write_text(f"account_key = {KEY}\n")
    path.chmod(0o600)
    assert doctor_machine.credential_files().level == "ok"
    path.chmod(0o644)
    found = doctor_machine.credential_files()
    assert found.level == "fail" and str(path) in found.found and "chmod" in str(found.remedy)
    refuse = PermissionError(13, "Permission denied")
    with monkeypatch.context() as others:
        others.setattr(Path, "iterdir", lambda path: raising(refuse))
        assert doctor_machine.credential_files() == fail(
            "credential files", f"{tmp_path}: Permission denied", "run it as root"
        )
    path.chmod(0o600)
    path.write_text("\nacount_key = x\n")
    assert "line 2" in doctor_machine.credential_files().found


def raising(error: Exception) -> Never:
    raise error


def test_attachments_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from blobfuse_dysk import attachment

    refuse = PermissionError(13, "Permission denied", "/run/dysk")
    monkeypatch.setattr(attachment, "attachments", lambda: raising(refuse))
    assert doctor_machine.attachments() == fail("attachments", "/run/dysk may not be read", "run it as root")


def test_an_attachment_that_is_not_in_order_is_told(machine: Machine) -> None:
    machine.attached = {"data": EXAMPLE}
    assert doctor_machine.attachments() == ok("attachments", "1, all in order")
    machine.attached["x"] = replace(EXAMPLE, name="x", state="paused", detail="no answer", state_since="T1")
    found = doctor_machine.attachments()
    assert (found.level, found.found) == ("warn", "x is paused since T1: no answer")
    for state in ("fenced", "failed", "dead"):
        machine.attached["x"] = replace(EXAMPLE, name="x", state=state, detail="node b took it", state_since="T2")
        found = doctor_machine.attachments()
        assert (found.level, found.found) == ("fail", f"x is {state} since T2: node b took it")
    machine.attached["x"] = replace(EXAMPLE, name="x", detail="a write was lost: why")
    found = doctor_machine.attachments()
    assert (found.level, found.found) == ("warn", "x is attached: a write was lost: why")


def test_the_checks_of_this_very_machine_find_something_to_say() -> None:
    for check in doctor_machine.MACHINE_CHECKS:
        found = check()
        assert found.found
        assert (found.remedy is None) == (found.level == "ok")


# The verb.


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """The machine's checks, as the test wants them."""
    wanted: list[Check] = [lambda: ok("one", "fine")]
    monkeypatch.setattr(doctor_verb, "MACHINE_CHECKS", wanted)
    return wanted


def test_doctor_prints_findings_and_remedies(machine: Machine, checks: list[Check]) -> None:
    checks.append(lambda: warn("two", "so so", "do that"))
    result = machine.run("doctor")
    assert (result.code, result.out) == (0, "ok    one: fine\nwarn  two: so so\n      -> do that\n")
    checks.append(lambda: fail("three", "broken", "mend it"))
    result = machine.run("doctor", "-o", "json")
    assert result.code == 1
    assert json.loads(result.out)[2] == {"check": "three", "level": "fail", "found": "broken", "remedy": "mend it"}


@pytest.mark.parametrize("words", [["--write-test"], ["mystore", "--write-test"]])
def test_a_write_test_needs_a_container(machine: Machine, checks: list[Check], words: list[str]) -> None:
    result = machine.run("doctor", *words)
    assert result.code == 2 and "ACCOUNT/CONTAINER" in result.err


@pytest.mark.parametrize(
    ("text", "address", "parts"),
    [
        ("mystore", "mystore/any/any", 1),
        ("mystore/disks", "mystore/disks/any", 2),
        ("mystore/disks/", "mystore/disks/any", 2),
        ("mystore/disks/a/b", "mystore/disks/a/b", 3),
        ("https://mystore.blob.core.windows.net/disks/a", "mystore/disks/a", 3),
    ],
)
def test_what_the_doctor_is_asked_about(text: str, address: str, parts: int) -> None:
    disk, given = doctor_account.parse_target(text)
    assert (str(disk), given) == (address, parts)


def test_a_name_that_is_no_account(machine: Machine, checks: list[Check]) -> None:
    assert machine.run("doctor", "No Account").code == 2
    with pytest.raises(UsageError):
        doctor_account.parse_target("")
