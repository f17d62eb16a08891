"""Headers in the order and the form in which they are signed, and as they are sent.

The two differ in the case of metadata's names, which the service keeps and the signature does not have, and in white
space within a value: by the reference each piece of it is signed as one blank unless it stands in a quoted string,
while the Azure SDKs (and Azurite, which checks) sign values as they are.

Source: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key, "Constructing the canonicalized
headers string".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["BLANKS", "canonical_headers"]

BLANKS = " \t"  # round a header's value; all else that Python takes for white space is part of a value
_FORBIDDEN = re.compile(r"[^\t -~\x80-\xff]")  # in a header; source: RFC 9110, 5.5
_WHITE = re.compile(r'("(?:[^"\\]|\\.)*")|[ \t]+')  # a quoted string, or white space


def canonical_headers(headers: Mapping[str, str], *, as_sent: bool) -> tuple[str, str, str]:
    """Return lines as signed before x-ms-date, as signed after it, and the latter as sent. ValueError: cannot be sent.

    headers: x-ms- headers, values with a character for each byte. Only names behind the date may have capitals.
    as_sent: sign values as they are.
    """
    for name, value in headers.items():
        if _FORBIDDEN.search(name + value):
            raise ValueError(f"header {name!r} has a character that no header may have")
    pairs = [(name, value.strip(BLANKS)) for name, value in headers.items()]
    pairs.sort(key=lambda pair: _service_order(pair[0].lower()))
    date = _service_order("x-ms-date")
    before = "".join(f"{name}:{value}\n" for name, value in pairs if _service_order(name.lower()) < date)
    last = [pair for pair in pairs if _service_order(pair[0].lower()) > date]
    sent = "".join(f"{name}:{value}\n" for name, value in last)
    after = "".join(f"{name.lower()}:{value if as_sent else _folded(value)}\n" for name, value in last)
    return before, after, sent


def _service_order(name: str) -> str:
    """Sort key of a header name. The service ignores '-' and puts '_' before digits (as the Azure SDK emulates it)."""
    return name.replace("-", "").replace("_", "!")


def _folded(value: str) -> str:
    return _WHITE.sub(lambda found: found[1] or " ", value)
