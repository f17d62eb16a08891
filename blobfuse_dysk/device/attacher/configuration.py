"""What holder and worker are told of a new attachment. Loaded when the holder has been started, as it takes a while."""

from __future__ import annotations

import logging
from dataclasses import replace

from blobfuse_dysk import environment
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.device.attacher import ramcheck
from blobfuse_dysk.device.ipc.config import Config
from blobfuse_dysk.device.ipc.statefile import FirstState, StateFile
from blobfuse_dysk.device.kernel import fuse
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.timestamp import utc_text

__all__ = ["configure", "first_state"]

_log = logging.getLogger("blobfuse_dysk.attachment")


def configure(address: DiskAddress, options: AttachOptions, dead: list[StateFile]) -> Config:
    """Find the credential, and put into the options what follows from the disk and from the machine."""
    address, credential = resolve.resolve(address, options)
    limit_s = fuse.request_timeout_s()
    if limit_s and (options.io_timeout_s is None or options.io_timeout_s > limit_s):
        _log.warning("io-timeout is lowered to %g s: the kernel aborts FUSE requests soon after (fs.fuse)", limit_s)
        options = replace(options, io_timeout_s=limit_s)
    if address.snapshot:
        options = replace(options, read_only=True)
    if not options.read_only:
        address.refuse_secondary(", or attach it read-only")
    ramcheck.check(options)
    variables = environment.login_variables() if credential.kind == "token" else {}
    leases = [found["lease"] for found in dead if found["endpoint"] == str(address.endpoint)]
    held = next((lease for lease in leases if lease), None)
    return Config(address, credential.to_config(), options, environment.node_name(), variables, held)


def first_state(config: Config) -> FirstState:
    """What others are to know of the attachment from its beginning."""
    options = config.options
    return {
        "disk": config.address.key,
        "endpoint": str(config.address.endpoint),
        "size": 0,
        "blob_size": 0,
        "vhd": False,
        "read_only": options.read_only,
        "sector_size": options.sector_size,
        "cache": options.cache,
        "io_timeout_s": options.io_timeout_s,
        "iops": options.iops,
        "mbps": options.mbps,
        "since": utc_text(),
    }
