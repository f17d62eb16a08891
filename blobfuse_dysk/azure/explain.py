"""Refusals of the service, and failures to reach it, in the words of the person who has to do something about them.

`explain` takes what a BlobClient or management.py raised (or an error that has it as its cause) and returns the error
to show: the same classes and messages for an attach, a create and a list. It asks nobody.

Source: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes and
https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from blobfuse_dysk.azure.credential.credential import NO_CREDENTIAL, Credential
from blobfuse_dysk.azure.credential.sas import RIGHTS
from blobfuse_dysk.azure.properties import CopyState
from blobfuse_dysk.azure.tiers import REFUSALS
from blobfuse_dysk.azure.tls import untrusted
from blobfuse_dysk.disk import DiskAddress, format_size
from blobfuse_dysk.errors import (
    CredentialError,
    DyskError,
    HasSnapshotsError,
    LeasedError,
    NotFoundError,
    ServiceError,
    TransportError,
    UsageError,
)
from blobfuse_dysk.timestamp import utc_text

__all__ = [
    "HOLDER_NODE",
    "HOLDER_SINCE",
    "HOLDER_TAG",
    "explain",
    "holder_in",
    "leased",
    "leased_by",
    "not_a_page_blob",
    "not_copied",
]

HOLDER_NODE = "dysk_node"
HOLDER_SINCE = "dysk_since"
HOLDER_TAG = "dysk_tag"
"""Names in the blob's metadata: who holds the lease, since when (ISO 8601, UTC), and the tag of its numbers."""
_ONE_BLOB = frozenset(("b", "bs", "bv"))  # sr of a SAS for a blob, a snapshot, a version
_SKEW_S = 900.0  # the service refuses dates that differ by more

_KEY_VAULT = "KeyVault"
"""What codes begin with that are about the account's own encryption key: customer-managed, in a key vault."""
_UNPROVED = ("AuthenticationFailed", "AuthorizationFailure", "InvalidAuthenticationInfo", "")
"""Codes under which a signature is refused; AuthorizationFailure by Azurite, none where it is not told."""
_NETWORK_RULES = (
    "the account's firewall may not let this machine in: allow its network under Networking in the portal, "
    "or add a service endpoint for its virtual network"
)
_TAKE_OVER = "detach it there, or take it over with --break-lease (-o break-lease) if that node is gone for good"
_BREAKING = "it ends by itself, within a minute: wait, or take the disk at once with --break-lease (-o break-lease)"
_ROLE = "give it the role Storage Blob Data Contributor on the account or the container; a new role takes minutes"


def explain(
    error: DyskError, address: DiskAddress, credential: Credential | None = None, *, needs: str = "rw"
) -> DyskError:
    """Return the error to show for `error`, which is returned itself when there is nothing better to say.

    needs: letters of the rights that the operation needs (see sas.RIGHTS), to name the one a SAS lacks.
    """
    if isinstance(error, LeasedError | UsageError):
        return error  # said already, by somebody who knew more
    cause = _first(error, lambda found: isinstance(found, ServiceError | TransportError))
    if isinstance(cause, ServiceError):
        return _refused(cause, address, credential, needs) or error
    if isinstance(cause, TransportError):
        return _unreachable(cause, address) or error
    return error


def leased(
    address: DiskAddress, metadata: Mapping[str, str], lease_state: str, *, endless: bool = False
) -> LeasedError:
    """The error for a disk that another has; metadata: the blob's own, which may name the holder.

    lease_state: by the service: leased, or breaking, if somebody broke the lease and left it a while. endless: whether
    the lease is an infinite one.
    """
    node, since = holder_in(metadata)
    text, remedy = f"disk {address} is {leased_by(node, since)}", _TAKE_OVER
    if lease_state == "breaking":
        text, remedy = f"{text}, and that lease is being broken", _BREAKING
        endless = False
    return LeasedError(text, holder=node, since=since, endless=endless, remedy=remedy)


