"""Which reads are read ahead of: what is in order, soon and further and further; what is random, never."""

from __future__ import annotations

import random

import pytest

from blobfuse_dysk.store.contract import PAGE
from blobfuse_dysk.store.parts.readahead import (
    CROWD,
    CROWDED_READS,
    FAR_S,
    IDLE_READS,
    LARGE,
    LATELY,
    SURE,
    UNIT,
    Quickest,
    Streams,
    unit_of,
)

MIB = 1 << 20


def fetched(streams: Streams, reads: list[tuple[int, int]]) -> int:
    """Bytes fetched for these reads (offset, length), each once."""
    blocks: set[int] = set()
    for offset, length in reads:
        ahead = streams.on_read(offset, offset + length)
        if ahead:
            blocks.update(range(ahead[0] // 4096, -(-ahead[1] // 4096)))
    return len(blocks) * 4096


@pytest.mark.parametrize(("size", "most"), [(256 * MIB, 0.001), (16 * MIB, 0.05)])
def test_random_reads_fetch_nothing_to_speak_of(size: int, most: float) -> None:
    rng = random.Random(1)
    streams = Streams(size, 8 * MIB)
    total = 0
    for _ in range(200):  # a new count of chunks each time, as a cache forgets
        total += fetched(streams, [(rng.randrange(size // 4096) * 4096, 4096) for _ in range(1000)])
    assert total <= most * 200_000 * 4096


def test_random_reads_do_not_keep_an_old_stream_alive() -> None:
    rng = random.Random(2)
    streams = Streams(256 * MIB, 8 * MIB)
    fetched(streams, [(offset, 65536) for offset in range(0, 16 * MIB, 65536)])
    assert len(streams) == 1
    assert fetched(streams, [(rng.randrange(65536) * 4096, 4096) for _ in range(20_000)]) <= 16 * MIB
    assert len(streams) == 0


@pytest.mark.parametrize(("length", "reads"), [(4096, 3), (65536, 2), (128 << 10, 2), (1 << 20, 2)])
def test_a_stream_is_recognised_soon(length: int, reads: int) -> None:
    streams = Streams(256 * MIB, 8 * MIB)
    answers = [streams.on_read(number * length, (number + 1) * length) for number in range(reads)]
    assert answers[:-1] == [None] * (reads - 1)
    assert answers[-1] == (reads * length, reads * length + max(length, 128 << 10))


def test_a_stream_among_random_reads_is_kept() -> None:
    rng = random.Random(3)
    streams = Streams(1 << 40, 8 * MIB)
    reads = []
    for offset in range(0, 64 * MIB, 65536):
        reads.append((offset, 65536))
        reads += [(rng.randrange(1 << 28) * 4096, 4096) for _ in range(20)]
    assert 60 * MIB <= fetched(streams, reads) <= 73 * MIB
    assert len(streams) == 1


def test_the_window_grows_to_its_share_and_no_further() -> None:
    streams = Streams(256 * MIB, 8 * MIB)
    ahead = 0
    for offset in range(0, 64 * MIB, 65536):
        found = streams.on_read(offset, offset + 65536)
        if found:
            ahead = found[1]
            assert ahead - (offset + 65536) <= 8 * MIB
    assert ahead >= 64 * MIB + 4 * MIB


def test_nothing_is_fetched_beyond_the_end() -> None:
    streams = Streams(8 * MIB, 8 * MIB)
    for offset in range(0, 8 * MIB, 65536):
        found = streams.on_read(offset, offset + 65536)
        assert found is None or found[1] <= 8 * MIB


def test_who_skips_more_than_he_reads_is_no_stream() -> None:
    streams = Streams(256 * MIB, 8 * MIB)
    fetched(streams, [(offset, 65536) for offset in range(0, 4 * MIB, 65536)])
    strides = [(4 * MIB + number * 65536, 4096) for number in range(1, 2000)]
    assert fetched(streams, strides) <= 8 * MIB  # the last window of what had been a stream
    assert len(streams) == 0


def test_a_stream_that_pauses_for_long_is_forgotten() -> None:
    streams = Streams(1 << 40, 8 * MIB)
    fetched(streams, [(offset, 65536) for offset in range(0, 4 * MIB, 65536)])
    assert len(streams) == 1
    for number in range(IDLE_READS + 2):
        streams.on_read((1 << 30) + number * 65536 * 7, (1 << 30) + number * 65536 * 7 + 4096)
    assert len(streams) == 0


def ahead_of(streams: Streams, places: list[int], rounds: int, length: int = 65536) -> list[int]:
    """Read from each of these places in turn; the largest window fetched ahead of each reader."""
    furthest = dict.fromkeys(places, 0)
    widest = dict.fromkeys(places, 0)
    for step in range(rounds):
        for place in places:
            offset = place + step * length
            found = streams.on_read(offset, offset + length)
            if found:
                furthest[place] = max(furthest[place], found[1])
            widest[place] = max(widest[place], furthest[place] - offset - length)
    return list(widest.values())


def test_several_streams_share_what_may_be_fetched_ahead() -> None:
    """Else what was fetched for one of them is evicted by the others before it is read."""
    streams = Streams(1 << 40, 8 * MIB)
    widest = ahead_of(streams, [place << 30 for place in range(4)], 200)
    assert len(streams) == 4
    assert all(MIB < width <= 8 * MIB for width in widest)
    late = Streams(1 << 40, 8 * MIB)
    ahead_of(late, [place << 30 for place in range(4)], 20)
    together = ahead_of(late, [(place << 30) + 20 * 65536 for place in range(4)], 200)
    assert sum(together) <= 8 * MIB + 4 * MIB


def test_as_many_streams_are_kept_as_there_are_places_for_and_those_used_last() -> None:
    streams = Streams(1 << 40, 64 * MIB)
    places = [place << 30 for place in range(12)]
    for place in places:
        streams.on_read(place, place + MIB)
        assert streams.on_read(place + MIB, place + 2 * MIB) is not None
    assert len(streams) == 8
    used = places[4]
    assert streams.on_read(used + 2 * MIB, used + 3 * MIB) is not None
    for place in (20 << 30, 21 << 30):  # two more: the two used longest ago go, and not the one used just now
        streams.on_read(place, place + MIB)
        streams.on_read(place + MIB, place + 2 * MIB)
    assert streams.on_read(used + 3 * MIB, used + 4 * MIB) is not None
    assert streams.on_read(places[5] + 2 * MIB, places[5] + 3 * MIB) is None, "it was used longest ago"
    assert streams.on_read(places[11] + 2 * MIB, places[11] + 3 * MIB) is not None


def test_a_stream_that_is_read_slowly_among_others_is_not_forgotten() -> None:
    """As long as each of its reads comes before it counts as idle."""
    rng = random.Random(4)
    streams = Streams(1 << 40, 8 * MIB)
    fetched(streams, [(offset, 65536) for offset in range(0, 4 * MIB, 65536)])
    for offset in range(4 * MIB, 6 * MIB, 65536):
        fetched(streams, [(rng.randrange(1 << 28) * 4096, 4096) for _ in range(IDLE_READS - 1)])
        streams.on_read(offset, offset + 65536)
        assert len(streams) == 1


def test_nothing_is_fetched_twice_and_nothing_left_out() -> None:
    """Also where requests of one reader arrive out of order."""
    for swap in (1, 2, 4):
        streams = Streams(256 * MIB, 8 * MIB)
        offsets = list(range(0, 32 * MIB, 65536))
        for at in range(8, len(offsets) - swap, swap):
            offsets[at : at + swap] = reversed(offsets[at : at + swap])
        end = 0
        for offset in offsets:
            found = streams.on_read(offset, offset + 65536)
            if found:
                assert found[0] >= end, "fetched twice"
                assert not end or found[0] == end, "left out"
                end = found[1]
        assert end >= 32 * MIB
        assert len(streams) == 1


def test_more_is_fetched_before_all_that_was_is_read() -> None:
    streams = Streams(256 * MIB, 8 * MIB)
    end = 0
    for offset in range(0, 16 * MIB, 65536):
        found = streams.on_read(offset, offset + 65536)
        if found:
            assert not end or end - offset - 65536 >= 65536, "the reader had to wait for it"
            end = found[1]


@pytest.mark.parametrize("back", [1, 2])
def test_a_request_that_comes_late_does_not_take_the_stream_back(back: int) -> None:
    """What is fetched next depends on how far the stream has come, not on who came last."""
    late, again = Streams(256 * MIB, 8 * MIB), Streams(256 * MIB, 8 * MIB)
    for number in range(4):
        for streams in (late, again):
            streams.on_read(number * 65536, (number + 1) * 65536)
    expected = again.on_read(3 * 65536, 4 * 65536)
    assert expected is not None
    assert late.on_read((3 - back) * 65536, (4 - back) * 65536) == expected


@pytest.mark.parametrize("length", [LARGE, 640 << 10, MIB, 2 * MIB])
def test_ahead_of_large_reads_whole_ones_are_fetched(length: int) -> None:
    """So that each is answered by what one request brought: at any place, also where the window is no multiple."""
    streams = Streams(1 << 40, 8 * MIB)
    place, ahead = 192 << 10, 0
    for number in range(64):
        found = streams.on_read(place + number * length, place + (number + 1) * length)
        if found:
            assert [(border - place) % unit_of(length) for border in found] == [0, 0]
            ahead = found[1] - place - (number + 1) * length
    assert 4 * MIB <= ahead <= 8 * MIB


@pytest.mark.parametrize("length", [PAGE, 3 * PAGE, 65536, LARGE - PAGE])
@pytest.mark.parametrize("readers", [1, 3])
def test_ahead_of_small_reads_no_small_rest_is_fetched(readers: int, length: int) -> None:
    streams = Streams(1 << 40, 8 * MIB)
    for offset in range(0, 24 * MIB, length):
        for reader in range(readers):
            found = streams.on_read((reader << 30) + offset, (reader << 30) + offset + length)
            if found and found[1] - found[0] > UNIT:
                assert (found[1] - found[0]) % UNIT == 0


def test_reads_larger_than_may_be_fetched_are_not_read_ahead_of() -> None:
    streams = Streams(256 * MIB, MIB // 2)
    assert fetched(streams, [(offset, MIB) for offset in range(0, 64 * MIB, MIB)]) == 0
    assert fetched(streams, [(offset, MIB // 2) for offset in range(64 * MIB, 128 * MIB, MIB // 2)]) >= 62 * MIB


@pytest.mark.parametrize("at_once", [1, CROWD - 1, CROWD, 8])
def test_who_has_several_large_reads_in_progress_fetches_ahead_himself(at_once: int) -> None:
    streams = Streams(256 * MIB, 8 * MIB)
    found = [streams.on_read(offset, offset + MIB, at_once) for offset in range(0, 64 * MIB, MIB)]
    assert any(found) == (at_once < CROWD)
    assert len(streams) == 1


def test_a_crowd_that_is_over_is_read_ahead_of_again() -> None:
    streams = Streams(256 * MIB, 8 * MIB)
    for offset in range(0, 4 * MIB, MIB):
        streams.on_read(offset, offset + MIB, 1 + offset // MIB)
    found = [streams.on_read(offset, offset + MIB) for offset in range(4 * MIB, 64 * MIB, MIB)]
    place = (4 + CROWDED_READS) * MIB
    assert found[: CROWDED_READS - 1] == [None] * (CROWDED_READS - 1), "the kernel's next ones may come at once again"
    assert (found[CROWDED_READS - 1] or (0, 0))[0] == place


@pytest.mark.parametrize("most", [8 * MIB, 8 * MIB - 1, 5_000_001])
@pytest.mark.parametrize("length", [PAGE, 65536, MIB])
def test_pages_are_fetched(length: int, most: int) -> None:
    """However many streams share what may be fetched, and however much that is."""
    streams = Streams(1 << 40, most)
    for offset in range(0, 64 * length, length):
        for reader in range(7):
            found = streams.on_read((reader << 30) + offset, (reader << 30) + offset + length)
            assert not found or [border % PAGE for border in found] == [0, 0]


def test_a_service_is_far_once_even_the_quickest_reads_take_long() -> None:
    quickest = Quickest()
    found = []
    for _ in range(SURE):
        quickest.add(FAR_S)
        found.append(quickest.is_far)
    assert found == [False] * (SURE - 1) + [True]
    quickest.add(FAR_S / 2)
    assert not quickest.is_far, "one quick read shows that it is near"
    for number in range(3 * LATELY):
        quickest.add(FAR_S)
        assert number >= LATELY or not quickest.is_far, "that most wait for each other means nothing"
    assert quickest.is_far
