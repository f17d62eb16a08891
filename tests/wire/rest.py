"""A plain REST client for tests of the two servers: every header as the test wrote it, signed here.

It shares no code with the package's own client, so that a mistake in one shows up against the other.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import hmac
import http.client
import ssl
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

__all__ = ["VERSION", "Reply", "Rest", "md5_of"]

VERSION = "2021-12-02"


def md5_of(data: bytes) -> str:
    """The value of Content-MD5."""
    return base64.b64encode(hashlib.md5(data).digest()).decode()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """x-ms-error-code, empty if there is none."""
        return self.headers.get("x-ms-error-code", "")

    @property
    def xml(self) -> ET.Element:
        """The body."""
        return ET.fromstring(self.body)

    def page_ranges(self) -> list[tuple[int, int]]:
        """(start, end inclusive) of a page list."""
        return [(int(each.findtext("Start", "")), int(each.findtext("End", ""))) for each in self.xml.iter("PageRange")]


class Rest:
    """One keep-alive connection to one account. `auth`: "key", "none", "sas" (in the query) or "bearer TOKEN"."""

    def __init__(
        self,
        endpoint: str,
        account: str,
        key: str,
        *,
        auth: str = "key",
        ca_file: str | None = None,
        timeout_s: float = 20,
    ) -> None:
        parts = urlsplit(endpoint)
        assert parts.hostname is not None
        self.account, self._key, self._auth, self._base = account, key, auth, parts.path
        self._connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=ca_file)
            self._connection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=timeout_s, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_s)

    def __enter__(self) -> Rest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        self._connection.close()

    def send(
        self, method: str, path: str, query: str = "", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        """Send a request and do not wait. path: `container/blob`, not encoded; query as it goes on the wire."""
        sent = {"x-ms-version": VERSION, "x-ms-date": email.utils.formatdate(usegmt=True), **(headers or {})}
        if method == "PUT" and "Content-Length" not in sent:
            sent["Content-Length"] = str(len(body))
        target = self._base + ("/" + quote(path) if path else "")
        if self._auth == "key" and "Authorization" not in sent:
            sent["Authorization"] = f"SharedKey {self.account}:{self.signature(method, target, query, sent)}"
        elif self._auth.startswith("bearer "):
            sent["Authorization"] = f"Bearer {self._auth[7:]}"
        self._connection.putrequest(method, target + (f"?{query}" if query else ""), skip_accept_encoding=True)
        for name, value in sent.items():
            self._connection.putheader(name, value)
        self._connection.endheaders(body or None)

    def receive(self) -> Reply:
        """The answer to what was sent."""
        answer = self._connection.getresponse()
        body = answer.read()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)

    def __call__(
        self, method: str, path: str, query: str = "", headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Reply:
        """Send a request and wait for the answer."""
        self.send(method, path, query, headers, body)
        return self.receive()

    def create(self, path: str, size: int, **headers: str) -> Reply:
        """Put Blob: an empty page blob; a keyword `a_b` is the header `a-b`."""
        given = {"x-ms-blob-type": "PageBlob", "x-ms-blob-content-length": str(size)}
        return self("PUT", path, headers={**given, **{name.replace("_", "-"): each for name, each in headers.items()}})

    def put(self, path: str, offset: int, data: bytes, **headers: str) -> Reply:
        """Put Page, update."""
        given = {"x-ms-page-write": "update", "x-ms-range": f"bytes={offset}-{offset + len(data) - 1}"}
        more = {name.replace("_", "-"): each for name, each in headers.items()}
        return self("PUT", path, "comp=page", {**given, **more}, data)

    def clear(self, path: str, offset: int, length: int, **headers: str) -> Reply:
        """Put Page, clear."""
        given = {"x-ms-page-write": "clear", "x-ms-range": f"bytes={offset}-{offset + length - 1}"}
        more = {name.replace("_", "-"): each for name, each in headers.items()}
        return self("PUT", path, "comp=page", {**given, **more})

    def get(self, path: str, offset: int, length: int, query: str = "", **headers: str) -> Reply:
        """Get Blob, a range."""
        more = {name.replace("_", "-"): each for name, each in headers.items()}
        return self("GET", path, query, {"x-ms-range": f"bytes={offset}-{offset + length - 1}", **more})

    def lease(self, path: str, action: str, **headers: str) -> Reply:
        """Lease Blob; keywords `id`, `proposed`, `duration`, `period`."""
        names = {
            "id": "x-ms-lease-id",
            "proposed": "x-ms-proposed-lease-id",
            "duration": "x-ms-lease-duration",
            "period": "x-ms-lease-break-period",
        }
        more = {names[name]: each for name, each in headers.items()}
        return self("PUT", path, "comp=lease", {"x-ms-lease-action": action, **more})

    def signature(self, method: str, target: str, query: str, headers: Mapping[str, str]) -> str:
        """The SharedKey signature of a request; target: the path, with the account where the endpoint has it there."""
        lower = {name.lower(): value for name, value in headers.items()}
        length = lower.get("content-length", "")
        plain = ["content-encoding", "content-language", "", "content-md5", "content-type", ""]
        plain += ["if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"]
        lines = [method, *(lower.get(name, "") for name in plain)]
        lines[3] = "" if length == "0" else length
        lines += [f"{name}:{value}" for name, value in sorted(lower.items()) if name.startswith("x-ms-")]
        lines.append(f"/{self.account}{target}")
        pairs = (piece.partition("=") for piece in query.split("&") if piece)
        lines += [f"{name.lower()}:{unquote(value)}" for name, _, value in sorted(pairs)]
        digest = hmac.digest(base64.b64decode(self._key), "\n".join(lines).encode(), "sha256")
        return base64.b64encode(digest).decode()
