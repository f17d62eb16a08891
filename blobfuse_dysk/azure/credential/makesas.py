"""Makes a shared access signature from an account's key: leave to read one blob or snapshot, for a while.

Source: https://learn.microsoft.com/rest/api/storageservices/create-service-sas, "Construct the signature string", for
versions from 2020-12-06 on.
"""

from __future__ import annotations

import base64
import hmac
from urllib.parse import quote

from blobfuse_dysk.azure.wire import API_VERSION
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.timestamp import utc_text

__all__ = ["readable"]


def readable(address: DiskAddress, key: str, expires_at: float) -> str:
    """The query that lets whoever has it read this blob, or this snapshot of it, until then (seconds since the epoch).

    key: of the account, base64. Over HTTPS only, if that is how the address is reached. It is a secret.
    """
    kind = "bs" if address.snapshot else "b"
    expiry = utc_text(expires_at)
    protocol = "https" if address.endpoint is not None and address.endpoint.scheme == "https" else ""
    # Rights, start, expiry, resource, policy, addresses, protocol, version, kind, snapshot, encryption scope, and five
    # headers of the answer.
    resource = f"/blob/{address.account}/{address.container}/{address.blob}"
    fields = ["r", "", expiry, resource, "", "", protocol, API_VERSION, kind, address.snapshot or "", *[""] * 6]
    digest = hmac.digest(base64.b64decode(key), "\n".join(fields).encode(), "sha256")
    given = {"sv": API_VERSION, "sr": kind, "sp": "r", "se": expiry, "spr": protocol}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in given.items() if value)
    return f"{query}&sig={quote(base64.b64encode(digest).decode(), safe='')}"
