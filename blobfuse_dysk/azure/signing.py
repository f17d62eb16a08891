"""How requests prove who sends them: SharedKey, SAS, bearer token, or not at all. Without any I/O.

A signer is immutable but for caches; a renewed credential makes a new one. Their repr never shows the secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from blobfuse_dysk.azure.wire import Request
from blobfuse_dysk.errors import CredentialError

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = [
    "AnonymousSigner",
    "BearerSigner",
    "DatedSigner",
    "Means",
    "SasSigner",
    "ServiceClock",
    "SharedKeySigner",
    "Signer",
    "http_date",
    "parse_http_date",
]

log = logging.getLogger(__name__)

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT")
_TOLERATED_S = 120.0  # the service refuses dates 15 minutes off; a smaller difference is left alone
_APART_S = 60.0  # offsets that are closer are the same one, measured twice
_MOST_OFF_S = 10 * 365 * 86400.0  # a machine without a battery may be years behind; beyond, it is no clock


def http_date(seconds: float) -> str:
    """Format as `Mon, 05 Jan 2026 10:20:30 GMT`, whatever the locale. seconds: since the epoch."""
    t = time.gmtime(seconds)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year}"
        f" {t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT"
    )


def parse_http_date(text: str) -> float | None:
    """Seconds since the epoch of an RFC 9110 date in its fixed form, or None if it is anything else."""
    found = _DATE.fullmatch(text)
    if found is None:
        return None
    day, month, year, hour, minute, second = found.groups()
    try:
        moment = datetime(
            int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second), tzinfo=UTC
        )
    except ValueError:
        return None
    return moment.timestamp()


class ServiceClock:
    """The service's time, as its answers tell it, and what requests are dated by.

    They are dated by the local clock while the service takes that. A Date alone changes nothing: a proxy may have put
    its own onto the answer. A request that may have been refused for its date is tried with `others`, and what the
    service took then is followed from now on.
    """

    def __init__(self) -> None:
        self.offset_s = 0.0
        """Seconds added to the local clock when signing."""
        self.measured_s: float | None = None
        """The latest difference seen, service minus local, in seconds (whole ones: that is how fine Date is)."""
        self.disproved = False
        """Whether the service lately refused requests that were dated by it as well."""
        self._second = -1
        self._date = ""

    def measure(self, date: str) -> None:
        """Take the difference from an answer's Date header. One that no clock has is left out."""
        service = parse_http_date(date)
        if service is None or abs(service - time.time()) > _MOST_OFF_S:
            return
        self.measured_s = service - time.time()

    def others(self, offset_s: float) -> list[float]:
        """What else may be added to the local clock, after a request was refused that was dated with offset_s."""
        found: list[float] = []
        for other in (self.offset_s, 0.0, self._beyond_s):
            if all(abs(other - known) > _APART_S for known in (offset_s, *found)):
                found.append(other)
        return found

    def follow(self, offset_s: float) -> None:
        """Date requests so from now on: the service took one."""
        if offset_s and not self.offset_s:
            log.warning(
                "this machine's clock is %.0f s %s the service's; requests are dated by the service's clock. "
                "Set the clock (timedatectl set-ntp true)",
                abs(offset_s),
                "behind" if offset_s > 0 else "ahead of",
            )
        self.offset_s = offset_s
        self.disproved = False

    def now(self) -> float:
        """Seconds since the epoch by the service's clock, or by ours while the two differ by less than two minutes."""
        return time.time() + (self.offset_s or self._beyond_s)

    def date(self) -> str:
        """What a request is dated with, as an HTTP date, formatted once a second."""
        second = int(time.time() + self.offset_s)
        if second != self._second:
            self._date = http_date(second)
            self._second = second
        return self._date

    @property
    def _beyond_s(self) -> float:
        """The measured difference, if it is more than what is tolerated."""
        return self.measured_s if self.measured_s is not None and abs(self.measured_s) > _TOLERATED_S else 0.0


class Means(NamedTuple):
    """What a signer signs with, for native/heads.c, which does the same; secrets are in it.

    account: for the canonicalised resource. authorization: the header's value, up to where a signature goes. sas: to
    be appended to each query. clock: what requests are dated by, None if they are not. inner, outer: HMAC's hashes,
    with the pads in them; None if nothing is signed.
    """

    account: str = ""
    authorization: str = ""
    sas: str = ""
    clock: ServiceClock | None = None
    inner: _Hash | None = None
    outer: _Hash | None = None

    def __repr__(self) -> str:
        return f"<Means {self.account}>"


