"""dysk-csi that is killed at a step: dying.py MODULE:FUNCTION:before|after|cut ARGUMENT...

`cut`: the step is mkfs, which writes a part of what it would and dies with the driver, as when a container is killed.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from blobfuse_dysk.kubernetes.csi.main import main

HALF = b"half of a file system" * 200


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def patch(step: str) -> None:
    module_name, name, when = step.split(":")
    owner: Any = importlib.import_module(module_name)
    *path, last = name.split(".")
    for each in path:
        owner = getattr(owner, each)
    real = getattr(owner, last)

    @functools.wraps(real)
    def dying(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            die()
        if when == "cut":
            with Path(arguments[1]).open("r+b", buffering=0) as device:
                for offset in (0, 1 << 20, 8 << 20):
                    os.pwrite(device.fileno(), HALF, offset)
                os.fsync(device.fileno())
            die()
        result = real(*arguments, **named)
        die()
        return result

    setattr(owner, last, dying)


if __name__ == "__main__":
    patch(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
