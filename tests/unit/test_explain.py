"""explain.py: what a person reads for each refusal, and what to do about it."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import replace

import pytest

from blobfuse_dysk.azure.credential.credential import NO_CREDENTIAL, Credential, Proof
from blobfuse_dysk.azure.credential.tokencommand import Token
from blobfuse_dysk.azure.explain import explain, leased, not_a_page_blob
from blobfuse_dysk.azure.signing import http_date
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import (
    CredentialError,
    DyskError,
    HasSnapshotsError,
    Kind,
    LeasedError,
    NotFoundError,
    ServiceError,
    StoreError,
    TransportError,
    UsageError,
)

DISK = DiskAddress.parse("https://acc.blob.core.windows.net/disks/data")
LOCAL = DiskAddress.parse("http://127.0.0.1:10000/acc/disks/data")
KEY = Credential("acc", Proof("key", "/etc/dysk/acc.conf", account_key="a2V5"))
TOKEN = Credential("acc", Proof("token", "/etc/dysk/acc.conf"), token=Token("SECRET", 1e12))
NOBODY = Credential("acc", Proof("anonymous", "/etc/dysk/acc.conf"))


def sas(text: str) -> Credential:
    return Credential("acc", Proof("sas", "the disk's URL", sas=f"sig=SECRET&{text}"))


def test_the_sas_of_one_blob_does_not_list_a_container() -> None:
    """The service says that its signature is wrong: what it signs names the blob."""
    for resource in ("b", "bs", "bv"):
        one = sas(f"sp=rwl&sr={resource}")
        for code in ("AuthenticationFailed", "AuthorizationPermissionMismatch"):
            found = explain(ServiceError("list", status=403, code=code), DISK, one, needs="rl")
            assert f"is for one blob (sr={resource})" in str(found) and "sr=c" in str(found.remedy)
    found = explain(ServiceError("list", status=403, code="AuthenticationFailed"), DISK, sas("sr=c"), needs="rl")
    assert "its signature does not fit" in str(found)


@pytest.mark.parametrize(
    ("status", "code", "credential", "kind", "message", "remedy"),
    [
        (404, "BlobNotFound", KEY, NotFoundError, "disk acc/disks/data does not exist", "dyskctl create"),
        (404, "", KEY, NotFoundError, "disk acc/disks/data does not exist", "dyskctl create"),
        (404, "ContainerNotFound", KEY, NotFoundError, "container disks of account acc does not exist", "create"),
        (409, "ContainerBeingDeleted", KEY, NotFoundError, "is being deleted", "half a minute"),
        (409, "InvalidBlobType", KEY, UsageError, "is not a page blob", "dyskctl create"),
        (403, "AuthenticationFailed", KEY, CredentialError, "is not the key of account acc", "rotated"),
        (403, "AuthorizationFailure", KEY, CredentialError, "is refused", "firewall"),
        (403, "", KEY, CredentialError, "is not the key of account acc", "rotated"),
        (
            403,
            "AuthorizationSourceIPMismatch",
            KEY,
            CredentialError,
            "is refused, whether or not the account key",
            None,
        ),
        (403, "OfTomorrow", KEY, CredentialError, "no token came", None),
        (
            403,
            "KeyVaultEncryptionKeyNotFound",
            KEY,
            DyskError,
            "which is in a key vault (KeyVaultEncr",
            "Encryption page",
        ),
        (403, "KeyVaultAccessTokenCannotBeAcquired", sas("sp=rw"), DyskError, "in a key vault", "Encryption page"),
        (409, "BlobUsesCustomerSpecifiedEncryption", KEY, UsageError, "each request has to bring", "--cpk-by-value"),
        (403, "InsufficientAccountPermissions", KEY, CredentialError, "does not allow", "secondary can only be read"),
        (409, "PendingCopyOperation", KEY, DyskError, "is still being copied to", "wait for the end"),
        (409, "LeaseIsBreakingAndCannotBeAcquired", KEY, LeasedError, "is being broken", "within a minute"),
        (403, "KeyBasedAuthenticationNotPermitted", KEY, CredentialError, "does not allow account keys", "entra"),
        (403, "AccountIsDisabled", KEY, CredentialError, "is disabled", "portal"),
        (400, "AccountRequiresHttps", KEY, UsageError, "takes HTTPS only", "https://"),
        (400, "BlobTypeNotSupported", KEY, UsageError, "has no page blobs", "general purpose v2"),
        (409, "PublicAccessNotPermitted", NOBODY, CredentialError, "does not allow public access", "credential"),
        (401, "NoAuthenticationInformation", NOBODY, CredentialError, "not open to the public", "credential"),
        (403, "AuthorizationPermissionMismatch", TOKEN, CredentialError, "has no rights", "Data Contributor"),
        (401, "InvalidAuthenticationInfo", TOKEN, CredentialError, "is not accepted", "tenant"),
        (403, "AuthenticationFailed", sas("se=2020-01-01"), CredentialError, "expired at 2020-01-01T00:00:00Z", "new"),
        (403, "AuthenticationFailed", sas("st=2999-01-01"), CredentialError, "not valid before 2999-01-01", "clock"),
        (403, "AuthenticationFailed", sas("sp=r"), CredentialError, "its signature does not fit", "copy it whole"),
        (
            403,
            "AuthorizationPermissionMismatch",
            sas("sp=r"),
            CredentialError,
            "has no write right (sp=r)",
            "read-only",
        ),
        (403, "AuthorizationPermissionMismatch", sas("sp=l"), CredentialError, "no read and no write right", "sp=rw"),
        (403, "AuthorizationResourceTypeMismatch", sas("sp=rw"), CredentialError, "does not allow this", "container"),
        (409, "LeaseAlreadyPresent", KEY, LeasedError, "is leased", "--break-lease"),
        (409, "SnapshotsPresent", KEY, HasSnapshotsError, "has snapshots", "--snapshots"),
        (401, NO_CREDENTIAL, TOKEN, CredentialError, "no token came", None),
        (403, "AuthenticationFailed", None, CredentialError, "is refused", None),
    ],
)
def test_a_refusal_is_explained_in_the_words_of_who_has_to_do_something(
    status: int, code: str, credential: Credential | None, kind: type[DyskError], message: str, remedy: str | None
) -> None:
    error = ServiceError("no token came", status=status, code=code)
    found = explain(error, DISK, credential)
    assert type(found) is kind
    assert message in str(found)
    assert (remedy or "") in (found.remedy or "")
    assert "SECRET" not in found.line()
    wrapped = StoreError("reading", Kind.DENIED)
    wrapped.__cause__ = error
    assert explain(wrapped, DISK, credential).line() == found.line()


def test_a_snapshot_that_is_not_there() -> None:
    snapshot = DiskAddress.parse("acc/disks/data?snapshot=2026-01-31T12:00:00.0000000Z")
    found = explain(ServiceError("x", status=404, code="BlobNotFound"), snapshot, KEY)
    assert str(found) == "snapshot 2026-01-31T12:00:00.0000000Z of disk acc/disks/data does not exist"
    assert "dyskctl snapshot list" in (found.remedy or "")


@pytest.mark.parametrize(
    ("needs", "remedy"), [("rw", "attach read-only"), ("w", "sp=w"), ("d", "sp=d"), ("rl", "sp=rl")]
)
def test_the_rights_that_a_new_sas_should_have(needs: str, remedy: str) -> None:
    error = ServiceError("x", status=403, code="AuthorizationPermissionMismatch")
    assert remedy in (explain(error, DISK, sas("sp=c"), needs=needs).remedy or "")


def test_azurite_says_authorization_failure_for_a_wrong_key() -> None:
    error = ServiceError("x", status=403, code="AuthorizationFailure")
    assert "is not the key" in str(explain(error, LOCAL, KEY))
    assert "signature does not fit" in str(explain(error, LOCAL, sas("sp=rw")))


def test_a_clock_that_is_off() -> None:
    credential = Credential("acc", Proof("key", "/f", account_key="a2V5"))
    credential.clock.measure(http_date(time.time() - 7200))
    found = explain(ServiceError("x", status=403, code="AuthenticationFailed"), DISK, credential)
    assert "ahead of the service's" in str(found)
    assert "timedatectl" in (found.remedy or "")


@pytest.mark.parametrize(
    ("cause", "disk", "kind", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), DISK, NotFoundError, "account acc does not exist: no DNS name"),
        (socket.gaierror(socket.EAI_AGAIN, "later"), DISK, TransportError, "check this machine's DNS"),
        (ConnectionRefusedError(111, "refused"), LOCAL, TransportError, "is Azurite running there?"),
        (ConnectionRefusedError(111, "refused"), DISK, TransportError, "check the endpoint's name and port"),
        (ssl.SSLError(1, "wrong version number"), DISK, TransportError, "does not speak TLS"),
        (None, DISK, TransportError, "dyskctl doctor"),
    ],
)
def test_a_service_that_does_not_answer_is_told_by_the_reason(
    cause: OSError | None, disk: DiskAddress, kind: type[DyskError], text: str
) -> None:
    error = TransportError("cannot connect", sent=False)
    error.__cause__ = cause
    found = explain(error, disk, KEY)
    assert type(found) is kind
    assert text in found.line()


def test_what_needs_no_better_words_is_returned_as_it_is() -> None:
    said = LeasedError("leased by node n", remedy="detach it there")
    said.__cause__ = ServiceError("x", status=409, code="LeaseAlreadyPresent")
    trusted = TransportError("certificate", sent=False, remedy="install ca-certificates")
    for error in (said, trusted, DyskError("x"), ServiceError("x", status=500, code="InternalError")):
        assert explain(error, DISK, KEY) is error


@pytest.mark.parametrize(
    ("status", "code", "disk", "missing"),
    [
        (404, "BlobNotFound", DISK, "disk"),
        (404, "", replace(DISK, snapshot="2026-01-31T12:00:00Z"), "snapshot"),
        (404, "ContainerNotFound", DISK, "container"),
        (409, "ContainerBeingDeleted", DISK, "container"),
    ],
)
def test_what_is_missing_is_said_to_programs_too(status: int, code: str, disk: DiskAddress, missing: str) -> None:
    found = explain(ServiceError("x", status=status, code=code), disk, KEY)
    assert isinstance(found, NotFoundError) and found.missing == missing


def test_who_holds_a_disk_and_of_what_type_it_is() -> None:
    named = leased(DISK, {"dysk_node": "n1", "dysk_since": "2026-01-01T00:00:00Z"}, "leased")
    assert str(named) == "disk acc/disks/data is leased by node n1 since 2026-01-01T00:00:00Z"
    assert (named.holder, named.since) == ("n1", "2026-01-01T00:00:00Z")
    unnamed = leased(DISK, {"dysk_node": "", "dysk_since": "2026-01-01T00:00:00Z"}, "leased")
    assert str(unnamed) == "disk acc/disks/data is leased by an unknown holder"
    assert (unnamed.holder, unnamed.since) == (None, None)
    breaking = leased(DISK, {"dysk_node": "n1"}, "breaking")
    assert str(breaking) == "disk acc/disks/data is leased by node n1, and that lease is being broken"
    assert "within a minute" in (breaking.remedy or "")
    assert "is a block blob, not a page blob" in str(not_a_page_blob(DISK, "BlockBlob"))
    assert "of type 'X'" in str(not_a_page_blob(DISK, "X"))
