"""The doctor's checks, each shown a machine or a service that is well and one that is not."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from blobfuse_dysk.azure.identity import Credential, Proof
from blobfuse_dysk.cli import doctor as doctor_verb
from blobfuse_dysk.cli import doctor_account, doctor_machine
from blobfuse_dysk.cli.findings import Check, Finding, fail, ok, warn
from blobfuse_dysk.disk import AttachOptions, Endpoint
from blobfuse_dysk.errors import DeviceError, UsageError
from blobfuse_dysk.testing import PageBlobServer
from tests.unit.cli_fakes import EXAMPLE, KEY, Machine, machine

__all__ = ["machine"]


@pytest.mark.parametrize(
    ("release", "level"),
    [
        ("6.18.44-fc", "ok"),
        ("6.9.0", "ok"),
        ("6.8.12-azure", "warn"),
        ("5.8.0", "warn"),
        ("5.4.0", "fail"),
        ("?", "fail"),
    ],
)
def test_kernel(monkeypatch: pytest.MonkeyPatch, release: str, level: str) -> None:
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


def test_fuse_timeouts(files: dict[str, str]) -> None:
    files["/proc/sys/fs/fuse/default_request_timeout"] = "0\n"
    files["/proc/sys/fs/fuse/max_request_timeout"] = "0\n"
    assert doctor_machine.fuse_timeouts().level == "ok"
    files["/proc/sys/fs/fuse/max_request_timeout"] = "120\n"
    found = doctor_machine.fuse_timeouts()
    assert found.level == "warn" and "120 s" in found.found
    assert found.remedy and "sysctl fs.fuse.max_request_timeout=0" in found.remedy


def test_capabilities(files: dict[str, str]) -> None:
    status = "/proc/self/status"
    files[status] = "Name:\tx\nCapEff:\t000001ffffffffff\n"
    assert doctor_machine.capabilities().level == "ok"
    files[status] = "CapEff:\t000001fffeffffff\n"
    found = doctor_machine.capabilities()
    assert (found.level, found.found) == ("warn", "no CAP_SYS_RESOURCE")
    files[status] = "CapEff:\t0000000000000000\n"
    found = doctor_machine.capabilities()
    assert found.level == "fail" and "CAP_SYS_ADMIN" in found.found


def test_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    from blobfuse_dysk import mounttools

    missing: set[str] = set()

    def find(name: str, remedy: str | None = None) -> str:
        if name in missing:
            raise DeviceError(f"{name} is not installed")
        return f"/usr/sbin/{name}"

    monkeypatch.setattr(mounttools, "find_tool", find)
    assert doctor_machine.tools().level == "ok"
    missing.add("mkfs.btrfs")
    assert (doctor_machine.tools().level, doctor_machine.tools().found) == ("warn", "no mkfs.btrfs")
    missing.add("blkid")
    assert doctor_machine.tools().level == "fail"


def test_mount_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert doctor_machine.mount_helpers().level == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    found = doctor_machine.mount_helpers()
    assert found.level == "warn" and found.remedy and "ln -s" in found.remedy


def test_run_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYSK_RUN_DIR", str(tmp_path / "not" / "there"))
    assert doctor_machine.run_directory().level == "ok"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert doctor_machine.run_directory().level == "fail"
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=3, f_frsize=4096))
    found = doctor_machine.run_directory()
    assert found.level == "fail" and "12KiB left" in found.found


def test_credential_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYSK_CONFIG_DIR", str(tmp_path))
    assert doctor_machine.credential_files() == ok("credential files", f"0 in {tmp_path}")
    path = tmp_path / "mystore.conf"
    path.write_text(f"account_key = {KEY}\n")
    path.chmod(0o600)
    assert doctor_machine.credential_files().level == "ok"
    path.chmod(0o644)
    found = doctor_machine.credential_files()
    assert found.level == "fail" and str(path) in found.found and "chmod" in str(found.remedy)
    path.chmod(0o600)
    path.write_text("\nacount_key = x\n")
    assert "line 2" in doctor_machine.credential_files().found


def test_attachments(machine: Machine) -> None:
    machine.attached = {"data": EXAMPLE}
    assert doctor_machine.attachments() == ok("attachments", "1, all in order")
    machine.attached["x"] = replace(EXAMPLE, name="x", state="fenced")
    found = doctor_machine.attachments()
    assert (found.level, found.found) == ("warn", "x is fenced")


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


# The account's checks.


def credential(sas: str | None = None) -> Credential:
    proof = Proof("sas", "the test", sas=sas) if sas else Proof("key", "the test", account_key=KEY)
    return Credential("mystore", proof)


def sas_ending(in_s: float) -> str:
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + in_s))
    return f"sp=rw&se={end}&sig=hush"


@pytest.mark.parametrize(("in_s", "level"), [(-60, "fail"), (3600, "warn"), (30 * 86400, "ok")])
def test_expiry(in_s: float, level: str) -> None:
    found = doctor_account._credential(credential(sas_ending(in_s)))
    assert found.level == level and "hush" not in str(found)


@pytest.mark.parametrize(
    ("sas", "level"),
    [
        (None, "ok"),
        ("sp=rw&sig=x", "ok"),
        ("sp=racwdl&sig=x", "ok"),
        ("sp=r&sig=x", "warn"),
        ("sp=w&sig=x", "fail"),
        ("si=policy&sig=x", "warn"),
    ],
)
def test_rights(sas: str | None, level: str) -> None:
    assert doctor_account._rights(credential(sas)).level == level


def test_rights_of_a_token_are_not_known() -> None:
    entra = Credential("mystore", Proof("token", "the test", token_command=("true",)))
    found = doctor_account._rights(entra)
    assert found.level == "warn" and "--write-test" in str(found.remedy)


def test_a_name_that_does_not_resolve() -> None:
    found = doctor_account._dns(Endpoint("https", "nosuch.blob.test.invalid", 443), credential())
    assert found.level == "fail" and "nosuch.blob.test.invalid" in found.found


def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        found = doctor_account._tcp(Endpoint("http", "127.0.0.1", holder.getsockname()[1]), credential())
    assert found.level == "fail" and "firewall" in str(found.remedy)


def test_tls_of_a_server_whose_certificate_nobody_signed() -> None:
    with PageBlobServer(https=True) as server:
        endpoint = Endpoint.parse(server.url)
        found = doctor_account._tls(endpoint, credential())
        assert found.level == "fail" and "not trusted" in found.found and "ca_file" in str(found.remedy)
        trusting = Credential("mystore", Proof("key", "the test", account_key=KEY), ca_file=server.ca_file)
        assert doctor_account._tls(endpoint, trusting).level == "ok"


def test_tls_where_there_is_none() -> None:
    with PageBlobServer() as server:
        plain = Endpoint.parse(server.url)
        assert doctor_account._tls(plain, credential()).level == "ok"
        assert doctor_account._tls(Endpoint("https", plain.host, plain.port), credential()).level == "fail"
    assert doctor_account._tls(Endpoint("http", "192.0.2.1", 80), credential()).level == "warn"


def found_by(target: str, **more: bool) -> dict[str, Finding]:
    options = {"write_test": False, **more}
    return {finding.check: finding for finding in doctor_account.account_checks(target, AttachOptions(), **options)}


@pytest.fixture(scope="module")
def server() -> Iterator[PageBlobServer]:
    with PageBlobServer() as running:
        yield running


@pytest.fixture
def account(server: PageBlobServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An account on a server, with its key in place."""
    monkeypatch.setenv("DYSK_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection_string)
    return str(server.account)


def test_a_service_whose_clock_differs(server: PageBlobServer, account: str) -> None:
    assert found_by(account)["clock"].level == "ok"
    server.configure(clock_offset_s=3600)
    found = found_by(account)["clock"]
    server.configure(clock_offset_s=0)
    assert found.level == "warn" and "timedatectl" in str(found.remedy)
    assert re.match("(3599|360[01]) s behind the service's", found.found)  # the service's Date has whole seconds


def test_checks_of_disks(server: PageBlobServer, account: str) -> None:
    server.create("disks", "data", 1 << 20)
    assert found_by(f"{account}/disks/data")["disk"] == ok("disk", f"{account}/disks/data, 1MiB, not leased")
    assert found_by(f"{account}/disks/other")["disk"].level == "fail"
    assert "page blobs: 1" in found_by(f"{account}/disks")["container"].found
    assert found_by(f"{account}/nosuch")["container"].level == "fail"
    assert "disk" not in found_by(account) and "container" not in found_by(account)


def test_a_disk_that_is_leased(server: PageBlobServer, account: str) -> None:
    from azure.storage.blob import BlobClient, BlobLeaseClient

    url = server.create("disks", "leased", 1 << 20)
    with BlobClient.from_blob_url(url, credential={"account_name": account, "account_key": server.key}) as blob:
        blob.set_blob_metadata({"dysk_node": "node7", "dysk_since": "2026-01-31T12:00:00Z"})
        BlobLeaseClient(blob).acquire()
    found = found_by(f"{account}/disks/leased")["disk"]
    assert found.level == "warn" and "leased by node node7 since 2026-01-31T12:00:00Z" in found.found


def test_the_write_test_leaves_nothing(server: PageBlobServer, account: str) -> None:
    server.create("written", "data", 1 << 20)
    assert found_by(f"{account}/written", write_test=True)["write test"].level == "ok"
    assert "page blobs: 1" in found_by(f"{account}/written")["container"].found
    fault = server.fault("error", operation="put_page", status=403)
    found = found_by(f"{account}/written", write_test=True)["write test"]
    server.clear_faults(fault)
    assert found.level == "fail"
    assert "page blobs: 1" in found_by(f"{account}/written")["container"].found
    assert found_by(f"{account}/nosuch", write_test=True)["write test"].level == "fail"
    fault = server.fault("error", operation="delete_blob", status=403)
    found = found_by(f"{account}/written", write_test=True)["write test"]
    server.clear_faults(fault)
    assert found.level == "warn" and "by hand" in str(found.remedy)


def test_without_a_credential_nothing_else_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DYSK_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    assert list(found_by("mystore")) == ["credential"]
