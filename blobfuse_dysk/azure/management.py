"""Management of disks in an account: create, delete, list. Synchronous, on azure-storage-blob, imported when used.

These calls are rare and their number of operations large, so they use the SDK, which takes 0.3 s to load. What the SDK
raises becomes this package's errors here, at one boundary, with the same words as those of an attach.
"""

from __future__ import annotations

import contextlib
import logging
import ssl
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from blobfuse_dysk.azure import explain, marks
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.tls import check_ca_file
from blobfuse_dysk.azure.wire import API_VERSION
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError, ServiceError, TransportError, UsageError
from blobfuse_dysk.patience import telling
from blobfuse_dysk.proxies import UNREACHED

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, BlobServiceClient

__all__ = ["DiskRow", "code_of", "create_disk", "list_disks", "list_page", "load", "sdk", "set_tier"]

log = logging.getLogger(__name__)

_CONNECT_S = 4.0
_READ_S = 30.0
_RETRIES = 1  # a dead endpoint is to be an error within seconds: somebody is waiting at a terminal
_PAGE = 512  # bytes
_NEW = 0  # the sequence number of a blob that nobody has attached
_AT_ONCE = 8  # requests
_WITH = ["metadata", "copy"]  # asked for beside the properties of each blob
_NO_MARKER = frozenset({"OutOfRangeInput", "InvalidQueryParameterValue", "OutOfRangeQueryParameterValue"})


@dataclass(frozen=True, slots=True)
class DiskRow:
    """One page blob of a container. size, allocated: bytes. holder, since: from the metadata, None if not there.

    allocated: None where it was not asked for. incomplete: a copy to it has not been completed, so it is no disk yet.
    """

    disk: str
    size: int
    allocated: int | None
    lease_state: str
    holder: str | None
    since: str | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    incomplete: bool = False


def load() -> None:
    """Load the SDK now, for which the first call would wait otherwise."""
    import azure.storage.blob  # noqa: F401


