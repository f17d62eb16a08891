"""Where dyskctl, mount.dysk and umount.dysk start: nothing is imported before an interrupt is understood.

Ctrl-C while Python still loads the rest would be a traceback; nothing has been done by then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["dysk_node", "dyskctl", "mount_dysk", "umount_dysk"]

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
EX_INTERRUPTED = 8  # mount(8)'s


def dyskctl() -> int:
    """Run dyskctl; returns its exit code."""

    def load() -> Callable[[], int]:
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
