"""Whether the service takes another credential for this attachment, asked before it takes the place of the present one.

What the attachment does is tried: Get Blob Properties, which takes the right to read, and for a disk that is written to
a renewal of its own lease, which takes the right to write. Neither changes the blob. The renewal is one more of those
that Fence sends: it prolongs the lease of this attachment's id, if there is one, and harms nobody however late it
arrives (requests.py). Fence does not hear of it, so the node believes in its lease for no longer than before, and
still looks after a lapse whether somebody had the disk. The service looks at the credential first, so a refusal for the
lease's sake says that the credential is good; what it means for the disk Fence finds out by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from blobfuse_dysk.azure.explain import explain
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import CredentialError, Kind, StoreError
from blobfuse_dysk.store.blobapi import BlobApi
from blobfuse_dysk.store.lease.requests import BlobLease

if TYPE_CHECKING:
    from blobfuse_dysk.azure.credential.credential import Credential

__all__ = ["Trial"]


class Trial:
    """See credential.Trial. Any number of tasks may try at the same time.

    client: of the blob, with the credential that it is given, on connections that are another's to close. lease_id: of
    the lease that this attachment holds now; None if it has none, or none any more. read_only: what the disk is to be.
    """

    def __init__(
        self,
        client: Callable[[Credential], BlobApi],
        address: DiskAddress,
        *,
        lease_id: Callable[[], str | None],
        read_only: bool,
        timeout_s: float,
    ) -> None:
        self._client = client
        self._address = address
        self._lease_id = lease_id
        self._read_only = read_only
        self._timeout_s = timeout_s

    async def __call__(self, credential: Credential) -> None:
        """Return if the service takes it. Raises CredentialError if it does not, StoreError if it does not say."""
        lease = BlobLease(self._client(credential), timeout_s=self._timeout_s)
        try:
            await lease.properties()
            if not self._read_only and (lease_id := self._lease_id()) is not None:
                await lease.renew(lease_id)
        except StoreError as error:
            if error.kind is Kind.LEASE:
                return
            if error.kind not in (Kind.DENIED, Kind.REJECTED):
                raise
            found = explain(error, self._address, credential, needs="r" if self._read_only else "rw")
            raise CredentialError(str(found), remedy=found.remedy) from error
