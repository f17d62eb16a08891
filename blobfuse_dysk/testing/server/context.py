"""What every operation gets: the stored state and the service's clock."""

from __future__ import annotations

from dataclasses import dataclass

from .answers import Refusal
from .config import Config
from .leases import parse_lease_id
from .request import Request
from .state import Blob, Container, State

__all__ = ["Context"]


@dataclass(slots=True)
class Context:
    """One request's view: `now` is the service's clock when the request is applied, `granted` the caller's letters."""

    state: State
    request: Request
    now: float
    granted: str
    config: Config

    @property
    def container(self) -> Container:
        """The container the request names, or Refusal."""
        target = self.request.target
        return self.state.container(target.account, target.container)

    def blob_to_read(self) -> Blob:
        """The blob or snapshot the request names, its lease id checked if the request has one."""
        target = self.request.target
        blob = self.state.blob(target.account, target.container, target.blob, target.query.get("snapshot"))
        blob.lease.check_read(parse_lease_id(self.request.header(b"x-ms-lease-id")), self.now)
        return blob

    def blob_to_write(self, *, deletes: bool = False) -> Blob:
        """The blob the request names, after the checks that every write meets: lease, copies. deletes: as a whole."""
        target = self.request.target
        if "snapshot" in target.query:
            raise Refusal("InvalidQueryParameterValue", "A snapshot cannot be modified.")
        blob = self.state.blob(target.account, target.container, target.blob)
        blob.lease.check_write(parse_lease_id(self.request.header(b"x-ms-lease-id")), self.now)
        if blob.copy_is_pending:
            raise Refusal("PendingCopyOperation")
        if blob.incremental and not deletes:
            raise Refusal("OperationNotAllowedOnIncrementalCopyBlob")
        return blob

    def written(self, blob: Blob) -> None:
        """To be called after every modification of a blob: ETag, and what a write does to an old lease."""
        blob.lease.written(self.now)
        blob.touch(self.now)
