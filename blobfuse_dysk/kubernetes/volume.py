"""What Kubernetes says of a volume, made into a disk's address and options; for the CSI and the FlexVolume driver.

A volume's id is `ACCOUNT/CONTAINER/BLOB`, a snapshot's that of its volume with `?snapshot=TIME`. The id alone says
which disk it is, since some calls bring nothing else: so the endpoint comes from where every call can look, the secret
or the account's file in /etc/dysk, and what a class says of it must be the same.

A volume's credential is that of the request (its secret), kept in memory, or what is found for the account on this
machine: a file or the AZURE_STORAGE_* variables, workload identity among them. It is sent to that account only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from blobfuse_dysk.azure.credential.file import ConnectionString
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.errors import CredentialError, NotFoundError, UsageError
from blobfuse_dysk.keyvalue import suggest
from blobfuse_dysk.kubernetes.parameters import Parameters
from blobfuse_dysk.options import AttachOptions

__all__ = [
    "DEFAULT_CONTAINER",
    "Secret",
    "blob_name",
    "new_volume",
    "snapshot_address",
    "volume_address",
    "with_secret",
]

DEFAULT_CONTAINER = "dysks"
MOST_ID = 128  # bytes; source: the specification, "Size Limits"
SNAPSHOT_PART = len("?snapshot=2026-01-31T12:00:00.0000000Z")
_LEAST_NAME = 24  # characters of a blob's name, a digest of 16 among them
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]|[A-Za-z0-9]")

# Keys of a Secret, in lower case, by what they are: those of the original, those of other drivers for Azure, our own.
_SECRET_KEYS = {
    "accountname": "account",
    "azurestorageaccountname": "account",
    "accountkey": "key",
    "azurestorageaccountkey": "key",
    "accountsas": "sas",
    "azurestorageaccountsastoken": "sas",
    "connectionstring": "connection",
    "azurestorageconnectionstring": "connection",
    "endpoint": "endpoint",
    "allowhttp": "allow_http",
}
_SWITCH = {"yes": True, "no": False}
_WHERE = "the volume's secret"
_REMEDY = "it takes accountname with accountkey or accountsas, or connectionstring; endpoint and allowhttp beside them"


@dataclass(frozen=True, slots=True)
class Secret:
    """What a Secret says; fields that it does not have are empty or None. Nothing of it is in a repr or a message."""

    account: str = ""
    key: str = field(default="", repr=False)
    sas: str = field(default="", repr=False)
    endpoint: Endpoint | None = None
    allow_http: bool = False  # plain HTTP to another machine

    @classmethod
    def parse(cls, secrets: Mapping[str, str]) -> Secret:
        """Read the data of a Secret, already decoded. Raises CredentialError, which shows no value."""
        found: dict[str, str] = {}
        for name, value in secrets.items():
            what = _SECRET_KEYS.get(name.lower())
            if what is None:
                near = suggest(name.lower(), _SECRET_KEYS, most=1)
                raise CredentialError(f"{_WHERE} has an unknown key", remedy=near or _REMEDY)
            text = value.strip()
            if not text:
                raise CredentialError(f"{_WHERE} has no value for {name}", remedy="fill it in")
            if found.setdefault(what, text) != text:
                raise CredentialError(f"{_WHERE} has two different values for {name}", remedy="remove one")
        if len([what for what in ("key", "sas", "connection") if what in found]) > 1:
            raise CredentialError(f"{_WHERE} has more than one credential", remedy="leave one of them")
        account, key, sas = found.get("account", ""), found.get("key", ""), found.get("sas", "")
        endpoint = None
        if "connection" in found:
            link = ConnectionString.parse(found["connection"], _WHERE)
            if account and link.account and link.account != account:
                raise CredentialError(f"{_WHERE}: accountname and connectionstring are of two accounts")
            account, key, sas, endpoint = account or link.account, link.key, link.sas, link.endpoint
        if "endpoint" in found:
            endpoint = Endpoint.parse(found["endpoint"], account or None)
        if (key or sas) and not account:
            raise CredentialError(f"{_WHERE} has no accountname", remedy=_REMEDY)
        if endpoint and not (key or sas):
            raise CredentialError(f"{_WHERE} has an endpoint without a credential", remedy=_REMEDY)
        switch = found.get("allow_http", "no").lower()
        if switch not in _SWITCH:
            raise CredentialError(f"{_WHERE}: allowhttp is neither yes nor no", remedy="write one of the two")
        return cls(account, key, sas, endpoint, _SWITCH[switch])


def volume_address(volume_id: str) -> DiskAddress:
    """The disk of a volume. Raises NotFoundError for an id that is none of ours: there is no such volume."""
    why = ""
    try:
        if "://" not in volume_id:
            return DiskAddress.parse(volume_id)
    except UsageError as error:
        why = f": {error}"
    raise NotFoundError(f"there is no volume {volume_id!r}{why}", remedy="a volume's id is ACCOUNT/CONTAINER/BLOB")


def snapshot_address(snapshot_id: str) -> DiskAddress:
    """The address of a snapshot. Raises NotFoundError for an id that is none of ours."""
    address = volume_address(snapshot_id)
    if address.snapshot is None:
        raise NotFoundError(f"there is no snapshot {snapshot_id!r}")
    return address


def with_secret(
    address: DiskAddress,
    secrets: Mapping[str, str],
    parameters: Parameters = Parameters(),  # noqa: B008 -- frozen
) -> tuple[DiskAddress, AttachOptions]:
    """What reaches a disk: its address with the credential of the request, and the options of its class.

    Raises CredentialError for a secret of another account, UsageError for an endpoint that the class alone names.
    """
    secret = Secret.parse(secrets)
    if secret.account and secret.account != address.account:
        raise CredentialError(
            f"{_WHERE} is of account {secret.account}, the volume in account {address.account}",
            remedy="name the secret of that account in the class or the volume",
        )
    options = parameters.options()
    if parameters.endpoint and secret.endpoint != Endpoint.parse(parameters.endpoint, address.account):
        raise UsageError(
            f"endpoint {parameters.endpoint} is not that of the volume's secret, by which later calls find it",
            remedy="write it into the secret, too: a key `endpoint`",
        )
    reached = DiskAddress(
        address.account,
        address.container,
        address.blob,
        address.snapshot,
        endpoint=secret.endpoint,
        sas=secret.sas or None,
        account_key=secret.key or None,
        given_by=_WHERE,
    )
    return reached, replace(options, allow_http=options.allow_http or secret.allow_http)


def new_volume(name: str, parameters: Parameters, secrets: Mapping[str, str]) -> tuple[DiskAddress, AttachOptions]:
    """Where the volume of this name lies, always the same for one name and class. Raises DyskError."""
    if parameters.blob:
        raise UsageError(
            "parameter blob is of volumes that exist already",
            remedy="leave it out of the StorageClass: each volume gets a blob of its own",
        )
    account = parameters.account or Secret.parse(secrets).account
    if not account:
        raise UsageError(
            "neither the class nor its secret says which account the volume goes to",
            remedy="write the parameter account into the StorageClass, or accountname into its secret",
        )
    container = parameters.container or DEFAULT_CONTAINER
    blob = blob_name(account, container, parameters.blob_prefix, name)
    return with_secret(DiskAddress.parse(f"{account}/{container}/{blob}"), secrets, parameters)


def blob_name(account: str, container: str, prefix: str, name: str) -> str:
    """The blob of a volume: the prefix and its name, the latter cut and told apart by a digest where it has to be.

    The id is to have at most 128 bytes, also that of a snapshot.
    """
    room = max(MOST_ID - SNAPSHOT_PART - len(f"{account}/{container}/{prefix}"), _LEAST_NAME)
    if _PLAIN_NAME.fullmatch(name) and len(name) <= room and ".." not in name:
        return prefix + name
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9-]+", "-", name)[: room - len(digest) - 1].strip("-")
    return f"{prefix}{readable}-{digest}" if readable else f"{prefix}{digest}"
