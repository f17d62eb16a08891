"""A parsed request: whose account, which container and blob, which query, and typed access to headers."""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_plus

from .answers import Refusal
from .http import Headers

__all__ = ["Request", "Target", "parse_range", "parse_target"]

MAX_METADATA = 8 << 10  # bytes of all names and values
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")
_CACHE_SIZE = 4096


class Target:
    """What a request line and Host name; the same for every data request to one blob, hence cached."""

    __slots__ = ("account", "blob", "container", "key", "level", "path", "path_style", "query", "resource", "secondary")

    def __init__(
        self, account: str, path: str, container: str, blob: str, query: dict[str, str], path_style: bool
    ) -> None:
        self.secondary = account.endswith("-secondary")  # of the same account, read only
        self.account = account = account.removesuffix("-secondary")
        self.path_style = path_style  # the account is the first word of the path, not of the host
        self.path = path  # as sent, still percent-encoded
        self.container = container
        self.blob = blob
        self.query = query  # names in lower case, values decoded
        self.level = "blob" if blob else "container" if container else "service"
        self.key = f"{account}/{container}/{blob}"
        words = [f"\n{name}:{query[name]}" for name in sorted(query)]
        self.resource = f"/{account}{path}{''.join(words)}".encode()  # CanonicalizedResource of SharedKey


_targets: dict[tuple[str, str], Target] = {}


def parse_target(raw: str, host_account: str) -> Target:
    """Split a request target. `host_account`: the account named by the Host header, or empty: then the path has it."""
    cached = _targets.get((raw, host_account))
    if cached is not None:
        return cached
    path, _, query_text = raw.partition("?")
    query: dict[str, str] = {}
    for piece in filter(None, query_text.split("&")):
        name, _, value = piece.partition("=")
        # A SAS carries '+' and '/' of its base64 signature percent-encoded; a bare '+' is a space only in names.
        query[unquote_plus(name).lower()] = unquote(value)
    rest = path[1:]
    account = host_account
    if not account:
        account, _, rest = rest.partition("/")
    container, _, blob = rest.partition("/")
    path_style = not host_account
    target = Target(unquote(account), path, unquote(container), unquote(blob), query, path_style)
    if container and not blob and "restype" not in query:
        target = Target(
            unquote(account), path, "$root", target.container, query, path_style
        )  # a blob of the root container
    if len(_targets) >= _CACHE_SIZE:
        _targets.clear()
    _targets[raw, host_account] = target
    return target


def parse_range(text: str) -> tuple[int, int | None]:
    """(first, last) of `bytes=FIRST-LAST`; last None means to the end. Refusal if it is malformed."""
    match = _RANGE.match(text)
    if match is None:
        raise Refusal("InvalidHeaderValue")
    return int(match[1]), int(match[2]) if match[2] else None


class Request:
    """One request; header names are lower-case bytes, values bytes, as the parser gives them."""

    __slots__ = ("body", "client_ip", "headers", "keep_alive", "method", "secure", "target")

    def __init__(
        self, method: str, target: Target, headers: Headers, body: bytes, client_ip: str, secure: bool
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.client_ip = client_ip
        self.secure = secure
        self.keep_alive = True

    def header(self, name: bytes) -> str | None:
        """The header's text, or None if it was not sent or is empty."""
        value = self.headers.get(name)
        return value.decode("latin-1").strip() if value else None

    def integer(self, name: bytes, low: int = 0, high: int = (1 << 63) - 1) -> int | None:
        """A whole number inside [low, high], None if it was not sent; Refusal InvalidHeaderValue otherwise."""
        text = self.header(name)
        if text is None:
            return None
        try:
            value = int(text)
        except ValueError:
            raise Refusal("InvalidHeaderValue") from None
        if not low <= value <= high:
            raise Refusal("OutOfRangeInput" if value > high else "InvalidHeaderValue")
        return value

    def required(self, name: bytes) -> str:
        """A header that the operation cannot do without."""
        text = self.header(name)
        if text is None:
            raise Refusal("MissingRequiredHeader")
        return text

    def range(self) -> tuple[int, int | None] | None:
        """(first, last) of x-ms-range, else Range; last None means to the end; None: no range asked for."""
        text = self.header(b"x-ms-range") or self.header(b"range")
        if text is None:
            return None
        if _RANGE.match(text) is None and b"x-ms-range" not in self.headers:
            return None  # HTTP says to ignore a Range that is not understood
        return parse_range(text)

    def metadata(self) -> dict[str, str]:
        """x-ms-meta-* without the prefix: names as they were spelled, values as they came.

        Source of the rules: https://learn.microsoft.com/rest/api/storageservices/ (naming and referencing metadata)
        """
        found = {}
        size = 0
        for name, spelled in self.headers.spelled.items():
            word = spelled[10:].decode("latin-1")
            if not word:
                raise Refusal("EmptyMetadataKey")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", word):
                raise Refusal("InvalidMetadata")
            value = self.headers[name].strip(b" \t")
            size += len(word) + len(value)
            found[word] = value.decode("latin-1")
        if self.headers.repeated:
            raise Refusal("InvalidMetadata", "Two names of metadata differ in case at most.")
        if size > MAX_METADATA:
            raise Refusal("MetadataTooLarge")
        return found
