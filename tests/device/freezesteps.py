"""A command that makes a snapshot of `data`, and kills somebody at a step of that. A program of its own.

    python freezesteps.py WHOM STEP

WHOM: letters of c (this command), f (the freezer), g (the guard), h (the holder). STEP: its number; 0 for none.

Prints each step's number and name after it; the last line is the snapshot's consistency and why. A step is a message
to the freezer or the worker, or the answer to one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blobfuse_dysk.device.attacher import freezing
from blobfuse_dysk.device.ipc.control import Control
from blobfuse_dysk.device.ipc.freezerecord import FreezeRecord
from blobfuse_dysk.disks.snapshot import create_snapshot
from blobfuse_dysk.options import AttachOptions

__all__ = ["freezers", "guards"]


def freezers(record: Path) -> list[int]:
    """The process that freezes, or thaws, and holds this record locked."""
    return [pid for pid in _with(record) if b"/freezer.py\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def guards(record: Path) -> list[int]:
    """The process that waits for the freezer's end."""
    return [pid for pid in _with(record) if pid not in (*freezers(record), os.getpid())]


def _with(record: Path) -> list[int]:
    """Processes that have it open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if link.readlink() == record:
                found.add(int(link.parts[2]))
    return sorted(found)


def main() -> None:
    whom, at = sys.argv[1], int(sys.argv[2])
    record = Path(os.environ["DYSK_RUN_DIR"]).resolve() / "data" / "freeze"
    steps = 0

    def step(name: str) -> None:
        nonlocal steps
        steps += 1
        print(steps, name, flush=True)
        if steps != at:
            return
        victims = (freezers(record) if "f" in whom else []) + (guards(record) if "g" in whom else [])
        if "h" in whom:
            victims.insert(0, json.loads(record.with_name("state.json").read_text())["holder"]["pid"])
        for pid in victims + ([os.getpid()] if "c" in whom else []):
            os.kill(pid, signal.SIGKILL)

    def around(of: Any, name: str) -> None:
        inner: Callable[..., Any] = getattr(of, name)

        def called(self: Any, *words: Any, **given: Any) -> Any:
            what = f"{name} {words[0] if words and isinstance(words[0], str) else ''}"
            try:
                return inner(self, *words, **given)
            finally:
                step(what)

        setattr(of, name, called)

    around(freezing._Process, "__init__")
    around(freezing._Process, "order")
    around(freezing._Process, "expect")
    around(freezing._Process, "end")
    around(Control, "ask")
    around(FreezeRecord, "append")
    made = create_snapshot("data", AttachOptions(), freeze_s=5.0)
    print(made.consistent, made.why)


if __name__ == "__main__":
    main()