class Signer(Protocol):
    """Makes a request's head: request line, headers, proof of identity, empty line."""

    def head(self, request: Request) -> bytes:
        """Return the head as it goes onto the wire, signed for now."""
        ...

    def means(self) -> Means | None:
        """What it signs with; None if it has to be asked each time."""
        ...


class DatedSigner:
    """Signs as another one does, with dates that are offset_s off the local clock."""

    def __init__(self, signer: Signer, clock: ServiceClock, offset_s: float) -> None:
        self._signer = signer
        self._clock = clock
        self._offset_s = offset_s

    def head(self, request: Request) -> bytes:
        """See Signer. Nothing awaits meanwhile, so no other request is dated so."""
        before, self._clock.offset_s = self._clock.offset_s, self._offset_s
        try:
            return self._signer.head(request)
        finally:
            self._clock.offset_s = before

    def means(self) -> None:
        """See Signer: it is for one request."""


class SharedKeySigner:
    """Authorization: SharedKey, for the blob service from version 2015-02-21 on.

    Source: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key
    """

    def __init__(self, account: str, key: str, clock: ServiceClock | None = None) -> None:
        """key: base64 as the portal shows it; raises CredentialError if it is not."""
        try:
            secret = base64.b64decode(key, validate=True)
        except (ValueError, binascii.Error):
            secret = b""
        if not secret:
            raise CredentialError("the account key is not base64", remedy="copy it again, all 88 characters of it")
        if len(secret) > 64:
            secret = hashlib.sha256(secret).digest()
        padded = secret.ljust(64, b"\0")
        # HMAC with both pads hashed beforehand: half the time of hmac.digest for texts of this length.
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))
        self._account = account
        self._clock = clock or ServiceClock()

    def head(self, request: Request) -> bytes:
        """See Signer."""
        date = self._clock.date()
        return request.head(f"SharedKey {self._account}:{self.signature(request, date)}", date)

    def means(self) -> Means:
        """See Signer."""
        return Means(self._account, f"SharedKey {self._account}:", "", self._clock, self._inner, self._outer)

    def signature(self, request: Request, date: str) -> str:
        """The base64 signature of a request whose x-ms-date is `date`."""
        # Fields, a line each: verb, Content-Encoding, -Language, -Length ('' for 0), -MD5, -Type, Date (empty, as
        # x-ms-date is there), If-Modified-Since, If-Match, If-None-Match, If-Unmodified-Since, Range (empty likewise).
        wanted = request.condition
        condition = (
            f"\n\n{wanted.if_match}\n{wanted.if_none_match}\n{wanted.if_unmodified_since}\n\n"
            if wanted
            else "\n\n\n\n\n\n"
        )
        text = (
            f"{request.method}\n\n\n{request.length or ''}\n{request.md5}\n\n{condition}"
            f"{request.before}x-ms-date:{date}\n{request.after}/{self._account}{request.resource}"
        )
        inner = self._inner.copy()
        inner.update(text.encode())  # a header's value has a character for each byte, also where it is not ASCII
        outer = self._outer.copy()
        outer.update(inner.digest())
        return binascii.b2a_base64(outer.digest(), newline=False).decode()

    def __repr__(self) -> str:
        return f"<SharedKeySigner {self._account}>"


class SasSigner:
    """A shared access signature, appended to each query as it was given."""

    def __init__(self, sas: str) -> None:
        self._sas = sas

    def head(self, request: Request) -> bytes:
        """See Signer."""
        return request.head(sas=self._sas)

    def means(self) -> Means:
        """See Signer."""
        return Means(sas=self._sas)

    def __repr__(self) -> str:
        return "<SasSigner>"


class BearerSigner:
    """Authorization: Bearer, an OAuth 2 access token for https://storage.azure.com."""

    def __init__(self, token: str, clock: ServiceClock | None = None) -> None:
        self._authorization = f"Bearer {token}"
        self._clock = clock or ServiceClock()

    def head(self, request: Request) -> bytes:
        """See Signer. Every authorized request needs an x-ms-date, one with a token as well."""
        return request.head(self._authorization, self._clock.date())

    def means(self) -> Means:
        """See Signer."""
        return Means(authorization=self._authorization, clock=self._clock)

    def __repr__(self) -> str:
        return "<BearerSigner>"


class AnonymousSigner:
    """No proof: for containers that are open to the public."""

    def head(self, request: Request) -> bytes:
        """See Signer."""
        return request.head()

    def means(self) -> Means:
        """See Signer."""
        return Means()

    def __repr__(self) -> str:
        return "<AnonymousSigner>"
