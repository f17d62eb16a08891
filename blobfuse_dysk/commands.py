"""Where dyskctl, mount.dysk, umount.dysk and dysk-csi start: nothing is imported before an interrupt is understood.

Ctrl-C while Python still loads the rest would be a traceback; nothing has been done by then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["dysk_csi", "dysk_flexvolume", "dysk_node", "dyskctl", "mount_dysk", "umount_dysk"]

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EX_INTERRUPTED = 8  # mount(8)'s
EX_USAGE = 2


def dyskctl() -> int:
    """Run dyskctl; returns its exit code."""

    def load() -> Callable[[], int]:
        from blobfuse_dysk.cli.quick import understood

        command = understood(sys.argv[1:])
        if command is not None:
            return command
        from blobfuse_dysk.cli.main import main

        return main

    return _run("dyskctl", load, EXIT_INTERRUPTED)


def mount_dysk() -> int:
    """Run mount.dysk; returns its exit code."""

    def load() -> Callable[[], int]:
        from blobfuse_dysk.mount.helper import mount_main

        return mount_main

    return _run("mount.dysk", load, EX_INTERRUPTED)


def umount_dysk() -> int:
    """Run umount.dysk; returns its exit code."""

    def load() -> Callable[[], int]:
        from blobfuse_dysk.mount.helper import umount_main

        return umount_main

    return _run("umount.dysk", load, EX_INTERRUPTED)


def dysk_flexvolume() -> int:
    """Run the FlexVolume driver; returns its exit code."""

    def load() -> Callable[[], int]:
        from blobfuse_dysk.kubernetes.flexvolume import main

        return main

    return _run("dysk-flexvolume", load, EXIT_INTERRUPTED)


def dysk_csi() -> int:
    """Run dysk-csi; returns its exit code. gRPC is in an extra of the package: without it, one line says so."""
    import importlib.util

    for name in ("grpc", "google"):
        if importlib.util.find_spec(name) is None:
            do = "install the extra: pip install 'blobfuse-dysk[csi]'"
            print(f"dysk-csi: the Python package {name} is not installed: {do}", file=sys.stderr)
            return EX_USAGE

    def load() -> Callable[[], int]:
        from blobfuse_dysk.kubernetes.csi.main import main

        return main

    return _run("dysk-csi", load, EXIT_INTERRUPTED)


def dysk_node() -> int:
    """Run dysk-node, which brings a Kubernetes node's driver out of its container; returns its exit code."""

    def load() -> Callable[[], int]:
        from blobfuse_dysk.kubernetes.host.entry import main

        return lambda: main(sys.argv[1:])

    return _run("dysk-node", load, EXIT_INTERRUPTED)


def _run(program: str, load: Callable[[], Callable[[], int]], interrupted: int) -> int:
    try:
        command = load()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return interrupted
    return command()
