"""Shared access signatures: what their text tells about themselves. The text itself is a secret and stays as given.

Source: https://learn.microsoft.com/rest/api/storageservices/create-service-sas
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qs

from blobfuse_dysk.errors import CredentialError

__all__ = ["RIGHTS", "Sas"]

_NO_BLANKS = frozenset(("sig", "se", "st", "ske", "skt"))  # base64 and times, in which '+' means itself
RIGHTS = {"r": "read", "w": "write", "c": "create", "d": "delete", "l": "list", "t": "tag"}


@dataclass(frozen=True, slots=True)
class Sas:
    """text: as appended to a query. starts_at, expires_at: seconds since the epoch, None if a stored policy has them.

    rights: the letters of sp, '' if a stored access policy has them. resource: what it is for: `b` one blob, `c` a
    container, '' an account.
    """

    text: str = field(repr=False)
    starts_at: float | None
    expires_at: float | None
    rights: str
    resource: str

    @classmethod
    def parse(cls, text: str, source: str) -> Sas:
        """Read a SAS, with or without a leading '?'. source: where it comes from, for the error, a CredentialError."""
        text = text.strip().lstrip("?")
        if "://" in text.partition("?")[0]:
            raise CredentialError(
                f"{source}: the SAS is a whole URL", remedy="give only the part of it that is behind the '?'"
            )
        if not text.isascii() or not text.isprintable() or " " in text:
            raise CredentialError(
                f"{source}: the SAS holds blanks or other characters that no URL has",
                remedy="copy it again, in one piece",
            )
        for name in (piece.partition("=")[0] for piece in text.split("&") if "+" in piece.partition("=")[2]):
            if name in _NO_BLANKS:
                raise CredentialError(
                    f"{source}: the SAS has a '+' in {name}, which stands for a blank there",
                    remedy="write %2B in its place, or copy it as the portal shows it",
                )
        fields = parse_qs(text)
        if "sig" not in fields:
            raise CredentialError(
                f"{source}: the SAS has no signature", remedy="give its whole query string, sv=...&sig=... included"
            )
        rights, resource = fields.get("sp", [""])[0], fields.get("sr", [""])[0]
        return cls(text, _time(fields.get("st")), _time(fields.get("se")), rights, resource)

    def has(self, right: str) -> bool:
        """Whether it grants a right (a letter of RIGHTS), as far as its text tells."""
        return not self.rights or right in self.rights


def _time(values: list[str] | None) -> float | None:
    """Read an ISO 8601 UTC date or time; None for none or for anything else (the service will say so)."""
    try:
        moment = datetime.fromisoformat(values[0]) if values else None
    except ValueError:
        return None
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
