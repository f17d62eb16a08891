"""disks/asking.py: what a caller that is not asynchronous gets to see of a failure."""

from __future__ import annotations

import pytest
import trio

from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.disks import asking
from blobfuse_dysk.errors import DyskError, NotFoundError, ServiceError, StoreError, TransportError, UsageError

DISK = DiskAddress.parse("mystore/disks/data")
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
