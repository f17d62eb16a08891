"""A lease in this node's own name is waited for; any other is an error at once."""

from __future__ import annotations

import time

import pytest

from blobfuse_dysk import ownlease
from blobfuse_dysk.azure.explain import HOLDER_NODE, HOLDER_SINCE, leased
from blobfuse_dysk.device.ipc.message import error_to_message, message_to_error
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DyskError, LeasedError

DISK = DiskAddress.parse("store/disks/data")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes by sleeping only; its one item is the time."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setenv("DYSK_NODE", "here")
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    return now


def held_by(node: str | None, since: str | None = "2026-01-31T12:00:00Z", *, endless: bool = False) -> DyskError:
    """As it comes from the worker, through the holder."""
    names = {HOLDER_NODE: node, HOLDER_SINCE: since}
    found = {name: value for name, value in names.items() if value is not None}
    error = leased(DISK, found, "leased", endless=endless)
    return message_to_error(error_to_message(error))


@pytest.mark.parametrize("since", ["2026-01-31T12:00:00Z", None])
def test_our_own_is_waited_for(clock: list[float], since: str | None) -> None:
    def attach() -> str:
        if clock[0] < 58:
            raise held_by("here", since)
        return "attached"

    assert ownlease.wait_for_own_lease(attach) == "attached"
    assert 58 <= clock[0] < 61


def test_but_not_for_ever(clock: list[float]) -> None:
    def attach() -> None:
        raise held_by("here")

    with pytest.raises(LeasedError, match="another machine, or container, of this name has it") as caught:
        ownlease.wait_for_own_lease(attach)
    assert 60 < clock[0] < 90
    assert caught.value.remedy is not None and "--break-lease" in caught.value.remedy


def test_it_is_said_whose_it_is_and_when_it_is_free(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    def attach() -> None:
        if clock[0] < 20:
            raise held_by("here")

    ownlease.wait_for_own_lease(attach)
    assert [record.getMessage() for record in caplog.records] == [
        "disk store/disks/data is leased by node here since 2026-01-31T12:00:00Z: left behind by this machine, "
        "free in 60 s at most: waiting"
    ]


def test_one_without_end_is_not_waited_for(clock: list[float]) -> None:
    def attach() -> None:
        raise held_by("here", endless=True)

    with pytest.raises(LeasedError, match="left behind by this machine, and without end") as caught:
        ownlease.wait_for_own_lease(attach)
    assert clock[0] == 0
    assert caught.value.remedy == "take it with --break-lease"


def test_a_lease_that_another_node_takes_meanwhile_is_an_error(clock: list[float]) -> None:
    def attach() -> None:
        raise held_by("here" if clock[0] < 20 else "there")

    with pytest.raises(LeasedError, match="node there"):
        ownlease.wait_for_own_lease(attach)
    assert clock[0] < 25


@pytest.mark.parametrize("node", ["there", "here-too", "not-here", "", None])
def test_anothers_is_an_error_at_once(clock: list[float], node: str | None) -> None:
    def attach() -> None:
        raise held_by(node)

    with pytest.raises(LeasedError):
        ownlease.wait_for_own_lease(attach)
    assert clock[0] == 0