def create_disk(
    address: DiskAddress,
    credential: Credential,
    size: int,
    footer: bytes | None = None,
    *,
    create_container: bool = True,
    tier: str | None = None,
    metadata: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Create an empty page blob of `size` bytes, a multiple of 512; an existing one is refused and not touched.

    footer: 512 bytes written into the last page (a VHD's). When that fails the blob is deleted again. tier, metadata,
    tags: the blob has them from its beginning. Raises DyskError and its kin, all with a remedy.
    """
    assert footer is None or len(footer) == _PAGE
    with sdk(address, credential, "create", needs="wt" if tags else "w") as service:
        blob = service.get_blob_client(address.container, address.blob)
        with_it = {"premium_page_blob_tier": tier, "metadata": metadata, "tags": tags}
        words = {name: value for name, value in with_it.items() if value}
        etag = _create_empty(service, blob, address, size, create_container, words)
        if footer is not None:
            _write_footer(blob, address, size, footer, etag)


def _create_empty(
    service: BlobServiceClient,
    blob: BlobClient,
    address: DiskAddress,
    size: int,
    create_container: bool,
    words: dict[str, Any],
) -> str:
    """Returns the ETag. words: more for the SDK."""
    from azure.core import MatchConditions
    from azure.core.exceptions import HttpResponseError, ResourceExistsError

    def create() -> str:
        # No retry of the SDK: it would find the blob that its first attempt had made, and call it another's.
        made = blob.create_page_blob(size, match_condition=MatchConditions.IfMissing, retry_total=0, **words)
        return str(made["etag"])

    try:
        try:
            return create()
        except HttpResponseError as error:
            if code_of(error) != "ContainerNotFound" or not create_container:
                raise
            with contextlib.suppress(ResourceExistsError):
                service.create_container(address.container)
            return create()
    except HttpResponseError as error:
        if code_of(error) in ("BlobAlreadyExists", "ConditionNotMet"):
            raise DyskError(
                f"disk {address} exists already", remedy="attach it as it is, or choose another name"
            ) from error
        raise


def _write_footer(blob: BlobClient, address: DiskAddress, size: int, footer: bytes, etag: str) -> None:
    try:
        # Tried again if no answer comes, and the first attempt may come late: to a disk that was in use and grew since.
        blob.upload_page(footer, offset=size - _PAGE, length=_PAGE, if_sequence_number_lte=_NEW)
    except BaseException:
        try:
            _take_back(blob, etag)
        except Exception as error:
            log.error("%s was created without its VHD footer and cannot be deleted: %s", address, type(error).__name__)
        raise


def _take_back(blob: BlobClient, etag: str) -> None:
    """Delete the blob as it was made; or with its footer, if that came although nobody heard of it, but no other."""
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceModifiedError

    unchanged = MatchConditions.IfNotModified
    try:
        blob.delete_blob(etag=etag, match_condition=unchanged)
    except ResourceModifiedError:
        found = blob.get_blob_properties()
        if found.page_blob_sequence_number:  # an attach raises it, so somebody uses the disk
            raise
        blob.delete_blob(etag=found.etag, match_condition=unchanged)


def set_tier(address: DiskAddress, credential: Credential, tier: str) -> None:
    """Set Blob Tier. Raises DyskError."""
    with sdk(address, credential, "set the tier", needs="w") as service:
        blob = service.get_blob_client(address.container, address.blob)
        blob.set_premium_page_blob_tier(tier)  # type: ignore[arg-type]  # the enumeration lacks some, and text will do


def list_disks(address: DiskAddress, credential: Credential, *, allocated: bool = False) -> list[DiskRow]:
    """List the page blobs of the address's container (its blob is not used), in one request for up to 5,000 blobs.

    allocated: ask for the page map of each as well, several at a time, and add up what is in it.
    """
    listed = replace(address, blob="*")  # in messages
    with sdk(listed, credential, "list", needs="rl") as service:
        container = service.get_container_client(address.container)
        rows = _rows(address, container.list_blobs(include=_WITH))
        if not allocated:
            return rows
        blobs = [container.get_blob_client(row.disk.split("/", 2)[2]) for row in rows]
        with ThreadPoolExecutor(_AT_ONCE) as several:
            return [
                replace(row, allocated=size) for row, size in zip(rows, several.map(_allocated, blobs), strict=True)
            ]


def list_page(
    address: DiskAddress, credential: Credential, *, marker: str = "", most: int = 5000, prefix: str = ""
) -> tuple[list[DiskRow], str]:
    """A piece of the list, and the marker of the next; '' at the end. One request.

    most: blobs that are looked at, 1 to 5,000; those that are no page blobs are left out, so a piece may be empty. A
    marker is the service's, to be given with the same prefix. UsageError if it is none.
    """
    from azure.core.exceptions import HttpResponseError

    listed = replace(address, blob="*")
    with sdk(listed, credential, "list", needs="rl") as service:
        container = service.get_container_client(address.container)
        found = container.list_blobs(name_starts_with=prefix or None, include=_WITH, results_per_page=most)
        pages = found.by_page(continuation_token=marker or None)
        try:
            rows = _rows(address, next(pages, ()))
        except HttpResponseError as error:
            if marker and code_of(error) in _NO_MARKER:
                raise UsageError(f"{marker!r} is no marker of a list", remedy="begin the list anew") from error
            raise
        return rows, str(pages.continuation_token or "")  # type: ignore[attr-defined]  # ItemPaged says Iterator


def _rows(address: DiskAddress, items: Iterable[Any]) -> list[DiskRow]:
    """Those of the SDK's items that are page blobs."""
    from azure.storage.blob import BlobType

    rows = []
    for item in items:
        if item.blob_type != BlobType.PAGEBLOB:
            continue
        metadata, lease = item.metadata or {}, item.lease.state or ""
        holder, since = explain.holder_in(metadata)
        name = f"{address.account}/{address.container}/{item.name}"
        unfinished = marks.is_unfinished(metadata, item.copy)
        rows.append(DiskRow(name, item.size, None, lease, holder, since, metadata, unfinished))
    return rows


def _allocated(blob: BlobClient) -> int:
    """Bytes in allocated pages, by the blob's page map."""
    ranges = [(found.start, found.end) for found in blob.list_page_ranges()]
    return sum(end + 1 - start for start, end in ranges if start is not None and end is not None)


@contextlib.contextmanager
def sdk(address: DiskAddress, credential: Credential, what: str, *, needs: str) -> Iterator[BlobServiceClient]:
    """A client of the account, and the one place where what the SDK raises is translated."""
    from azure.core.exceptions import AzureError, HttpResponseError
    from azure.storage.blob import BlobServiceClient, ExponentialRetry

    check_ca_file(credential.ca_file)
    trusted = ssl.get_default_verify_paths()
    service = BlobServiceClient(
        str(address.endpoint),
        credential=_sdk_credential(credential),
        api_version=API_VERSION,
        retry_policy=ExponentialRetry(initial_backoff=1, increment_base=1, retry_total=_RETRIES, random_jitter_range=0),
        connection_timeout=_CONNECT_S,
        read_timeout=_READ_S,
        logging_enable=False,
        raw_response_hook=partial(_check_sender, address, what),
        permit_redirects=False,  # as on the data path: the service does not redirect, so it is somebody else who does
        # The SDK's own default is a list that comes with it; attaching trusts the system's, so this does, too.
        use_env_settings=False,  # the variables count once, in resolve.py
        proxies=dict.fromkeys(("http", "https"), address.proxy.url) if address.proxy else None,
        connection_verify=credential.ca_file or trusted.cafile or trusted.capath or True,
    )
    limit_s = (_CONNECT_S + _READ_S) * (_RETRIES + 1)
    waiting = f"waiting for {address.endpoint} to {what} {address}; a request is given up after {limit_s:.0f} s"
    try:
        with _quiet(), service, telling(lambda: waiting):
            yield service
    except HttpResponseError as error:
        raise explain.explain(_refusal(error, address, credential, what), address, credential, needs=needs) from error
    except AzureError as error:
        raise explain.explain(_lost(error, address, what), address, credential, needs=needs) from error


def _check_sender(address: DiskAddress, what: str, answer: Any) -> None:
    """Called for each answer before the SDK looks at it, which fails on bodies that are not the service's.

    An answer without its request id is the word of something in between: TransportError. A 5xx of that may pass.
    """
    from azure.core.exceptions import ServiceResponseError

    status, headers = answer.http_response.status_code, answer.http_response.headers
    if "x-ms-request-id" in headers or "x-ms-error-code" in headers:
        return
    how = "redirects, which is not followed" if 300 <= status < 400 else "is not one of the blob service"
    if status >= 500:
        raise ServiceResponseError(f"HTTP {status}, which is not the blob service's own")
    raise TransportError(
        f"{what} of {address}: the answer of {address.endpoint} {how} (HTTP {status})",
        sent=True,
        remedy="check the endpoint, and look for a proxy, a gateway or a portal to log in at in between",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The SDK's own log, which Python writes to standard error if nobody listens, says nothing to a user."""
    before = []
    nowhere = logging.NullHandler()
    for name in ("azure", "urllib3"):
        logger = logging.getLogger(name)
        before.append((logger, logger.propagate))
        logger.addHandler(nowhere)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in before:
            logger.removeHandler(nowhere)
            logger.propagate = propagate


def _sdk_credential(credential: Credential) -> Any:
    """The SDK's form of a credential; a token is fetched here, which may take a second."""
    config = credential.to_config()
    if credential.kind == "key":
        return {"account_name": credential.account, "account_key": config["proof"]["account_key"]}
    if credential.sas:
        return credential.sas.text
    if credential.kind == "token":
        return _Token(credential)
    return None


class _Token:
    """The SDK's TokenCredential over ours."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    def get_token(self, *scopes: str, **options: Any) -> Any:
        import trio
        from azure.core.credentials import AccessToken

        trio.run(self._credential.refresh)
        token = self._credential.to_config()["token"]
        return AccessToken(token["text"], int(token["expires_at"]))


def code_of(error: Any) -> str:
    """The service's error code of an SDK error, or ''."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _refusal(error: Any, address: DiskAddress, credential: Credential, what: str) -> ServiceError | TransportError:
    """What an answer of the service means that the SDK does not take."""
    response = error.response
    if response is not None and (date := response.headers.get("Date")):
        credential.clock.measure(date)
    status = error.status_code or 0
    if status < 300:
        return TransportError(f"{what} of {address}: damaged answer of {address.endpoint} (HTTP {status})", sent=True)
    return ServiceError(
        f"{what} of {address}: {code_of(error) or 'refused'} (HTTP {status})", status=status, code=code_of(error)
    )


def _lost(error: Exception, address: DiskAddress, what: str) -> TransportError:
    """From azure-core's ServiceRequestError and ServiceResponseError, which wrap urllib3's chain of causes."""
    cause: BaseException = error
    while True:
        deeper = getattr(cause, "inner_exception", None) or getattr(cause, "reason", None) or cause.__cause__
        deeper = deeper or cause.__context__
        if not isinstance(deeper, BaseException) or hasattr(deeper, "status_code"):
            break  # that is an answer to an earlier request, which was being dealt with
        cause = deeper
    why = str(cause)
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = f"its certificate is not accepted: {cause.verify_message.rstrip('.')}"
    way = f" through the proxy {address.proxy}" if address.proxy else ""
    # What is connected to is the proxy: the name that is not resolved, the port that refuses, are its own.
    by_proxy = address.proxy and isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError)
    lost = TransportError(
        f"{what} of {address}: no answer from {address.endpoint}{way} ({why})",
        sent=True,
        remedy=UNREACHED if by_proxy else None,
    )
    lost.__cause__ = cause
    return lost
