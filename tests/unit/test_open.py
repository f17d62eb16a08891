"""Which blobs can be disks, and what went wrong while attaching, in the words of who typed the command."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blobfuse_dysk.azure.marks import CloneMark
from blobfuse_dysk.azure.properties import BlobProperties, CopyState
from blobfuse_dysk.disk import MAX_SIZE, DiskAddress
from blobfuse_dysk.errors import DyskError, Kind, NotFoundError, ServiceError, StoreError, UsageError
from blobfuse_dysk.store.open import check_blob, errors_for_people

DISK = DiskAddress.parse("mystore/disks/data")


def blob(size: int, blob_type: str = "PageBlob") -> BlobProperties:
    return BlobProperties(size, blob_type, 0, "available", {}, "", "")


@pytest.mark.parametrize("size", [512, 1 << 30, MAX_SIZE])
def test_a_page_blob_of_whole_pages_can_be_a_disk(size: int) -> None:
    check_blob(blob(size), DISK)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (blob(1 << 20, "BlockBlob"), "is a block blob, not a page blob"),
        (blob(0), "has 0 bytes"),
        (blob(511), "has 511 bytes"),
        (blob(1025), "has 1025 bytes"),
        (blob(MAX_SIZE + 512), "above the 8 TiB"),
    ],
)
def test_what_can_be_no_disk(found: BlobProperties, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_blob(found, DISK)


@pytest.mark.parametrize(
    ("copy", "says"),
    [
        (CopyState("pending", 3 << 30, 8 << 30, ""), "is still being copied to: 3GiB of 8GiB (37 %) have come"),
        (CopyState("pending", None, None, ""), "is still being copied to: wait for"),
        (
            CopyState("failed", 512, 1024, "404 BlobNotFound"),
            "it is failed: 512B of 1KiB (50 %) have come (404 BlobNotFound)",
        ),
        (
            CopyState("aborted", 0, 0, ""),
            "the copy to mystore/disks/data was not completed, it is aborted: copy it again",
        ),
        (CopyState("of tomorrow", None, None, ""), "it is of tomorrow"),
    ],
)
def test_a_blob_that_is_being_copied_to_is_no_disk_yet(copy: CopyState, says: str) -> None:
    with pytest.raises(DyskError) as caught:
        check_blob(replace(blob(0 if copy.status == "aborted" else 1 << 20), copy=copy), DISK)
    assert says in caught.value.line()


def test_the_destination_of_an_incremental_copy_is_its_snapshots() -> None:
    found = replace(blob(1 << 20), copy=CopyState("success", 1, 1, "", incremental=True))
    with pytest.raises(UsageError, match="incremental copy"):
        check_blob(found, DISK)
    check_blob(found, replace(DISK, snapshot="2026-01-31T12:00:00.0000000Z"))


def test_a_copy_that_is_complete_is_a_disk() -> None:
    check_blob(replace(blob(1 << 20), copy=CopyState("success", 1 << 20, 1 << 20, "")), DISK)


def said(error: StoreError, cause: Exception | None) -> DyskError:
    with pytest.raises(DyskError) as caught, errors_for_people(DISK, None, read_only=False):
        raise error from cause
    return caught.value


def test_a_refusal_is_explained() -> None:
    error = StoreError("asking for it", Kind.GONE)
    assert isinstance(said(error, ServiceError("no", status=404, code="BlobNotFound")), NotFoundError)


def test_what_nobody_knows_better_stays_as_it_is() -> None:
    error = StoreError("asking for it", Kind.TIMEOUT)
    assert said(error, None) is error


def test_that_another_node_has_the_disk_is_not_said_as_the_refusal_that_brought_it_to_light() -> None:
    error = StoreError("another node has it", Kind.FENCED)
    assert said(error, ServiceError("no", status=404, code="BlobNotFound")) is error


@pytest.mark.parametrize("status", ["pending", "failed"])
def test_a_clone_that_the_service_copies_names_the_command_for_it(status: str) -> None:
    mark = CloneMark("mystore/disks/source", False, "0" * 32, 1 << 20, 1 << 20, False)
    found = replace(blob(1 << 20), copy=CopyState(status, 0, 1 << 20, ""), metadata=mark.origin())
    with pytest.raises(DyskError, match="have come") as caught:
        check_blob(found, DISK)
    assert "dyskctl clone mystore/disks/source mystore/disks/data" in caught.value.line()
    assert "az " not in caught.value.line()
