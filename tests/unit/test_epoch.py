"""The sequence number as generation, tag and counter."""

from __future__ import annotations

from random import Random

import pytest

from blobfuse_dysk.errors import Kind, StoreError
from blobfuse_dysk.store.lease.epoch import claim_number, draw_tag, generation, next_number, tag
from blobfuse_dysk.store.lease.ownership import not_as_set

LARGEST = (1 << 63) - 1


class Least(Random):
    """Draws the least that there is."""

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return 0 if stop is None else start


@pytest.mark.parametrize("found", [0, 5, (1 << 40) - 1, 1 << 40, 77 << 40 | 3 << 20 | 9])
def test_a_claim_is_in_the_next_generation_under_its_own_tag(found: int) -> None:
    random = Random(found)
    for _ in range(100):
        number = claim_number(found, 0xABCDE, random)
        assert generation(number) == generation(found) + 1
        assert tag(number) == 0xABCDE
        assert found < number <= LARGEST


def test_a_claim_starts_with_room_for_raises_and_never_where_another_generation_carries_on() -> None:
    starts = {claim_number(0, 1, Random(seed)) % (1 << 20) for seed in range(200)}
    assert 0 not in starts
    assert claim_number(0, 1, Least()) % (1 << 20) > 0
    assert max(starts) < 1 << 18
    assert len(starts) > 190, "two workers that read the same number choose others"


@pytest.mark.parametrize("own", [4, 5, (1 << 20) - 1])
def test_raising_keeps_the_tag_and_goes_on_in_the_next_generation_at_the_end_of_the_counter(own: int) -> None:
    number = 7 << 40 | own << 20 | 9
    assert next_number(number) == number + 1
    last = 7 << 40 | own << 20 | ((1 << 20) - 1)
    assert next_number(last) == 8 << 40 | own << 20
    assert tag(next_number(last)) == tag(last)


@pytest.mark.parametrize("before", [5, (1 << 20) - 1])
def test_an_attachment_never_has_the_tag_of_the_one_before_it(before: int) -> None:
    found = 7 << 40 | before << 20 | 9
    tags = {draw_tag(found, Random(seed)) for seed in range(500)}
    assert before not in tags
    assert len(tags) > 490
    assert all(0 <= drawn < 1 << 20 for drawn in tags)


def test_a_number_without_room_above_it_is_refused_with_the_way_out() -> None:
    with pytest.raises(StoreError) as caught:
        claim_number(LARGEST, 1, Random(0))
    assert caught.value.kind is Kind.REJECTED
    assert "x-ms-sequence-number-action: update" in (caught.value.remedy or "")
    assert "x-ms-blob-sequence-number: 0" in (caught.value.remedy or "")


def test_a_worker_goes_on_up_to_the_last_generation_but_one_and_its_raises_never_pass_the_end() -> None:
    number = claim_number(LARGEST - (2 << 40), 7, Random(0))
    assert tag(number) == 7
    last = number | ((1 << 20) - 1)
    assert next_number(last) <= LARGEST
    with pytest.raises(StoreError, match="too little room"):
        claim_number(number, 7, Random(0))


def test_a_new_attachment_finds_room_for_its_workers_and_raises() -> None:
    for found in (LARGEST, LARGEST - (1 << 24), LARGEST - (1000 << 40)):
        with pytest.raises(StoreError, match="too little room is left up to 2"):
            draw_tag(found, Random(0))
    assert draw_tag(LARGEST - (1024 << 40), Random(0)) >= 0


def test_a_service_that_rounds_large_numbers_is_named() -> None:
    """Azurite keeps them as floating point numbers."""
    wanted = 4611688136360178834
    rounded = not_as_set(int(float(wanted)), wanted)
    assert "rounds sequence numbers above 2^53" in str(rounded)
    assert "x-ms-blob-sequence-number: 0" in (rounded.remedy or "")
    assert "another attachment took the disk" in str(not_as_set(wanted + (1 << 20), wanted))
    assert "another attachment took the disk" in str(not_as_set(6, 5))
