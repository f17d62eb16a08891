"""What a user names: a disk's address, sizes, durations. Text becomes frozen dataclasses here, checked once.

DISK is `ACCOUNT/CONTAINER/BLOB` (blob names may hold slashes) or the blob's URL; both take `?snapshot=TIME`, and
the URL takes a SAS. The SAS never appears in `repr` or `str`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.proxies import Proxy

__all__ = [
    "DEFAULT_REALM",
    "MAX_SIZE",
    "DiskAddress",
    "Endpoint",
    "check_snapshot",
    "format_size",
    "names_disk",
    "parse_duration",
    "parse_size",
]

DEFAULT_REALM = "core.windows.net"
MAX_SIZE = 8 << 40  # bytes; a page blob's limit
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}\Z")
_CONTAINER = re.compile(r"(?:\$root|\$logs|[a-z0-9](?:-?[a-z0-9])*)\Z")
_SNAPSHOT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,7})?Z\Z", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTPE]?)(i?B?)\Z", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d)?\Z", re.ASCII)
_NAME = r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*"
_REALM = re.compile(rf"{_NAME}\Z")
_AUTHORITY = re.compile(rf"(?:{_NAME}|\[[0-9a-f:.%]+\])(?::[0-9]{{1,5}})?\Z", re.IGNORECASE | re.ASCII)
_ENDPOINT_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*\Z")
_MOST_DIGITS = 64  # of a size
_MOST_SHOWN = 80  # characters of what was typed in a message
_DURATION_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SECONDARY = "-secondary"  # behind the account in the secondary's name
_ADDRESS_HELP = "write it as ACCOUNT/CONTAINER/BLOB or as the blob's URL"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an account's blob service listens.

    path: empty for `https://ACCOUNT.blob.core.windows.net`, `/ACCOUNT` for an emulator that takes the account
    from the path (Azurite: `http://127.0.0.1:10000/devstoreaccount1`).
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str = ""

    @classmethod
    def parse(cls, text: str, account: str | None = None) -> Endpoint:
        """Read an endpoint URL. With `account`, an IP address or localhost without a path gets `/account` added."""
        what = f"endpoint {text[:_MOST_SHOWN]!r}"
        if any(mark in text for mark in "?#@"):
            raise UsageError(
                "an endpoint takes no query, fragment or user", remedy="a SAS goes into the credential file"
            )
        parts, host, port = _split_url(text if "://" in text else f"https://{text}", what, "write https://HOST[:PORT]")
        scheme: Literal["http", "https"] = "https" if parts.scheme == "https" else "http"
        path = parts.path.rstrip("/")
        if not _ENDPOINT_PATH.match(path):
            raise UsageError(f"{what} has a path that is no account's", remedy="write https://HOST[:PORT][/ACCOUNT]")
        if not path and account and _takes_account_in_path(host):
            path = f"/{account}"
        return cls(scheme, host, port or (443 if scheme == "https" else 80), path)

    @classmethod
    def of_account(cls, account: str, realm: str = DEFAULT_REALM) -> Endpoint:
        """The public endpoint of an account; realm is the cloud's suffix (core.windows.net, core.chinacloudapi.cn)."""
        if not _REALM.match(realm):
            raise UsageError(
                f"realm {realm[:_MOST_SHOWN]!r} is not the end of a host's name",
                remedy=f"write for example {DEFAULT_REALM}",
            )
        return cls("https", f"{account}.blob.{realm}", 443)

    def is_secondary_of(self, account: str) -> bool:
        """Whether it is the copy in another region of an account that has one to read (RA-GRS, RA-GZRS)."""
        return account + _SECONDARY in (self.host.partition(".")[0], self.path.removeprefix("/"))

    @property
    def is_loopback(self) -> bool:
        """Whether plain HTTP is safe: the bytes do not leave this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def has_default_port(self) -> bool:
        """Whether the port is the one of its scheme."""
        return self.port == (443 if self.scheme == "https" else 80)

    @property
    def authority(self) -> str:
        """`host` or `host:port`, as the Host header wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.has_default_port else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


