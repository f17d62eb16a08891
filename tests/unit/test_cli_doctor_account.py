"""The doctor's checks of an account, a container and a disk, on the project's own server."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.azure.credential.resolve import resolve
from blobfuse_dysk.cli.doctor import account as doctor_account
from blobfuse_dysk.cli.doctor.findings import Finding, ok
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.server.certificates import make_certificates
from tests.unit.cli_fakes import EXAMPLE, KEY, Machine, machine

__all__ = ["machine"]


def credential(sas: str | None = None) -> Credential:
    proof = Proof("sas", "the test", sas=sas) if sas else Proof("key", "the test", account_key=KEY)
    return Credential("mystore", proof)


def sas_ending(in_s: float) -> str:
    end = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + in_s))
    return f"sp=rw&se={end}&sig=hush"


@pytest.mark.parametrize(("in_s", "level"), [(-60, "fail"), (3600, "warn"), (30 * 86400, "ok")])
def test_a_sas_that_has_ended_fails_and_one_that_ends_soon_warns(in_s: float, level: str) -> None:
    endpoint = Endpoint("https", "mystore.test.invalid", 443)
    found = doctor_account._credential(endpoint, credential(sas_ending(in_s)))
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
def test_a_sas_with_too_few_rights_is_found(sas: str | None, level: str) -> None:
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
    assert found.level == "fail" and "Azurite" in str(found.remedy)


def test_tls_of_a_server_whose_certificate_nobody_signed() -> None:
    with PageBlobServer(https=True) as server:
        endpoint = Endpoint.parse(server.url)
        found = doctor_account._tls(endpoint, credential())
        assert found.level == "fail" and "not trusted" in found.found and "ca_file" in str(found.remedy)
        trusting = Credential("mystore", Proof("key", "the test", account_key=KEY), ca_file=server.ca_file)
        assert doctor_account._tls(endpoint, trusting).level == "ok"
        assert doctor_account._clock(endpoint, trusting) == ok("clock", "agrees with the service's")


@pytest.mark.parametrize(
    ("names", "days", "remedy"), [([], 2, "as its certificate does"), (["127.0.0.1"], -1, "clock")]
)
def test_tls_with_a_certificate_of_another_name_or_that_has_expired(
    tmp_path: Path, names: list[str], days: int, remedy: str
) -> None:
    made = make_certificates(tmp_path, ["elsewhere.test", *names], days=days)
    with PageBlobServer(cert_file=made.cert_file, key_file=made.key_file) as server:
        endpoint = Endpoint("https", "127.0.0.1", server.port)
        trusting = Credential("mystore", Proof("key", "the test", account_key=KEY), ca_file=made.ca_file)
        found = doctor_account._tls(endpoint, trusting)
    assert found.level == "fail" and remedy in str(found.remedy)


@pytest.mark.parametrize(("text", "why"), [(None, "No such file"), ("no certificate\n", "it holds no certificate")])
def test_tls_with_authorities_that_cannot_be_read(tmp_path: Path, text: str | None, why: str) -> None:
    path = tmp_path / "ca.pem"
    if text:
        path.write_text(text)
    with PageBlobServer(https=True) as server:
        trusting = Credential("mystore", Proof("key", "the test", account_key=KEY), ca_file=str(path))
        found = doctor_account._tls(Endpoint.parse(server.url), trusting)
    assert found.level == "fail" and why in found.found and "ca_file" in str(found.remedy)


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
    found = found_by(account)
    assert found["account"] == ok("account", f"{account} takes the account key from AZURE_STORAGE_CONNECTION_STRING")
    assert "disk" not in found and "container" not in found


def test_what_attach_refuses_is_no_good_disk_to_the_doctor(server: PageBlobServer, account: str) -> None:
    server.create("disks", "clone", 1 << 20, metadata={"dysk_incomplete": "mystore/disks/data"})
    found = found_by(f"{account}/disks/clone")["disk"]
    assert found.level == "fail" and "is an unfinished clone of mystore/disks/data" in found.found
    assert "--abort" in str(found.remedy)


@pytest.mark.parametrize("target", ["", "/disks", "/disks/data"])
def test_a_wrong_key_is_found_by_every_check_and_its_rights_are_not_praised(
    server: PageBlobServer, account: str, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    server.create("disks", "data", 1 << 20)
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", server.connection_string.replace(server.key, KEY.replace("a", "b"))
    )
    *_, last = found_by(f"{account}{target}").values()
    assert last.level == "fail" and "is not the key of account" in last.found and "rotated" in str(last.remedy)


def with_sas(server: PageBlobServer, monkeypatch: pytest.MonkeyPatch, kind: str, permission: str) -> None:
    """From now on the account is used with a SAS of a container or of one blob in it."""
    from azure.storage.blob import generate_blob_sas, generate_container_sas

    expiry = datetime.now(UTC) + timedelta(days=30)
    if kind == "b":
        text = generate_blob_sas(
            server.account, "disks", "data", account_key=server.key, permission=permission, expiry=expiry
        )
    else:
        text = generate_container_sas(
            server.account, "disks", account_key=server.key, permission=permission, expiry=expiry
        )
    link = f"AccountName={server.account};SharedAccessSignature={text};BlobEndpoint={server.endpoint}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", link)


@pytest.mark.parametrize("kind", ["b", "c"])
def test_a_sas_that_is_enough_to_attach_passes(
    server: PageBlobServer, account: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The least that a node needs cannot list, and may be for one container or one blob: nothing of that is a fault."""
    server.create("disks", "data", 1 << 20)
    with_sas(server, monkeypatch, kind, "rw")
    assert found_by(account)["account"].level == "warn"
    container = found_by(f"{account}/disks")["container"]
    assert container.level == ("ok" if kind == "c" else "warn")
    found = found_by(f"{account}/disks/data")
    assert (found["disk"].level, found["rights"].level) == ("ok", "ok")