def holder_in(metadata: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The holder that a blob's metadata names, and since when it has the blob. The case of names makes no difference.

    Some tools and proxies change it.
    """
    lower = {name.lower(): value for name, value in metadata.items()}
    node = lower.get(HOLDER_NODE) or None
    return node, lower.get(HOLDER_SINCE) or None if node else None


def leased_by(node: str | None, since: str | None) -> str:
    """Who has it, in words: the fields of a LeasedError."""
    holder = f"node {node}" if node else "an unknown holder"
    return f"leased by {holder}{f' since {since}' if since else ''}"


def not_a_page_blob(address: DiskAddress, blob_type: str) -> UsageError:
    """The error for a blob of another type. blob_type: as in x-ms-blob-type."""
    kind = {"BlockBlob": "a block blob", "AppendBlob": "an append blob"}.get(blob_type, f"of type {blob_type!r}")
    return UsageError(
        f"{address} is {kind}, not a page blob",
        remedy="a disk is a page blob: make one with dyskctl create, or upload with az storage blob upload --type page",
    )


def not_copied(address: DiskAddress, copy: CopyState, source: str = "") -> DyskError:
    """The error for a blob that is the destination of a copy which has not been completed.

    source: of what dyskctl clones it; '' for a copy that others make.
    """
    clone = f"dyskctl clone {source} {address}"
    came = ""
    if copy.done is not None and copy.total:
        percent = f" ({copy.done * 100 // copy.total} %)" if copy.total else ""
        came = f": {format_size(copy.done)} of {format_size(copy.total)}{percent} have come"
    if copy.status == "pending":
        tells = "az storage blob show --query properties.copy tells how far it is"
        return DyskError(
            f"{address} is still being copied to{came}",
            remedy=f"wait for it with {clone}, or give it up with --abort added to that"
            if source
            else f"wait for the end of the copy: {tells}",
        )
    how = f"the copy to {address} was not completed, it is {copy.status}{came}"
    return DyskError(
        f"{how} ({copy.description})" if copy.description else how,
        remedy=f"give it up with {clone} --abort, then clone again"
        if source
        else "copy it again; if the blob is right as it is, az storage blob update takes the mark off",
    )


def _first(error: BaseException | None, fits: Callable[[BaseException], bool]) -> BaseException | None:
    """The first error in the chain of causes that fits."""
    while error is not None and not fits(error):
        error = error.__cause__
    return error


def _unreachable(error: TransportError, address: DiskAddress) -> DyskError | None:
    if error.remedy:
        return error
    host = address.endpoint.host if address.endpoint else ""
    text = str(error)
    name = _first(error, lambda found: isinstance(found, socket.gaierror))
    if isinstance(name, socket.gaierror):
        if name.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            if address.is_secondary:
                return NotFoundError(
                    f"account {address.account} has no secondary that can be read: no DNS name {host}",
                    missing="account",
                    remedy="its redundancy has to be RA-GRS or RA-GZRS; name the disk at the primary",
                )
            return NotFoundError(
                f"account {address.account} does not exist: no DNS name {host}",
                missing="account",
                remedy="check the account's name, and realm= for another cloud than the public one",
            )
        return _again(error, text, f"the name {host} cannot be resolved now; check this machine's DNS")
    if _first(error, lambda found: isinstance(found, ConnectionRefusedError)):
        local = address.endpoint is not None and address.endpoint.is_loopback
        return _again(error, text, "is Azurite running there?" if local else "check the endpoint's name and port")
    distrust = _first(error, lambda found: isinstance(found, ssl.SSLCertVerificationError))
    if isinstance(distrust, ssl.SSLCertVerificationError):
        return _again(error, text, untrusted(distrust))
    if _first(error, lambda found: isinstance(found, ssl.SSLError)):
        return _again(error, text, "the endpoint does not speak TLS as expected; check its scheme and port")
    return _again(error, text, "check the network between this machine and the service: dyskctl doctor")


def _again(error: TransportError, text: str, remedy: str) -> TransportError:
    return TransportError(text, sent=error.sent, stale=error.stale, remedy=remedy)


def _refused(error: ServiceError, address: DiskAddress, credential: Credential | None, needs: str) -> DyskError | None:
    code = error.code
    if code == NO_CREDENTIAL:
        return CredentialError(str(error), remedy=error.remedy)
    if code in _SIMPLE:
        make, message, remedy = _SIMPLE[code]
        fields = {"disk": str(address), "account": address.account, "container": address.container}
        return make(message.format(**fields), remedy=remedy)
    if code.startswith(_KEY_VAULT):
        return DyskError(
            f"account {address.account} cannot use its encryption key, which is in a key vault ({code})",
            remedy="see the account's Encryption page in the portal: the key must be enabled, the vault there, and the "
            "identity allowed to get, wrap and unwrap it",
        )
    if error.status == 404 and address.snapshot:
        return NotFoundError(
            f"snapshot {address.snapshot} of disk {replace(address, snapshot=None)} does not exist",
            missing="snapshot",
            remedy="dyskctl snapshot list shows those that there are",
        )
    if error.status == 404:
        return NotFoundError(
            f"disk {address} does not exist",
            missing="disk",
            remedy="create it with dyskctl create; dyskctl list --remote shows those that there are",
        )
    if error.status in (401, 403):
        return _denied(error, address, credential, needs)
    return None


def _denied(error: ServiceError, address: DiskAddress, credential: Credential | None, needs: str) -> DyskError:
    """Why 401 or 403: the service's codes tell little, so the credential is looked at."""
    if credential is None:
        return CredentialError(f"access to {address} is refused: {error}")
    what = credential.describe()
    local = address.endpoint is not None and address.endpoint.is_loopback
    if error.code == "AuthorizationFailure" and not local:  # Azurite says so for a wrong key or SAS
        return CredentialError(f"access to {address} is refused ({error.code}), with the {what}", remedy=_NETWORK_RULES)
    if credential.kind == "sas":
        return _denied_sas(error, address, credential, needs)
    if credential.kind == "token":
        if error.code == "AuthorizationPermissionMismatch":
            return CredentialError(f"the identity of the {what} has no rights on {address}", remedy=_ROLE)
        return CredentialError(
            f"the {what} is not accepted for account {address.account} ({error.code})",
            remedy="log in to the tenant that the account belongs to (AZURE_TENANT_ID)",
        )
    if credential.kind == "key" and error.code not in _UNPROVED:
        return CredentialError(f"access to {address} is refused, whether or not the {what} is right: {error}")
    if credential.kind == "key":
        skew_s = credential.clock.measured_s or 0.0
        if abs(skew_s) > _SKEW_S and not (credential.clock.offset_s or credential.clock.disproved):
            return CredentialError(
                f"this machine's clock is {abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} the service's",
                remedy="set the clock: timedatectl set-ntp true",
            )
        return CredentialError(
            f"the {what} is not the key of account {address.account} ({error.code})",
            remedy="it may have been rotated: copy one of the account's two keys again",
        )
    return CredentialError(
        f"{address} is not open to the public ({error.code})",
        remedy="give a credential: account_key, sas or auth = entra in the credential file",
    )


def _denied_sas(error: ServiceError, address: DiskAddress, credential: Credential, needs: str) -> CredentialError:
    sas, now = credential.sas, credential.clock.now()
    assert sas is not None
    what = credential.describe()
    if sas.expires_at is not None and sas.expires_at <= now:
        return CredentialError(f"the {what} expired at {utc_text(sas.expires_at)}", remedy="make a new one")
    if sas.starts_at is not None and sas.starts_at > now:
        return CredentialError(
            f"the {what} is not valid before {utc_text(sas.starts_at)}", remedy="wait, or check this machine's clock"
        )
    if "l" in needs and sas.resource in _ONE_BLOB:
        return CredentialError(
            f"the {what} is for one blob (sr={sas.resource}), and container {address.container} is to be listed",
            remedy="make one for the container (sr=c) with sp=rl",
        )
    missing = [RIGHTS[right] for right in needs if not sas.has(right)]
    unknown = error.code in ("AuthenticationFailed", "AuthorizationFailure")
    if missing and not unknown:
        return CredentialError(
            f"the {what} has no {' and no '.join(missing)} right (sp={sas.rights})",
            remedy="make one with sp=rw for a disk, or attach read-only"
            if needs == "rw"
            else f"make one with sp={needs}",
        )
    if unknown:
        return CredentialError(
            f"the {what} is not accepted: its signature does not fit",
            remedy="copy it whole; it also ends when the key or the policy that it was made with is changed",
        )
    return CredentialError(
        f"the {what} does not allow this ({error.code}: {address})",
        remedy="make it for this blob or its container (not for a directory or another IP range)",
    )


_NO_PAGE_BLOBS = (
    UsageError,
    "account {account} has no page blobs",
    "use a general purpose v2 account (Standard), or a Premium account of the kind for page blobs",
)
_HELD = (
    LeasedError,
    "disk {disk} is leased by another holder",
    _TAKE_OVER,
)
_KEYS_OFF = (
    CredentialError,
    "account {account} does not allow account keys",
    "write auth = entra into the credential file, or use a user delegation SAS",
)
_TOO_SOON = (
    DyskError,
    "disk {disk} had a snapshot made a moment ago, and the service makes them at intervals",
    "try again in some minutes",
)
_NO_CONTAINER = partial(NotFoundError, missing="container")
# code -> what makes the error, message, remedy
_SIMPLE: Mapping[str, tuple[Callable[..., DyskError], str, str]] = {
    **REFUSALS,
    "ContainerNotFound": (
        _NO_CONTAINER,
        "container {container} of account {account} does not exist",
        "dyskctl create makes the container with the disk",
    ),
    "ContainerBeingDeleted": (
        _NO_CONTAINER,
        "container {container} of account {account} is being deleted",
        "wait half a minute, or use another container",
    ),
    "InvalidBlobType": (
        UsageError,
        "{disk} is not a page blob",
        "a disk is a page blob: make one with dyskctl create, or upload with az storage blob upload --type page",
    ),
    "AccountIsDisabled": (CredentialError, "account {account} is disabled", "see the account in the portal"),
    "AccountRequiresHttps": (UsageError, "account {account} takes HTTPS only", "write https:// in the endpoint"),
    "KeyBasedAuthenticationNotPermitted": _KEYS_OFF,
    "BlobTypeNotSupported": _NO_PAGE_BLOBS,
    "FeatureNotYetSupportedForHierarchicalNamespaceAccounts": _NO_PAGE_BLOBS,
    "OperationNotAllowedOnHierarchicalNamespaceAccounts": _NO_PAGE_BLOBS,
    "PublicAccessNotPermitted": (
        CredentialError,
        "account {account} does not allow public access",
        "give a credential: account_key, sas or auth = entra in the credential file",
    ),
    "BlobUsesCustomerSpecifiedEncryption": (
        UsageError,
        "disk {disk} is encrypted with a key that each request has to bring, which no disk can be",
        "copy it to a blob without a customer-provided key: azcopy reads it with --cpk-by-value",
    ),
    "InsufficientAccountPermissions": (
        CredentialError,
        "account {account} does not allow this operation",
        "an account's secondary can only be read: name the disk at the primary, or attach it read-only",
    ),
    "LeaseAlreadyPresent": _HELD,
    "LeaseIsBreakingAndCannotBeAcquired": (
        LeasedError,
        "the lease of disk {disk} is being broken",
        _BREAKING,
    ),
    "LeaseIdMissing": _HELD,
    "PendingCopyOperation": (
        DyskError,
        "disk {disk} is still being copied to",
        "wait for the end of the copy, or end it: dyskctl clone --abort, or az storage blob copy cancel",
    ),
    **dict.fromkeys(("SnapshotOperationRateExceeded", "SnaphotOperationRateExceeded"), _TOO_SOON),
    "SnapshotCountExceeded": (
        UsageError,
        "disk {disk} has as many snapshots as the service keeps of a disk",
        "delete one first: dyskctl snapshot list, dyskctl snapshot delete",
    ),
    "SnapshotsPresent": (
        HasSnapshotsError,
        "disk {disk} has snapshots",
        "to delete them as well: dyskctl delete --snapshots",
    ),
    "BlobImmutableDueToPolicy": (
        UsageError,
        "disk {disk} is under an immutability policy",
        "a disk must be writable: use a container without such a policy",
    ),
}
