"""Holders and workers that differ from the installed ones, for tests: programs that change something and run them."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobfuse_dysk.device.attacher import launch

__all__ = ["NO_RECOVERY", "use_holder", "use_worker"]

_ROOT = str(Path(launch.WORKER).parents[3])
NO_RECOVERY = """\
from blobfuse_dysk.device.kernel import fuse; fuse.can_resend = lambda init: False
from blobfuse_dysk.device.holder import workers; workers.Crew.keep_requests = lambda crew, always: None
"""
"""An older version's holder on a kernel before 6.9: what a worker had taken dies with it."""


def use_worker(patch: pytest.MonkeyPatch, directory: Path, change: str) -> Path:
    """From now on workers are started from a program that runs `change` first; returns its path."""
    program = directory / "blobfuse_dysk" / "device" / "worker" / "worker.py"  # a holder starts no other path
    program.parent.mkdir(parents=True, exist_ok=True)
    return _use(patch, program, "WORKER", "worker", change)


def use_holder(patch: pytest.MonkeyPatch, directory: Path, change: str) -> Path:
    """Likewise holders."""
    return _use(patch, directory / "holder.py", "HOLDER", "holder", change)


def _use(patch: pytest.MonkeyPatch, program: Path, constant: str, module: str, change: str) -> Path:
    program.write_text(
        f"import os, sys; sys.path.append({_ROOT!r})\n"
        f"{change}\n"
        f"from blobfuse_dysk.device.{module} import {module}\n"
        f"os._exit({module}.main())\n"
    )
    patch.setattr(f"blobfuse_dysk.device.attacher.launch.{constant}", str(program))
    return program
