"""What is read of a disk while it is taken, by itself; with the claim: tests/simulation/test_attach_steps.py."""

from __future__ import annotations

from typing import cast

import pytest

from blobfuse_dysk.azure.wire import PageList
from blobfuse_dysk.store.blobapi import BlobApi
from blobfuse_dysk.store.preview import Known, Preview

START, SIZE = 1 << 20, 3 << 20


class Client:
    """Answers with these."""

    def __init__(self, ranges: list[tuple[int, int]], page: bytes) -> None:
        self._ranges, self._page = ranges, page

    async def page_ranges(self, offset: int, length: int, *, timeout_s: float) -> PageList:
        assert (offset, length) == (START, SIZE - START)
        return PageList(self._ranges, None)

    async def get_range(self, offset: int, length: int, *, timeout_s: float) -> bytes:
        assert (offset, length) == (SIZE - 512, 512)
        return self._page


async def known(*ranges: tuple[int, int], page: bytes = b"l" * 512) -> Known | None:
    preview = Preview(cast(BlobApi, Client(list(ranges), page)), start=START, size=SIZE, timeout_s=1.0)
    await preview.run()
    return await preview.known()


async def test_what_the_list_names_outside_of_what_was_asked_for_is_left_out() -> None:
    assert await known((0, 512), (512, START), (SIZE - 512, 1 << 30)) == Known(
        START, ((START, 512), (SIZE - 512, 512)), b"l" * 512
    )


async def test_a_free_last_page_is_zeros() -> None:
    assert await known() == Known(START, (), bytes(512))
    assert await known((START, 512)) == Known(START, ((START, 512),), bytes(512))


@pytest.mark.parametrize("page", [b"", b"l" * 511])
async def test_a_last_page_that_is_no_page_is_not_known(page: bytes) -> None:
    assert await known((SIZE - 512, 512), page=page) == Known(START, ((SIZE - 512, 512),), None)
