"""disks/asking.py: what a caller that is not asynchronous gets to see of a failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import trio

from blobfuse_dysk import patience
from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks import asking
from blobfuse_dysk.errors import (
    DyskError,
    GatewayError,
    NotFoundError,
    ServiceError,
    StoreError,
    TransportError,
    UsageError,
)

DISK = DiskAddress.parse("https://mystore.blob.core.windows.net/disks/data")
KEY = Credential("mystore", Proof("key", "a test", account_key="a2V5"))


async def fail(error: BaseException) -> None:
    raise error


def run(error: BaseException) -> BaseException:
    with pytest.raises(BaseException) as caught:
        asking.run(DISK, KEY, lambda: fail(error))
    return caught.value


def test_a_refusal_is_told_in_the_words_of_explain_and_keeps_its_cause() -> None:
    refused = ServiceError("look", status=404, code="BlobNotFound")
    told = run(refused)
    assert isinstance(told, NotFoundError) and "mystore/disks/data does not exist" in str(told)
    assert told.__cause__ is refused


def test_an_error_for_people_comes_out_as_it_is() -> None:
    cause = TransportError("lost", sent=True)
    error = UsageError("no", remedy="do")
    error.__cause__ = cause
    assert run(error) is error
    assert error.__cause__ is cause


def test_what_failed_first_in_a_nursery_is_told_unless_somebody_interrupted() -> None:
    first, second = DyskError("first"), DyskError("second")
    assert run(BaseExceptionGroup("", [first, second])) is first
    assert run(BaseExceptionGroup("", [BaseExceptionGroup("", [first]), KeyboardInterrupt()])) != first
    assert isinstance(run(BaseExceptionGroup("", [first, KeyboardInterrupt()])), KeyboardInterrupt)


async def test_what_may_pass_is_asked_again_and_what_may_not_is_not(autojump_clock: trio.testing.MockClock) -> None:
    answers: list[Exception | str] = [
        TransportError("lost", sent=True),
        ServiceError("busy", status=503, code="ServerBusy"),
        "done",
        ServiceError("no", status=403, code="AuthenticationFailed"),
        "never",
    ]

    async def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await asking.again(call, "trying") == "done"
    with pytest.raises(StoreError, match="trying: no") as caught:
        await asking.again(call, "trying", modifies=True)
    assert isinstance(caught.value.__cause__, ServiceError) and not caught.value.unknown
    assert answers == ["never"]


async def test_a_budget_ends(autojump_clock: trio.testing.MockClock) -> None:
    started = trio.current_time()
    with pytest.raises(StoreError) as caught:
        await asking.again(lambda: fail(TransportError("lost", sent=True)), "trying", modifies=True, budget_s=600)
    assert caught.value.unknown
    assert 300 < trio.current_time() - started <= 600


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is told of waits, from their first moment on."""
    lines: list[str] = []
    monkeypatch.setattr(patience, "FIRST_S", 0.01)
    monkeypatch.setattr(patience, "AGAIN_S", 0.01)
    patience.tell_by(lines.append)
    yield lines
    patience.tell_by(None)


def waits_until(told: list[str], word: str) -> None:
    """Ask a service that answers with 502 first, and then not before this is told."""
    heard = threading.Event()
    answers: list[Exception] = [GatewayError("look: HTTP 502 from a proxy", status=502)]

    async def call() -> str:
        if answers:
            raise answers.pop()
        while not heard.is_set():
            if any(word in line for line in told):
                heard.set()
            await trio.sleep(0.01)
        return "done"

    assert asking.run(DISK, KEY, lambda: asking.again(call, "listing ranges")) == "done"


def test_a_wait_says_for_whom_and_what_and_why(told: list[str]) -> None:
    waits_until(told, "502")
    line = next(line for line in told if "502" in line)
    assert line.startswith("asking https://mystore.blob.core.windows.net about mystore/disks/data for ")
    assert "s now: listing ranges, which is given up after 60 s; so far: look: HTTP 502 from a proxy" in line


def test_who_shows_how_far_it_is_tells_no_wait(told: list[str]) -> None:
    async def call() -> None:
        await trio.sleep(0.1)

    asking.run(DISK, KEY, lambda: asking.again(call, "copying"), silent=True)
    assert told == []
