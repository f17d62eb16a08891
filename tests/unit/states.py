"""A state.json as the product writes it, for tests that need one."""

from __future__ import annotations

from typing import Any, cast

from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.ipc.statefile import FirstState, StateFile


def a_first_state(**changes: Any) -> FirstState:
    """What an attaching process gives."""
    first: FirstState = {
        "disk": "a/b/c",
        "endpoint": "https://a.blob.core.windows.net",
        "size": 1 << 20,
        "blob_size": 1 << 20,
        "vhd": False,
        "read_only": False,
        "sector_size": 512,
        "cache": "readwrite",
        "io_timeout_s": 300.0,
        "iops": None,
        "mbps": None,
        "since": "2026-01-31T12:00:00Z",
    }
    return cast(FirstState, {**first, **changes})


def a_state(**changes: Any) -> StateFile:
    """Of an attachment `data` with a dead holder and no worker."""
    fields: StateFile = {
        "version": state.VERSION,
        "name": "data",
        "state": "attached",
        "detail": None,
        "device": "/dev/loop7",
        "holder": {"pid": 1, "start": 1},
        "worker": None,
        "connection": None,
        "restarts": 0,
        "protocol": message.PROTOCOL,
        "worker_version": "0.1.0",
        "upgrades": {},
        "lease": {"id": "an-id", "epoch": 3, "seconds": 60.0},
        "lost": None,
        "state_since": "2026-01-31T12:00:00Z",
        **a_first_state(),
    }
    return cast(StateFile, {**fields, **changes})
