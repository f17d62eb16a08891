"""Metadata, tags and tiers as a user gives them: what the service would refuse is refused before anything is made."""

from __future__ import annotations

import pytest

from blobfuse_dysk.azure.tiers import TIERS, check_tier
from blobfuse_dysk.disks.labels import check_metadata, check_tags, parse_pairs
from blobfuse_dysk.errors import UsageError

GIB = 1 << 30


def test_pairs_are_read() -> None:
    assert parse_pairs(["a=b", "c=", "d=e=f"], "tags") == {"a": "b", "c": "", "d": "e=f"}


@pytest.mark.parametrize("words", [["a"], ["=b"], ["a=1", "a=2"]])
def test_what_is_no_pair_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match="tags") as caught:
        parse_pairs(words, "tags")
    assert caught.value.remedy


def test_what_the_service_takes_is_taken() -> None:
    check_metadata({"_a1": "x y", "dysk_volume": "pvc-1", "Z" * 10: "v" * 8000})
    check_tags({"k" * 128: "v" * 256, "a b+-./:=_": ""} | {str(number): "" for number in range(8)})


@pytest.mark.parametrize(
    "metadata",
    [
        {"1a": "x"},
        {"a-b": "x"},
        {"": "x"},
        {"a": "x", "A": "y"},
        {"a": "grün"},
        {"a": " x"},
        {"a": "x\ny"},
        {"a": ""},
        {"a": "x" * 8192},
        {"dysk_node": "me"},
        {"Dysk_Tag": "1"},
        {"dysk_since": "now"},
        {"Dysk_Incomplete": "x"},
        {"dysk_clone": "x"},
    ],
)
def test_metadata_that_the_service_or_a_holder_would_not_keep_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        check_metadata(metadata)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "tags", [{"": "x"}, {"k" * 129: ""}, {"k": "v" * 257}, {"ä": ""}, {"k": "a,b"}, dict.fromkeys("abcdefghijk", "")]
)
def test_tags_that_the_service_refuses_are_refused(tags: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        check_tags(tags)
    assert caught.value.remedy


def test_a_tier_is_large_enough_for_its_disk() -> None:
    assert check_tier("p4", 32 * GIB) == "P4"
    assert [check_tier(name, TIERS[name]) for name in TIERS] == list(TIERS)
    with pytest.raises(UsageError, match="P4 is for at most 32GiB") as caught:
        check_tier("P4", 32 * GIB + 512)
    assert "P6" in (caught.value.remedy or "")
    with pytest.raises(UsageError, match="no tier 'P5'"):
        check_tier("P5")