@dataclass(frozen=True, slots=True)
class DiskAddress:
    """A page blob, or a snapshot of one, as the user named it.

    endpoint: None when the short form was used; `azure/credential/resolve.py` then decides it.
    proxy: the way to the endpoint, which `resolve` finds as well; None for a direct one.
    sas, account_key: a credential given with the address, in memory only; `resolve` takes them out. No text form has
    an account_key. given_by: for messages, where a credential came from that is not in the disk's own text.
    """

    account: str
    container: str
    blob: str
    snapshot: str | None = None
    endpoint: Endpoint | None = None
    sas: str | None = field(default=None, repr=False)
    account_key: str | None = field(default=None, repr=False)
    proxy: Proxy | None = None
    given_by: str = field(default="", compare=False)

    @classmethod
    def parse(cls, text: str, *, what: str = "") -> DiskAddress:
        """Read the short form or a URL; raises UsageError that says what is wrong with it.

        what: how to name the whole of it there, if not as the disk that it says.
        """
        if "://" in text:
            return cls._from_url(text, what)
        path, _, query = text.partition("?")
        snapshot, sas = _split_query(query)
        if sas:
            raise UsageError("a SAS needs the URL form of the disk", remedy="write https://ACCOUNT.blob...?SAS")
        pieces = path.split("/", 2)
        if len(pieces) != 3:
            raise UsageError(f"{what or f'disk {path!r}'} is not complete", remedy=_ADDRESS_HELP)
        return cls._checked(pieces[0], pieces[1], pieces[2], snapshot, None, None)

    @classmethod
    def _from_url(cls, text: str, what: str) -> DiskAddress:
        base, _, query = text.partition("?")
        what = what or f"disk {base!r}"
        if "#" in base:
            raise UsageError(f"{what} has a '#', which is no part of a URL's path", remedy="write it as %23")
        if "@" in base.partition("://")[2].partition("/")[0]:
            raise UsageError("a disk's URL takes no user", remedy="a credential goes into the credential file")
        parts, host, _ = _split_url(base, what, _ADDRESS_HELP)
        snapshot, sas = _split_query(query)
        try:
            path = unquote(parts.path, errors="strict").lstrip("/")
        except UnicodeDecodeError:
            raise UsageError(f"{what} has bytes in it that are not UTF-8", remedy="copy it again") from None
        if _takes_account_in_path(host):
            account, _, path = path.partition("/")
            endpoint = Endpoint.parse(f"{parts.scheme}://{parts.netloc}/{account}")
        else:
            account = host.partition(".")[0]
            endpoint = Endpoint.parse(f"{parts.scheme}://{parts.netloc}")
        container, _, blob = path.partition("/")
        account = account.removesuffix(_SECONDARY)
        return cls._checked(account, container, blob, snapshot, endpoint, sas)

    @classmethod
    def _checked(
        cls,
        account: str,
        container: str,
        blob: str,
        snapshot: str | None,
        endpoint: Endpoint | None,
        sas: str | None,
    ) -> DiskAddress:
        if not _ACCOUNT.match(account):
            raise UsageError(f"account {account!r} is not 3 to 24 lower-case letters and digits", remedy=_ADDRESS_HELP)
        if not 3 <= len(container) <= 63 or not _CONTAINER.match(container):
            raise UsageError(
                f"container {container!r} is not 3 to 63 lower-case letters, digits and single dashes",
                remedy=_ADDRESS_HELP,
            )
        if not blob.isascii() and any(0xD800 <= ord(c) < 0xE000 for c in blob):
            raise UsageError("the blob's name is not UTF-8", remedy="check the terminal's encoding: locale")
        if any(part in (".", "..") for part in blob.split("/")):
            raise UsageError(
                f"blob name {blob!r} has '.' or '..' between slashes", remedy="URLs cannot hold such a name"
            )
        if not 1 <= len(blob) <= 1024 or any(ord(c) < 32 for c in blob) or blob.endswith(("/", ".")):
            raise UsageError(
                f"blob name {blob!r} is not 1 to 1024 printable characters that end in neither '/' nor '.'",
                remedy=_ADDRESS_HELP,
            )
        check_snapshot(snapshot)
        return cls(account, container, blob, snapshot, endpoint, sas)

    @property
    def is_secondary(self) -> bool:
        """Whether it is named at the account's secondary endpoint, where it can only be read."""
        return self.endpoint is not None and self.endpoint.is_secondary_of(self.account)

    def refuse_secondary(self, remedy: str) -> None:
        """Raise UsageError if it is named where it can only be read. remedy: what else there is than the primary."""
        if self.is_secondary:
            raise UsageError(
                f"{self.endpoint} is the secondary of account {self.account}, which can only be read",
                remedy=f"name the disk at the primary{remedy}",
            )

    @property
    def key(self) -> str:
        """The identity used to tell whether a disk is attached already: no SAS, no endpoint."""
        return str(self)

    @property
    def path(self) -> str:
        """`/container/blob`, percent-encoded for a request line."""
        return f"/{self.container}/{quote(self.blob, safe='/~')}"

    def __str__(self) -> str:
        tail = f"?snapshot={self.snapshot}" if self.snapshot else ""
        return f"{self.account}/{self.container}/{self.blob}{tail}"


