"""Why a mount failed, where what failed knows of an I/O error only."""

from __future__ import annotations

from typing import Any

import pytest

from blobfuse_dysk.errors import DeviceError
from blobfuse_dysk.mount import helper as helpers
from tests.unit.mount_fakes import Machine, machine
from tests.unit.test_mount_steps import NAME, request

__all__ = ["machine"]


@pytest.mark.parametrize(
    ("state", "detail", "said"),
    [
        ("failed", "it is immutable: use another container", "it is immutable: use another container"),
        ("recovering", "no answer", "is the disk large enough?"),
        ("failed", None, "is the disk large enough?"),
    ],
)
def test_a_disk_that_failed_says_why_mkfs_did(machine: Machine, state: Any, detail: str | None, said: str) -> None:
    """mkfs hears of an I/O error only; under an immutability policy the advice was to look at the disk's size."""
    machine.fails["mkfs"] = DeviceError("mkfs.ext4 failed: Input/output error", remedy="is the disk large enough?")
    machine.becomes = {"state": state, "detail": detail}
    with pytest.raises(DeviceError, match=r"mkfs\.ext4 failed") as caught:
        helpers.mount(request(machine))
    assert caught.value.line().endswith(said)
    assert machine.named("detach") == [("detach", NAME)]
