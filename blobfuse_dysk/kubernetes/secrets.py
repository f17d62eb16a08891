"""The credential of a request; where it is another one than the attachment has, it is reloaded by a descriptor.

Nothing of a secret is kept: only a digest under a key that this process drew, so that a call which comes every few
seconds (requiresRepublish) costs the service nothing as long as the Secret is the same.
"""

from __future__ import annotations

import hashlib
import logging
import os

from blobfuse_dysk import live
from blobfuse_dysk.attached import Attachment
from blobfuse_dysk.azure.credential.resolve import resolve
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.options import AttachOptions

__all__ = ["Secrets"]

_log = logging.getLogger(__name__)


class Secrets:
    """What the attachments of this process were given last."""

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._seen: dict[str, bytes] = {}

    def remember(self, name: str, address: DiskAddress) -> None:
        """The attachment has the address's credential now."""
        if (text := _text(address)) is not None:
            self._seen[name] = self._digest(text)

    def forget(self, name: str) -> None:
        self._seen.pop(name, None)

    def renew(self, attached: Attachment, address: DiskAddress, options: AttachOptions) -> None:
        """Give the attachment the address's credential, if it has one that is not known to be in use already.

        It is tried by the worker first. Raises DyskError if it was refused, and the old one stays in use; but not if
        this process does not know whether it is another one: then it is logged.
        """
        text = _text(address)
        if text is None or self._seen.get(attached.name) == self._digest(text):
            return
        resolved, _ = resolve(address, options)
        try:
            live.reload_credential(attached.name, text=f"{text}endpoint = {resolved.endpoint}\n")
        except DyskError as error:
            if attached.name in self._seen:
                raise
            _log.warning("%s: the volume's secret could not be tried: %s", attached.name, error.line())
            return
        self.remember(attached.name, address)

    def _digest(self, text: str) -> bytes:
        return hashlib.blake2b(text.encode(), key=self._key).digest()


def _text(address: DiskAddress) -> str | None:
    """The credential as a credential file has it; None if the request brought none."""
    if address.account_key is not None:
        return f"account_key = {address.account_key}\n"
    return None if address.sas is None else f"sas = {address.sas}\n"
