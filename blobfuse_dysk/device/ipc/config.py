"""What a worker needs to know about its disk, secrets included. It travels in a memfd: no file, no command line."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from blobfuse_dysk.device.ipc.statefile import Lease
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.proxies import Proxy

__all__ = ["Config"]


@dataclass(frozen=True, slots=True, repr=False)
class Config:
    """credential: as Credential.to_config made it. node: what this node calls itself to others.

    variables: environment variables for programs that the worker runs to log in; they may hold secrets. Of these only
    environment.LOGIN_VARIABLES count.
    held: the lease of a dead attachment of this disk, to be taken up again.
    """

    address: DiskAddress
    credential: dict[str, Any]
    options: AttachOptions
    node: str
    variables: dict[str, str] = field(default_factory=dict)
    held: Lease | None = None

    def encode(self) -> bytes:
        """To be read by `decode` of the same or a later version."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def take(cls, fd: int) -> Config:
        """Read what `encode` made from a memfd, and close that."""
        try:
            return cls.decode(os.pread(fd, os.fstat(fd).st_size, 0))
        finally:
            os.close(fd)

    @classmethod
    def decode(cls, data: bytes) -> Config:
        """Read what `encode` made."""
        fields = json.loads(data)
        address = fields.pop("address")
        endpoint, proxy = address.pop("endpoint"), address.pop("proxy", None)
        return cls(
            address=DiskAddress(
                **address,
                endpoint=Endpoint(**endpoint) if endpoint else None,
                proxy=Proxy(**proxy) if proxy else None,
            ),
            credential=fields["credential"],
            options=AttachOptions(**fields["options"]),
            node=fields["node"],
            variables=fields["variables"],
            held=fields["held"],
        )
