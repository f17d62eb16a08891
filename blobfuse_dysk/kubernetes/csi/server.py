"""Serves the services of a mode on a Unix socket until it is told to end; calls under way are finished then.

Kubernetes runs the controller and the node as processes of their own: a side-car exits when its driver's socket goes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import grpc

from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.kubernetes.csi.calls import MOST_CALLS, service_handler
from blobfuse_dysk.kubernetes.csi.socketpath import claimed

__all__ = ["GRACE_S", "serve"]

log = logging.getLogger("dysk-csi")

GRACE_S = 25.0  # for calls under way at the end; a pod has 30 s by default before it is killed
_SPARE = 16  # threads beyond MOST_CALLS, for Probe and for refusing what is too much
_MOST_MESSAGE = 64 << 20  # bytes: a page of ListVolumes with thousands of volumes


def serve(path: Path, services: Mapping[str, object], wait: Callable[[], None]) -> None:
    """Serve, until `wait` returns. services: by their names in csi.proto. Raises DyskError if the path is another's."""
    with claimed(path), ThreadPoolExecutor(MOST_CALLS + _SPARE, thread_name_prefix="call") as pool:
        server = grpc.server(
            pool,
            handlers=[service_handler(name, service) for name, service in services.items()],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_send_message_length", _MOST_MESSAGE),
                ("grpc.max_receive_message_length", _MOST_MESSAGE),
            ],
        )
        _bind(server, path)
        server.start()
        log.info("serving %s on %s", ", ".join(services), path)
        wait()
        log.info("ending; calls under way have %.0f s", GRACE_S)
        server.stop(GRACE_S).wait()


def _bind(server: grpc.Server, path: Path) -> None:
    """Make the socket, for this user alone: whoever can connect can mount and delete disks.

    The mode is made of the umask, which is the process's: no other thread may make files meanwhile.
    """
    before = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{quote(str(path))}")
    except RuntimeError as error:
        raise DeviceError(f"{path} cannot be served", remedy="see whether the directory can be written") from error
    finally:
        os.umask(before)
