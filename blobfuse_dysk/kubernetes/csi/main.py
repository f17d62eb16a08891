"""dysk-csi: the driver as a program.

dysk-csi --mode controller|node|all --endpoint unix:///csi/csi.sock [--name csi-dysk]
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import NoReturn

from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.kubernetes.csi.identity import (
    Check,
    IdentityService,
    check_account,
    check_credentials,
    check_devices,
)
from blobfuse_dysk.kubernetes.csi.server import serve
from blobfuse_dysk.kubernetes.csi.socketpath import parse_endpoint

__all__ = ["main"]

DEFAULT_NAME = "csi-dysk"
_NAME = re.compile("[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")  # CSI specification, GetPluginInfo


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    try:
        options = _parser().parse_args(arguments)
    except UsageError as error:
        print(f"dysk-csi: {error.line()}", file=sys.stderr)
        return error.exit_code
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    for other in ("azure", "urllib3", "msal"):  # they log requests
        logging.getLogger(other).setLevel(logging.ERROR)
    wait = _end()
    try:
        serve(parse_endpoint(options.endpoint), _services(options), wait)
    except DyskError as error:
        print(f"dysk-csi: {error.line()}", file=sys.stderr)
        return error.exit_code
    return 0


def _end() -> Callable[[], None]:
    """What waits for SIGTERM or SIGINT, whichever thread the kernel gives it to.

    A handler runs in the main thread only, which may be asleep in a lock then and not hear of it; the signal's number
    is written to a pipe at once.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        while os.read(heard, 1)[0] not in (signal.SIGTERM, signal.SIGINT):
            pass

    return wait


class _Parser(argparse.ArgumentParser):
    """One whose errors are a line, as all others of ours: a container's log shows the last one."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy="see dysk-csi --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dysk-csi",
        description="The CSI driver for disks in Azure page blobs. It serves until SIGTERM, and logs to stderr.",
    )
    parser.add_argument("--mode", choices=("controller", "node", "all"), default="all", help="what to serve")
    parser.add_argument("--endpoint", required=True, metavar="unix:///PATH", help="the socket to serve on")
    parser.add_argument(
        "--container",
        action="append",
        default=[],
        metavar="ACCOUNT/CONTAINER",
        help="a container whose volumes and snapshots can be listed, with the credential in /etc/dysk/ACCOUNT.conf or "
        "in the AZURE_STORAGE_* variables, since such calls bring no secret; may be repeated",
    )
    parser.add_argument("--alpha", action="store_true", help="claim what the CSI specification calls alpha, too")
    parser.add_argument("--name", default=DEFAULT_NAME, help="the driver's name in the cluster; default: %(default)s")
    return parser


def _container(text: str) -> DiskAddress:
    try:
        return DiskAddress.parse(f"{text.rstrip('/')}/*", what=f"container {text!r}")
    except UsageError as error:
        raise UsageError(str(error), remedy="write --container ACCOUNT/CONTAINER") from None


def _services(options: argparse.Namespace) -> dict[str, object]:
    """What a mode serves, by the names of the services."""
    name: str = options.name
    if not name or len(name) > 63:
        raise UsageError(f"the driver's name {name!r} is not 1 to 63 characters", remedy=f"use {DEFAULT_NAME}")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"the driver cannot be called {name!r}",
            remedy=f"use letters, digits, - and ., with neither - nor . at an end: {DEFAULT_NAME}",
        )
    checks: list[Check] = [check_credentials]
    services: dict[str, object] = {}
    if options.mode in ("controller", "all"):
        from blobfuse_dysk.azure import management
        from blobfuse_dysk.kubernetes.csi.controller import ControllerService
        from blobfuse_dysk.kubernetes.csi.snapshotmetadata import SnapshotMetadataService

        containers = [_container(text) for text in options.container]
        management.load()
        checks += [partial(check_account, each) for each in containers]
        services["Controller"] = ControllerService(containers, alpha=options.alpha)
        services["SnapshotMetadata"] = SnapshotMetadataService()
    if options.mode in ("node", "all"):
        from blobfuse_dysk.kubernetes.csi.node import NodeService

        checks.append(check_devices)
        services["Node"] = NodeService(alpha=options.alpha)
    return {"Identity": IdentityService(name, version("blobfuse-dysk"), checks), **services}


if __name__ == "__main__":
    sys.exit(main())
