"""dysk-csi: the driver as a program.

dysk-csi --mode controller|node|all --endpoint unix:///csi/csi.sock [--name csi-dysk]
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import version

from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.kubernetes.csi.identity import Check, IdentityService, check_credentials, check_devices
from blobfuse_dysk.kubernetes.csi.server import serve
from blobfuse_dysk.kubernetes.csi.socketpath import parse_endpoint

__all__ = ["main"]

DEFAULT_NAME = "csi-dysk"


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s", stream=sys.stderr, force=True
    )
    for other in ("azure", "urllib3", "msal"):  # they log requests
        logging.getLogger(other).setLevel(logging.ERROR)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        serve(parse_endpoint(options.endpoint), _services(options), ended)
    except DyskError as error:
        print(f"dysk-csi: {error.line()}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dysk-csi",
        description="The CSI driver for disks in Azure page blobs. It serves until SIGTERM, and logs to stderr.",
    )
    parser.add_argument("--mode", choices=("controller", "node", "all"), default="all", help="what to serve")
    parser.add_argument("--endpoint", required=True, metavar="unix:///PATH", help="the socket to serve on")
    parser.add_argument("--name", default=DEFAULT_NAME, help="the driver's name in the cluster; default: %(default)s")
    return parser


def _services(options: argparse.Namespace) -> dict[str, object]:
    """What a mode serves, by the names of the services."""
    checks: list[Check] = [check_credentials]
    services: dict[str, object] = {}
    if options.mode in ("node", "all"):
        from blobfuse_dysk.kubernetes.csi.node import NodeService

        checks.append(check_devices)
        services["Node"] = NodeService()
    name: str = options.name
    if not name or len(name) > 63:
        raise UsageError(f"the driver's name {name!r} is not 1 to 63 characters", remedy=f"use {DEFAULT_NAME}")
    identity = IdentityService(name, version("blobfuse-dysk"), snapshot_metadata=False, checks=checks)
    return {"Identity": identity, **services}


if __name__ == "__main__":
    sys.exit(main())
