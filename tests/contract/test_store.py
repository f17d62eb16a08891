"""Every layer, and the whole stack, keep the contract of store/contract.py."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from blobfuse_dysk.testing import CHECKS, check_name
from blobfuse_dysk.testing.conformance import Check
from tests.contract.factories import FACTORIES

# A write that was cancelled at PageBlob lives on; that it is fenced off is the work of Fence, above it.
NOT_ALONE = {("pageblob", "survives_cancellation")}
CASES = [(name, check) for name in FACTORIES for check in CHECKS if (name, check_name(check)) not in NOT_ALONE]


@pytest.mark.parametrize(("name", "check"), CASES, ids=[f"{name}-{check_name(check)}" for name, check in CASES])
async def test_every_layer_keeps_the_contract(name: str, check: Check, autojump_clock: MockClock) -> None:
    await check(FACTORIES[name])
