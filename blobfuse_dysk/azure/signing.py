"""How requests prove who sends them: SharedKey, SAS, bearer token, or not at all. Without any I/O.

A signer is immutable but for caches; a renewed credential makes a new one. Their repr never shows the secret.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import hashlib
import logging
import time
from typing import Protocol

from blobfuse_dysk.azure.wire import Request
from blobfuse_dysk.errors import CredentialError

__all__ = [
    "AnonymousSigner",
    "BearerSigner",
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
_TOLERATED_S = 120.0  # the service refuses dates 15 minutes off; a smaller difference is left alone


def http_date(seconds: float) -> str:
    """Format as `Mon, 05 Jan 2026 10:20:30 GMT`, whatever the locale. seconds: since the epoch."""
    t = time.gmtime(seconds)
    return (
        f"{_DAYS[t.tm_wday]}, {t.tm_mday:02d} {_MONTHS[t.tm_mon - 1]} {t.tm_year}"
        f" {t.tm_hour:02d}:{t.tm_min:02d}:{t.tm_sec:02d} GMT"
    )


def parse_http_date(text: str) -> float | None:
    """Seconds since the epoch of an RFC 9110 date in its fixed form, or None if it is anything else."""
    try:
        _, day, month, year, clock, zone = text.split()
        hour, minute, second = clock.split(":")
        parts = (int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second))
    except ValueError:
        return None
    return float(calendar.timegm(parts)) if zone == "GMT" else None


class ServiceClock:
    """The service's time, as its answers tell it.

    Signatures are dated by it once it differs from the local clock by more than two minutes; one warning says so.
    """

    def __init__(self) -> None:
        self.offset_s = 0.0
        """Seconds added to the local clock when signing; 0.0 while the difference is tolerated."""
        self.measured_s: float | None = None
        """The latest difference seen, service minus local, in seconds (whole ones: that is how fine Date is)."""
        self._second = -1
        self._date = ""

    def measure(self, date: str) -> None:
        """Take the difference from an answer's Date header, without signing by it."""
        service = parse_http_date(date)
        if service is not None:
            self.measured_s = service - time.time()

    def observe(self, date: str) -> None:
        """Learn from an answer's Date header; from now on signatures are dated by it if that is needed."""
        self.measure(date)
        if self.measured_s is None:
            return
        offset = self.measured_s if abs(self.measured_s) > _TOLERATED_S else 0.0
        if abs(offset - self.offset_s) <= 60.0:
            return
        if offset and not self.offset_s:
            log.warning(
                "this machine's clock is %.0f s %s the service's; requests are dated by the service's clock. "
                "Set the clock (timedatectl set-ntp true)",
                abs(offset),
                "behind" if offset > 0 else "ahead of",
            )
        self.offset_s = offset

    def now(self) -> float:
        """Seconds since the epoch by the service's clock, or by ours while the two differ by less than two minutes."""
        return time.time() + self.offset_s

    def date(self) -> str:
        """now() as an HTTP date, formatted once a second."""
        second = int(time.time() + self.offset_s)
        if second != self._second:
            self._date = http_date(second)
            self._second = second
        return self._date


class Signer(Protocol):
    """Makes a request's head: request line, headers, proof of identity, empty line."""

    def head(self, request: Request) -> bytes:
        """Return the head as it goes onto the wire, signed for now."""
        ...


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

    def signature(self, request: Request, date: str) -> str:
        """The base64 signature of a request whose x-ms-date is `date`."""
        # Fields, a line each: verb, Content-Encoding, -Language, -Length ('' for 0), -MD5, -Type, Date (empty, as
        # x-ms-date is there), If-Modified-Since, If-Match, If-None-Match, If-Unmodified-Since, Range (empty likewise).
        wanted = request.condition
        condition = f"\n\n{wanted.if_match}\n\n{wanted.if_unmodified_since}\n\n" if wanted else "\n\n\n\n\n\n"
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

    def __repr__(self) -> str:
        return "<BearerSigner>"


class AnonymousSigner:
    """No proof: for containers that are open to the public."""

    def head(self, request: Request) -> bytes:
        """See Signer."""
        return request.head()

    def __repr__(self) -> str:
        return "<AnonymousSigner>"