def test_a_container_that_is_not_there_and_a_sas_that_is_not_accepted(
    server: PageBlobServer, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.create("disks", "data", 1 << 20)
    with_sas(server, monkeypatch, "c", "r")
    assert found_by(f"{account}/nosuch")["container"].level == "fail"  # the SAS is not for that one
    with_sas(server, monkeypatch, "c", "w")
    found = found_by(f"{account}/disks")
    assert "no read right" in found["container"].found and "rights" not in found


def test_a_disk_that_is_attached_here(
    server: PageBlobServer, account: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.storage.blob import BlobClient, BlobLeaseClient

    url = server.create("disks", "mine", 1 << 20)
    with BlobClient.from_blob_url(url, credential={"account_name": account, "account_key": server.key}) as blob:
        BlobLeaseClient(blob).acquire()
    monkeypatch.setattr(doctor_account, "resolve", resolve)
    machine.attached["mine"] = replace(EXAMPLE, name="mine", disk=f"{account}/disks/mine")
    found = doctor_account._blob(*resolve(DiskAddress.parse(f"{account}/disks/mine"), AttachOptions()))
    assert found == ok("disk", f"{account}/disks/mine, 1MiB, attached here as {EXAMPLE.device}")


def test_a_disk_that_is_leased(server: PageBlobServer, account: str) -> None:
    from azure.storage.blob import BlobClient, BlobLeaseClient

    url = server.create("disks", "leased", 1 << 20)
    with BlobClient.from_blob_url(url, credential={"account_name": account, "account_key": server.key}) as blob:
        blob.set_blob_metadata({"dysk_node": "node7", "dysk_since": "2026-01-31T12:00:00Z"})
        BlobLeaseClient(blob).acquire()
    found = found_by(f"{account}/disks/leased")["disk"]
    assert found.found.startswith(f"{account}/disks/leased, 1MiB, leased by node ")
    assert found.level == "warn" and "leased by node node7 since 2026-01-31T12:00:00Z" in found.found


@pytest.mark.parametrize(
    ("head", "level", "found", "remedy"),
    [
        (b"", "ok", "nothing that has to be converted or opened first", ""),
        (b"QFI\xfb\0\0\0\3", "warn", "a qcow2 image", "attach it with --read-only, then: qemu-img convert -f qcow2"),
        (b"\x1f\x8b\x08", "warn", "a gzip file", "gunzip it, and upload what comes out"),
        (b"LUKS\xba\xbe", "ok", "a LUKS container; attached: cryptsetup open /dev/dysk/by-blob/", ""),
    ],
)
def test_what_is_on_a_disk_is_named_with_what_converts_or_opens_it(
    server: PageBlobServer, account: str, head: bytes, level: str, found: str, remedy: str
) -> None:
    from azure.storage.blob import BlobClient

    url = server.create("disks", f"content{len(head)}{level}", 1 << 20)
    with BlobClient.from_blob_url(url, credential={"account_name": account, "account_key": server.key}) as blob:
        blob.upload_page(head + bytes(512 - len(head)), 0, 512)
    finding = found_by(f"{account}/disks/content{len(head)}{level}")["content"]
    assert finding.level == level and finding.found.startswith(found)
    assert (finding.remedy or "").startswith(remedy)


def test_a_disk_that_cannot_be_read_is_said_to_be_that(server: PageBlobServer, account: str) -> None:
    server.create("disks", "unread", 1 << 20)
    fault = server.fault("error", operation="get_blob", status=403)
    found = found_by(f"{account}/disks/unread")["content"]
    assert found.level == "warn" and found.found.startswith("cannot be read: ")
    server.clear_faults(fault)


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


def test_a_release_that_fails_does_not_hide_why_the_write_test_failed(server: PageBlobServer, account: str) -> None:
    server.create("held", "data", 512)
    server.fault("error", operation="put_page", status=409, code="BlobImmutableDueToPolicy")
    server.fault("error", operation="lease_release", status=400, code="InvalidInput")
    try:
        found = found_by(f"{account}/held", write_test=True)["write test"]
    finally:
        server.clear_faults()
    assert found.level == "fail"
    assert "immutability policy" in found.found


def test_a_disk_whose_lease_is_being_broken(server: PageBlobServer, account: str) -> None:
    from azure.storage.blob import BlobClient

    server.create("broken", "data", 512)
    with BlobClient.from_connection_string(server.connection_string, "broken", "data") as blob:
        lease = blob.acquire_lease(60)
        lease.break_lease(30)
    found = found_by(f"{account}/broken/data")["disk"]
    assert found.level == "warn"
    assert "leased by an unknown holder, which is being broken" in found.found
