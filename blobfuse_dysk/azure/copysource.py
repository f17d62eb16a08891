"""How a request names a blob that the service is to read for it, and proves that it may be read.

By a URL in x-ms-copy-source; beside that, where the proof is an access token, by x-ms-copy-source-authorization. An
account's key never leaves this machine: a signature is made from it that lets this blob be read, for an hour or two.
All of it goes to the target's service, so that must be reached in a way that keeps it secret.

Source: https://learn.microsoft.com/rest/api/storageservices/put-page-from-url and .../copy-blob, "Authorization"
"""

from __future__ import annotations

import time
from urllib.parse import quote

from blobfuse_dysk.azure.credential.credential import Credential, check_transport
from blobfuse_dysk.azure.credential.makesas import readable
from blobfuse_dysk.disk import DiskAddress, Endpoint

__all__ = ["CopySource"]

_GRANTED_S = 7200.0
_LEFT_S = 3600.0  # a signature with less than this left is made anew


class CopySource:
    """A blob or snapshot to copy from. address: resolved. target: where its name is sent to.

    own_account: whether the target is in the same account, where Copy Blob takes the request's own proof for both.
    Raises UsageError if what proves the right to read it would be sent unencrypted.
    """

    def __init__(self, address: DiskAddress, credential: Credential, target: Endpoint, *, own_account: bool) -> None:
        assert address.endpoint is not None
        check_transport(target, credential)
        self._address = address
        self._credential = credential
        self._own_account = own_account
        snapshot = f"?snapshot={quote(address.snapshot, safe='')}" if address.snapshot else ""
        self._url = f"{address.endpoint}{address.path}{snapshot}"
        self._sas = ""
        self._sas_until = 0.0

    async def headers(self) -> dict[str, str]:
        """What to send. Raises CredentialError if there is no token to be had."""
        credential = self._credential
        headers = {"x-ms-copy-source": self._url}
        if credential.sas:
            headers["x-ms-copy-source"] = self._with(credential.sas.text)
        elif self._own_account:
            pass
        elif credential.kind == "key":
            headers["x-ms-copy-source"] = self._with(self._signature())
        elif credential.kind == "token":
            if credential.renew_at <= time.time():
                await credential.freshen()
            credential.signer()  # raises if there is none
            headers["x-ms-copy-source-authorization"] = f"Bearer {credential.to_config()['token']['text']}"
        return headers

    def _with(self, sas: str) -> str:
        return f"{self._url}{'&' if '?' in self._url else '?'}{sas}"

    def _signature(self) -> str:
        now = self._credential.clock.now()
        if self._sas_until - now < _LEFT_S:
            self._sas_until = now + _GRANTED_S
            key = self._credential.to_config()["proof"]["account_key"]
            self._sas = readable(self._address, key, self._sas_until)
        return self._sas
