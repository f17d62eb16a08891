"""What a node refuses for reasons that only Kubernetes' calls have; each stands for one code of gRPC's."""

from __future__ import annotations

from blobfuse_dysk.errors import DyskError

__all__ = ["ConflictError", "UnsuitableError"]


class ConflictError(DyskError):
    """The volume is there already, and not as this call wants it (ALREADY_EXISTS)."""


class UnsuitableError(DyskError):
    """The volume, or the place it is to go to, is not fit for it (FAILED_PRECONDITION)."""
