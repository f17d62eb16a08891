"""Parts of cloning that ask nobody: what is planned, written on a clone, left to copy; how a source is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobfuse_dysk.azure.copysource import CopySource
from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.azure.credential.tokencommand import Token
from blobfuse_dysk.azure.marks import CloneMark, found_in, incomplete, of_others, without_mark
from blobfuse_dysk.disk import MAX_SIZE, DiskAddress, Endpoint
from blobfuse_dysk.disks.cloneplan import check_names, check_resumed, moved_footer, plan
from blobfuse_dysk.disks.pagecopy import MOST, bounded, missing_in, pieces_of
from blobfuse_dysk.errors import DyskError, UsageError
from blobfuse_dysk.vhd import FOOTER_SIZE, VhdFooter, footer, parse_footer

MIB = 1 << 20
TIME = "2026-01-31T12:00:00.0000000Z"
SOURCE = DiskAddress.parse("mystore/disks/data")
TARGET = DiskAddress.parse("mystore/disks/copy")
KEY = "a2V5"


# Marks.


marks = st.builds(
    CloneMark,
    source=st.text("abz09/-._~?=: ä%;&+#é", min_size=1, max_size=60),
    temporary=st.booleans(),
    clone_id=st.text("0123456789abcdef", min_size=32, max_size=32),
    size=st.integers(512, MAX_SIZE),
    source_size=st.integers(512, MAX_SIZE),
    vhd=st.booleans(),
    copied=st.booleans(),
)


@given(marks, st.booleans())
def test_a_mark_is_read_as_it_was_written_whatever_became_of_the_case_of_its_name(mark: CloneMark, upper: bool) -> None:
    written = {name.upper() if upper else name: value for name, value in mark.to_metadata().items()}
    assert all(value.isascii() and value.isprintable() and " " not in value for value in written.values())
    assert found_in({"team": "red", **written}) == mark
    assert incomplete(written) == mark.source
    assert without_mark({"team": "red", "dysk_volume": "pvc-1", **written}) == {"team": "red", "dysk_volume": "pvc-1"}
    assert of_others({"team": "red", "Dysk_volume": "pvc-1", **written}) == {"team": "red"}


@given(marks)
def test_a_clone_that_needs_no_mark_is_complete(mark: CloneMark) -> None:
    assert incomplete(mark.origin()) is None
    assert found_in(mark.origin()) == mark


@pytest.mark.parametrize("text", ["", "a", f"{'0' * 32};1;1;000", f"{'0' * 32};1;1;0000;x", f"{'0' * 31};1;1;000;x"])
def test_a_mark_of_another_version_is_none_to_go_on_with_but_no_complete_disk(text: str) -> None:
    assert found_in({"dysk_clone": text, "dysk_incomplete": "x"}) is None
    assert incomplete({"dysk_clone": text, "DYSK_Incomplete": ""}) == ""


# Plans.


def hidden(said: int) -> VhdFooter:
    found = parse_footer(footer(said))
    assert found
    return found


def test_a_clone_has_the_source_s_size_or_a_larger_one() -> None:
    at = replace(SOURCE, snapshot=TIME)
    same = plan(at, 4 * MIB, None, None, {}, {})
    assert (same.mark.size, same.mark.source_size, same.grows, same.mark.source) == (4 * MIB, 4 * MIB, False, at.key)
    assert plan(at, 4 * MIB, None, 4 * MIB + 512, {}, {}).mark.size == 4 * MIB + 512
    with pytest.raises(UsageError, match="at least its size, 4MiB"):
        plan(at, 4 * MIB, None, 4 * MIB - 512, {}, {})


def test_a_vhd_has_its_footer_behind_the_size_or_within_it() -> None:
    behind, inside = hidden(4 * MIB), hidden(4 * MIB + FOOTER_SIZE)
    blob = 4 * MIB + FOOTER_SIZE
    for found in (behind, inside):
        assert plan(SOURCE, blob, found, None, {}, {}).mark.size == blob
        assert plan(SOURCE, blob, found, 4 * MIB, {}, {}).mark.size == blob
        grown = plan(SOURCE, blob, found, 8 * MIB, {}, {})
        assert (grown.mark.size, grown.mark.vhd, grown.grows) == (8 * MIB + FOOTER_SIZE, True, True)
        moved = parse_footer(moved_footer(found, blob, grown.mark.size))
        assert moved and moved.layout(grown.mark.size) is found.layout(blob)
        assert (moved.uuid, moved.created) == (found.uuid, found.created)
        with pytest.raises(UsageError, match="8 TiB is too large"):
            plan(SOURCE, blob, found, MAX_SIZE, {}, {})
    with pytest.raises(UsageError, match="whole number of MiB") as caught:
        plan(SOURCE, blob, behind, 8 * MIB + 512, {}, {})
    assert caught.value.remedy == "use --size 9MiB"


def test_a_clone_keeps_what_others_wrote_and_gets_what_is_given() -> None:
    found = plan(SOURCE, MIB, None, None, {"team": "red", "dysk_node": "a", "DYSK_Volume": "b"}, {"dysk_volume": "c"})
    assert found.metadata == {"team": "red", "dysk_volume": "c"}


def test_who_may_go_on_with_a_clone() -> None:
    at = replace(SOURCE, snapshot=TIME)
    mark = plan(at, MIB, None, 2 * MIB, {}, {}).mark
    made_for_it = replace(mark, temporary=True)
    for found, source in ((mark, at), (made_for_it, SOURCE), (made_for_it, at)):
        check_resumed(found, source, TARGET, None)
        check_resumed(found, source, TARGET, 2 * MIB)
    for found, source in ((mark, SOURCE), (made_for_it, DiskAddress.parse("mystore/disks/dat"))):
        with pytest.raises(DyskError, match="exists already: it is an unfinished clone of"):
            check_resumed(found, source, TARGET, None)
    with pytest.raises(DyskError, match="unfinished clone already, of 2MiB"):
        check_resumed(mark, at, TARGET, 3 * MIB)


def test_a_disk_is_no_clone_of_itself() -> None:
    check_names(SOURCE, TARGET)
    for source in (SOURCE, replace(SOURCE, snapshot=TIME)):
        with pytest.raises(UsageError, match="clone of itself"):
            check_names(source, SOURCE)
    with pytest.raises(UsageError, match="cannot be a snapshot"):
        check_names(SOURCE, replace(TARGET, snapshot=TIME))


# What is left to copy.


def spans(*pages: tuple[int, int]) -> list[tuple[int, int]]:
    return [(first * 512, (last - first) * 512) for first, last in pages]


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8),
)
def test_what_is_missing_is_what_is_wanted_and_not_there(
    have: list[tuple[int, int]], wanted: list[tuple[int, int]]
) -> None:
    there, all_ = ({page for first, count in given for page in range(first, first + count)} for given in (have, wanted))
    first, second = (bounded(spans(*((page, page + 1) for page in sorted(pages)))) for pages in (there, all_))
    missing = missing_in(first, second)
    pages = [page for offset, length in missing for page in range(offset // 512, (offset + length) // 512)]
    assert pages == sorted(all_ - there)


def test_a_list_that_is_too_long_covers_the_same_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blobfuse_dysk.disks.pagecopy._MOST_RANGES", 10)
    ranges = [(page * 1024, 512) for page in range(100)]
    found = bounded(iter(ranges))
    assert len(found) <= 10
    assert missing_in(found, ranges) == []


def test_a_request_copies_at_most_four_mib() -> None:
    assert list(pieces_of([(512, 9 * MIB), (100 * MIB, 512)])) == [
        (512, MOST),
        (512 + 4 * MIB, MOST),
        (512 + 8 * MIB, MIB),
        (100 * MIB, 512),
    ]


# How a source is named.


def resolved(kind: str, **secrets: str) -> tuple[DiskAddress, Credential]:
    token = Token("the-token", 4e9) if kind == "token" else None
    return (
        replace(SOURCE, snapshot=TIME, endpoint=Endpoint.of_account("mystore")),
        Credential("mystore", Proof(kind, "a test", **secrets), token=token),  # type: ignore[arg-type]
    )


FAR = Endpoint.of_account("farstore")
URL = "https://mystore.blob.core.windows.net/disks/data?snapshot=2026-01-31T12%3A00%3A00.0000000Z"


async def test_a_key_stays_here_and_a_signature_is_sent() -> None:
    headers = await CopySource(*resolved("key", account_key=KEY), FAR, own_account=False).headers()
    assert list(headers) == ["x-ms-copy-source"]
    url, _, sas = headers["x-ms-copy-source"].partition("&")
    assert url == URL
    assert KEY not in sas
    for word in ("sr=bs", "sp=r", "spr=https", "sig="):
        assert word in sas


async def test_a_source_of_the_same_account_needs_no_proof_but_a_sas() -> None:
    assert await CopySource(*resolved("key", account_key=KEY), FAR, own_account=True).headers() == {
        "x-ms-copy-source": URL
    }
    for own in (True, False):
        headers = await CopySource(*resolved("sas", sas="sp=r&sig=x"), FAR, own_account=own).headers()
        assert headers == {"x-ms-copy-source": f"{URL}&sp=r&sig=x"}


async def test_a_token_goes_beside_the_url() -> None:
    assert await CopySource(*resolved("token"), FAR, own_account=False).headers() == {
        "x-ms-copy-source": URL,
        "x-ms-copy-source-authorization": "Bearer the-token",
    }


async def test_what_proves_the_right_to_read_is_not_sent_unencrypted() -> None:
    plain = Endpoint.parse("http://farstore.example.org")
    for kind, secrets in (("key", {"account_key": KEY}), ("sas", {"sas": "sp=r&sig=x"}), ("token", {})):
        with pytest.raises(UsageError, match="plain HTTP"):
            CopySource(*resolved(kind, **secrets), plain, own_account=False)
