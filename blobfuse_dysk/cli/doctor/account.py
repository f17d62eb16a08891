"""Checks of an account, a container or a disk, in the order in which they build on each other."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime

from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential.resolve import Credential, resolve
from blobfuse_dysk.azure.explain import explain, leased, leased_by
from blobfuse_dysk.azure.tls import tls_context, untrusted
from blobfuse_dysk.cli.doctor.content import content
from blobfuse_dysk.cli.doctor.findings import Finding, fail, ok, warn
from blobfuse_dysk.cli.output import size_text
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.disks.look import blob_properties
from blobfuse_dysk.errors import CredentialError, DyskError, NotFoundError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.proxies import Proxy
from blobfuse_dysk.store.open import check_blob
from blobfuse_dysk.timestamp import utc_text

__all__ = ["account_checks", "parse_target"]

_TIMEOUT_S = 10.0
_SKEW_S = 300.0  # from here on the service's clock is followed; it refuses signatures that are 15 minutes off
_SOON_S = 7 * 86400.0
_NO_BLOB = "any"  # stands for the blob where only an account or a container was named
_PROBE_SIZE = 512  # bytes; the smallest page blob


def parse_target(text: str) -> tuple[DiskAddress, int]:
    """Read ACCOUNT, ACCOUNT/CONTAINER or a DISK; returns the address and how many of its three parts were given."""
    if "://" in text:
        return DiskAddress.parse(text), 3
    pieces = text.rstrip("/").split("/", 2)
    full = [*pieces, *("any", _NO_BLOB)[len(pieces) - 1 :]] if len(pieces) < 3 else pieces
    return DiskAddress.parse("/".join(full)), len(pieces)


def account_checks(target: str, options: AttachOptions, *, write_test: bool) -> Iterator[Finding]:
    """Run the checks; ends early where the next ones make no sense."""
    disk, parts = parse_target(target)
    try:
        address, credential = resolve(disk, options)
    except DyskError as error:
        yield fail("credential", str(error), error.remedy or "see CREDENTIALS in dyskctl(8)")
        return
    assert address.endpoint is not None
    if address.proxy:
        yield ok("proxy", f"{address.proxy}, named by {address.proxy.source}; it resolves the endpoint's name")
    else:
        yield ok("proxy", "none, the way is direct")
    for check in (_credential, _tcp, _tls) if address.proxy else (_credential, _dns, _tcp, _tls):
        finding = check(address.endpoint, credential, address.proxy)
        yield finding
        if finding.level == "fail":
            return
    yield _clock(address.endpoint, credential, address.proxy)
    name, look = _ACCESS[parts]
    try:
        yield look(address, credential)
        if parts == 3:
            yield content(address, credential)
    except CredentialError as error:
        yield _failed(name, error)
        return
    except DyskError as error:
        yield _failed(name, error)
    yield _rights(credential)
    if write_test and parts >= 2:
        yield _write_test(address, credential)


def _credential(endpoint: Endpoint, credential: Credential, proxy: Proxy | None = None) -> Finding:
    expires_at = credential.expires_at
    if expires_at is None:
        return ok("credential", credential.describe())
    moment = utc_text(expires_at)
    left_s = expires_at - time.time()
    if left_s <= 0:
        return fail("credential", f"{credential.describe()}, expired at {moment}", "make a new one")
    if left_s < _SOON_S:
        return warn("credential", f"{credential.describe()}, ends at {moment}", "have the next one ready")
    return ok("credential", f"{credential.describe()}, valid until {moment}")


def _dns(endpoint: Endpoint, credential: Credential, proxy: Proxy | None = None) -> Finding:
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        return fail(
            "name service", f"{endpoint.host}: {error.strerror}", "check the account's name and /etc/resolv.conf"
        )
    addresses = sorted({str(entry[4][0]) for entry in found})
    return ok("name service", f"{endpoint.host} is {', '.join(addresses)}")


def _tcp(endpoint: Endpoint, credential: Credential, proxy: Proxy | None = None) -> Finding:
    start = time.monotonic()
    try:
        _dial(endpoint, proxy).close()
    except OSError as error:
        way = f" through {proxy}" if proxy else ""
        what = f"{endpoint.authority} cannot be reached{way}: {error.strerror or error}"
        if proxy:
            return fail("connection", what, "check the proxy, and what it allows; proxy=none goes without it")
        local = "is Azurite running there?" if endpoint.is_loopback else "check the network, and the account's firewall"
        return fail("connection", what, local)
    return ok("connection", f"{endpoint.authority} answers in {(time.monotonic() - start) * 1000:.0f} ms")


def _tls(endpoint: Endpoint, credential: Credential, proxy: Proxy | None = None) -> Finding:
    if endpoint.scheme == "http":
        if endpoint.is_loopback:
            return ok("TLS", "none, on this machine itself")
        return warn("TLS", "none: others on the way can read and change everything", "use an https endpoint")
    try:
        with (
            _dial(endpoint, proxy) as plain,
            tls_context(credential.ca_file).wrap_socket(plain, server_hostname=endpoint.host) as wrapped,
        ):
            version = wrapped.version()
    except CredentialError as error:
        return _failed("TLS", error)
    except ssl.SSLCertVerificationError as error:
        return fail("TLS", f"the certificate is not trusted: {error.verify_message.rstrip('.')}", untrusted(error))
    except OSError as error:
        remedy = "check the endpoint's scheme and port; look for a proxy or firewall in between"
        return fail("TLS", f"no handshake: {error.strerror or error}", remedy)
    return ok("TLS", f"{version}, the certificate is good")


def _dial(endpoint: Endpoint, proxy: Proxy | None) -> socket.socket:
    """Connect. Raises OSError, which says what a proxy says."""
    if proxy is None:
        return socket.create_connection((endpoint.host, endpoint.port), _TIMEOUT_S)
    import http.client

    connection = http.client.HTTPConnection(proxy.host, proxy.port, timeout=_TIMEOUT_S)
    connection.set_tunnel(endpoint.host, endpoint.port, proxy.headers)
    try:
        connection.connect()
    except http.client.HTTPException as error:
        raise OSError(f"the proxy does not speak HTTP ({error})") from None
    return connection.sock


def _clock(endpoint: Endpoint, credential: Credential, proxy: Proxy | None = None) -> Finding:
    """Compare clocks by the Date of an answer, for which no credential is needed."""
    import http.client

    host, port = (proxy.host, proxy.port) if proxy else (endpoint.host, endpoint.port)
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    if endpoint.scheme == "https":
        connection = http.client.HTTPSConnection(
            host, port, timeout=_TIMEOUT_S, context=tls_context(credential.ca_file)
        )
    if proxy:
        connection.set_tunnel(endpoint.host, endpoint.port, proxy.headers)
    try:
        connection.request("GET", f"{endpoint.path}/?comp=list")
        date = connection.getresponse().getheader("Date")
    except (OSError, http.client.HTTPException) as error:
        return warn("clock", f"the service did not tell its time: {error}", "look at the other findings")
    finally:
        connection.close()
    if not date:
        return warn("clock", "the service did not tell its time", "look at the other findings")
    skew_s = time.time() - parsedate_to_datetime(date).timestamp()
    if abs(skew_s) > _SKEW_S:
        direction = "ahead of" if skew_s > 0 else "behind"
        what = f"{abs(skew_s):.0f} s {direction} the service's, whose clock is followed where it refuses this one's"
        return warn("clock", what, "set the clock: timedatectl set-ntp true")
    return ok("clock", "agrees with the service's")


def _account(address: DiskAddress, credential: Credential) -> Finding:
    """The account takes the credential. Raises DyskError if not, as the next two do."""
    if credential.kind != "key":
        what = f"not tried: the {credential.describe()} may be for one container, or one disk"
        return warn("account", what, f"name it: dyskctl doctor {address.account}/CONTAINER[/DISK]")
    with contextlib.suppress(NotFoundError):  # which the service says to those that it knows
        blob_properties(address, credential)
    return ok("account", f"{address.account} takes the {credential.describe()}")


def _blob(address: DiskAddress, credential: Credential) -> Finding:
    """The disk is a page blob that can be read, and who has it."""
    found = blob_properties(address, credential)
    check_blob(found, address)
    what = f"{address}, {size_text(found.size)}"
    if found.lease_state not in ("leased", "breaking"):
        return ok("disk", f"{what}, not leased")
    if here := _attached_here(address):
        return ok("disk", f"{what}, attached here as {here}")
    holder = leased(address, found.metadata, found.lease_state)
    ends = ", which is being broken" if found.lease_state == "breaking" else ""
    return warn("disk", f"{what}, {leased_by(holder.holder, holder.since)}{ends}", holder.remedy or "")


def _attached_here(address: DiskAddress) -> str | None:
    """The device, if the disk is attached on this machine for writing."""
    from blobfuse_dysk.attachment import attachments

    try:
        return next((each.device for each in attachments() if each.disk == address.key and each.lease), None)
    except PermissionError:
        return None


def _failed(check: str, error: DyskError) -> Finding:
    return fail(check, str(error), error.remedy or "check the names, and the credential's rights")


def _container(address: DiskAddress, credential: Credential) -> Finding:
    """The container is there, and can be listed if the credential is for that."""
    from blobfuse_dysk.azure import management

    name = f"{address.account}/{address.container}"
    if credential.sas and credential.sas.resource == "b":
        return warn("container", "not tried: the SAS is for one blob", f"name the disk: dyskctl doctor {name}/DISK")
    if credential.sas and not credential.sas.has("l"):
        return _container_unlisted(address, credential)
    rows = management.list_disks(address, credential)
    return ok("container", f"{name} can be listed; page blobs: {len(rows)}")


def _container_unlisted(address: DiskAddress, credential: Credential) -> Finding:
    """The same by asking for a blob that is not there: attaching needs no right to list."""
    assert credential.sas
    try:
        blob_properties(address, credential)
    except NotFoundError as error:
        if error.missing != "disk":
            raise
    what = f"{address.account}/{address.container} is there; no list --remote with sp={credential.sas.rights}"
    return ok("container", what)


def _rights(credential: Credential) -> Finding:
    """What the credential may do, as far as can be told without trying. Leases need the right to write.

    Source: https://learn.microsoft.com/rest/api/storageservices/create-service-sas, "Permissions for a blob".
    """
    if credential.kind == "key":
        return ok("rights", "all, as with every account key")
    sas = credential.sas
    if sas is None:
        return warn("rights", "not known without trying", "add --write-test, which makes and deletes a small blob")
    if not sas.rights:
        return warn(
            "rights", "a stored access policy has them", "add --write-test, which makes and deletes a small blob"
        )
    if not sas.has("r"):
        return fail("rights", f"sp={sas.rights}: no right to read", "make a SAS with sp=rw, or sp=r for read-only")
    if not sas.has("w"):
        return warn(
            "rights", f"sp={sas.rights}: read only, no leases", "attach with --read-only, or make one with sp=rw"
        )
    return ok("rights", f"sp={sas.rights}: read, write and lease")


def _write_test(address: DiskAddress, credential: Credential) -> Finding:
    """Make a page blob of 512 bytes, lease it, write to it, release it, delete it."""
    from blobfuse_dysk.azure import management

    probe = replace(address, blob=f"dyskctl-doctor-{uuid.uuid4().hex}", snapshot=None)
    try:
        management.create_disk(probe, credential, _PROBE_SIZE, create_container=False)
    except DyskError as error:
        return _failed("write test", error)
    try:
        _lease_and_write(probe, credential)
    except DyskError as error:
        return _failed("write test", explain(error, probe, credential))
    finally:
        left = _delete(probe, credential)
    if left:
        return warn("write test", f"{probe} was written but cannot be deleted: {left}", "delete it by hand")
    return ok("write test", "made, leased, wrote and deleted a page blob")


def _lease_and_write(probe: DiskAddress, credential: Credential) -> None:
    import trio

    async def run() -> None:
        async with BlobClient(probe, credential) as client:
            lease_id = await client.acquire_lease(15, proposed_id=None, timeout_s=_TIMEOUT_S)
            try:
                raised = await client.raise_sequence_number(1, lease_id=lease_id, timeout_s=_TIMEOUT_S)
                data = bytes(_PROBE_SIZE)
                await client.put_pages(0, data, lease_id=lease_id, epoch=raised.number, timeout_s=_TIMEOUT_S)
            except BaseException:
                with contextlib.suppress(DyskError):  # the first error is the one to report
                    await client.release_lease(lease_id, timeout_s=_TIMEOUT_S)
                raise
            await client.release_lease(lease_id, timeout_s=_TIMEOUT_S)

    trio.run(run)


def _delete(probe: DiskAddress, credential: Credential) -> str | None:
    """None when it is deleted, else why it is not."""
    from blobfuse_dysk.azure import deletion

    try:
        deletion.delete_disk(probe, credential, break_lease=True)
    except DyskError as error:
        return str(error)
    return None


_ACCESS = {1: ("account", _account), 2: ("container", _container), 3: ("disk", _blob)}  # by the parts that were named