def parse_size(text: str, what: str = "size", *, unit_meant: str = "GiB") -> int:
    """Read `32GiB`, `32G`, `512`, `1.5TiB` as bytes. K, M, G, T and KiB... are powers of 1024, KB, MB... of 1000.

    Raises UsageError unless the result is a positive multiple of 512 bytes, at most 8 TiB. unit_meant: what to ask for
    where a number alone can be no size.
    """
    match = _SIZE.match(text.strip())
    if not match:
        raise UsageError(
            f"{what} {text!r} is not a number with a unit", remedy="write for example 512MiB, 32GiB or 2TiB"
        )
    number, prefix, unit = match.groups()
    base = 1000 if unit.upper() == "B" and prefix else 1024
    exact = Fraction(number) * base ** " KMGTPE".index(prefix.upper() or " ") if len(number) <= _MOST_DIGITS else None
    shown = repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}...")
    if exact is not None and exact <= 0:
        raise UsageError(f"{what} is zero", remedy="a disk has at least 512 bytes")
    if exact is None or exact > MAX_SIZE:
        raise UsageError(f"{what} {shown} is above 8 TiB", remedy="8TiB is the most that a page blob holds")
    if exact % 512:
        remedy = "a page blob has 512-byte pages"
        if not prefix and not unit:
            remedy = f"a number alone is bytes: do you mean {number}{unit_meant}?"
        raise UsageError(f"{what} {shown} is not a multiple of 512 bytes", remedy=remedy)
    return int(exact)


def format_size(size: int) -> str:
    """`34359738368` -> `32GiB`; a size that the largest unit does not divide is rounded to one decimal of it."""
    for exponent, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**exponent:
            return f"{size / 1024**exponent:.1f}".removesuffix(".0") + unit
    return f"{size}B"


def names_disk(text: str) -> bool:
    """Whether it is a disk that is named, not an attachment of this machine: by its name, without /, or its device."""
    return "/" in text and not text.startswith("/")


def check_snapshot(time: str | None) -> None:
    """Raise UsageError unless it is the time of a snapshot as the service writes it, or None."""
    if time is not None and not _SNAPSHOT.match(time):
        raise UsageError(
            f"snapshot {time!r} is not a snapshot's time", remedy="copy it whole: 2026-01-31T12:00:00.0000000Z"
        )


def parse_duration(text: str, what: str = "duration") -> float | None:
    """Read `300`, `5m`, `90s` as seconds; `never` and `infinite` as None."""
    if text.strip().lower() in ("never", "infinite"):
        return None
    match = _DURATION.match(text.strip())
    if not match:
        raise UsageError(f"{what} {text!r} is not a time", remedy="write seconds, or for example 30s, 5m, 1h, never")
    return float(match[1]) * _DURATION_UNIT[match[2] or "s"]


def _split_url(text: str, what: str, remedy: str) -> tuple[SplitResult, str, int | None]:
    """The parts of a URL, its host in lower case, and its port if it has one. what: its name for a UsageError."""
    # urlsplit drops control characters, and blanks in front, in silence: the rest would be the name of another blob.
    odd = next((c for c in text if c.isspace() or not c.isprintable()), None)
    if odd:
        kind, do = ("a blank", "write it as %20") if odd == " " else ("a control character", remedy)
        raise UsageError(f"{what} has {kind} in it", remedy=do)
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets, or characters that become others in a host's name
        raise UsageError(f"{what} is not a URL", remedy=remedy) from None
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{what} is not an http or https URL", remedy=remedy)
    if not _AUTHORITY.match(parts.netloc):
        raise UsageError(f"{what} has no host's name with a port from 1 to 65535 behind it", remedy=remedy)
    try:
        host, port = parts.hostname or "", parts.port
        if ":" in host:
            ipaddress.IPv6Address(host)
    except ValueError as error:
        raise UsageError(f"{what}: {error}", remedy=f"{remedy}; a port is between 1 and 65535") from None
    if port == 0:
        raise UsageError(f"{what}: nothing listens on port 0", remedy="give a port between 1 and 65535")
    return parts, host, port


def _takes_account_in_path(host: str) -> bool:
    """Emulators listen on an address or a name without a dot, and take the account from the path."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return True


def _split_query(query: str) -> tuple[str | None, str | None]:
    """Separate `snapshot=` from the rest, which is the SAS; the SAS keeps its exact text, encoding included."""
    snapshot = None
    rest = []
    for piece in filter(None, query.split("&")):
        name, _, _ = piece.partition("=")
        if name == "snapshot":
            if snapshot:
                raise UsageError("more than one snapshot= behind the '?'", remedy="name one snapshot")
            snapshot = dict(parse_qsl(piece)).get("snapshot")
            if not snapshot:
                raise UsageError("snapshot= has no time", remedy="write ?snapshot=2026-01-31T12:00:00.0000000Z")
        else:
            rest.append(piece)
    if rest and not any(piece.startswith("sig=") for piece in rest):
        raise UsageError(f"unknown word {rest[0].partition('=')[0]!r} behind the '?'", remedy="a SAS has sig= in it")
    return snapshot, "&".join(rest) or None
