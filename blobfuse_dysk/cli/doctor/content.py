"""A check of the doctor: what is on a disk, as far as it is no file system to mount."""

from __future__ import annotations

from blobfuse_dysk import environment
from blobfuse_dysk.azure.blob import BlobClient
from blobfuse_dysk.azure.credential.credential import Credential
from blobfuse_dysk.azure.explain import explain
from blobfuse_dysk.cli.doctor.findings import Finding, ok, warn
from blobfuse_dysk.device.kernel.devlink import stable_path
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.imageformat import Found, inspect

__all__ = ["content"]

_TIMEOUT_S = 10.0


def content(address: DiskAddress, credential: Credential) -> Finding:
    """Images of another format, VHD footers that do not fit, what has to be opened first. A few small reads."""
    try:
        found = _look(address, credential)
    except DyskError as error:
        shown = explain(error, address, credential, needs="r")
        return warn("content", f"cannot be read: {shown}", shown.remedy or "look at the other findings")
    if found is None:
        return ok("content", "nothing that has to be converted or opened first")
    remedy = found.remedy.format(stable_path(str(environment.dev_dir()), address.key))
    if found.kind == "container":
        return ok("content", f"{found.what}; attached: {remedy}")
    return warn(
        "content", found.what, f"attach it with --read-only, then: {remedy}" if "{}" in found.remedy else remedy
    )


def _look(address: DiskAddress, credential: Credential) -> Found | None:
    import trio

    async def look() -> Found | None:
        """inspect() is asked again with each piece that it turned out to want."""
        async with BlobClient(address, credential) as client:
            size = (await client.properties(timeout_s=_TIMEOUT_S)).size
            pieces: dict[tuple[int, int], bytes] = {}
            while size:
                try:
                    return inspect(lambda offset, length: pieces[offset, length], size)
                except KeyError as missing:
                    offset, length = missing.args[0]
                    pieces[offset, length] = bytes(await client.get_range(offset, length, timeout_s=_TIMEOUT_S))
        return None

    return trio.run(look)
