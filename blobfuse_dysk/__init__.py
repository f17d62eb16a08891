"""Azure page blobs as Linux block devices, from user space.

    import blobfuse_dysk

    disk = blobfuse_dysk.attach("mystore/disks/data.vhd")
    print(disk.device)
    blobfuse_dysk.detach(disk.name)

The public API is what `__all__` names; it is synchronous. Names are imported when they are first used (PEP 562),
because the holder of every attachment runs inside this package and must stay small.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what type checkers take for true; importing typing for it would cost the holder 2 ms
if TYPE_CHECKING:
    from blobfuse_dysk.attachment import Attachment as Attachment
    from blobfuse_dysk.attachment import attach as attach
    from blobfuse_dysk.attachment import attachments as attachments
    from blobfuse_dysk.attachment import detach as detach
    from blobfuse_dysk.attachment import get as get
    from blobfuse_dysk.attachment import status as status
    from blobfuse_dysk.disk import DiskAddress as DiskAddress
    from blobfuse_dysk.errors import AttachedError as AttachedError
    from blobfuse_dysk.errors import BusyError as BusyError
    from blobfuse_dysk.errors import CredentialError as CredentialError
    from blobfuse_dysk.errors import DeviceError as DeviceError
    from blobfuse_dysk.errors import DyskError as DyskError
    from blobfuse_dysk.errors import LeasedError as LeasedError
    from blobfuse_dysk.errors import NotFoundError as NotFoundError
    from blobfuse_dysk.errors import ServiceError as ServiceError
    from blobfuse_dysk.errors import TransportError as TransportError
    from blobfuse_dysk.errors import UsageError as UsageError
    from blobfuse_dysk.options import AttachOptions as AttachOptions

__all__ = [
    "AttachOptions",
    "AttachedError",
    "Attachment",
    "BusyError",
    "CredentialError",
    "DeviceError",
    "DiskAddress",
    "DyskError",
    "LeasedError",
    "NotFoundError",
    "ServiceError",
    "TransportError",
    "UsageError",
    "attach",
    "attachments",
    "detach",
    "get",
    "status",
]

__version__ = "0.1.0"

_HOME = {
    "Attachment": "attachment",
    "AttachOptions": "options",
    "DiskAddress": "disk",
    "attach": "attachment",
    "attachments": "attachment",
    "detach": "attachment",
    "get": "attachment",
    "status": "attachment",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use and keep it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
