"""What the server stores: accounts, containers, blobs and their snapshots; in memory or under a directory.

Under a directory every change of anything but page content is written to `state.json` at once (renamed into
place), and page content lies in one sparse file a blob, so that a server killed at any moment comes back as it was.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .answers import Refusal, http_date, iso_time, next_etag
from .leases import Lease
from .pages import Pages

__all__ = ["Blob", "Container", "State"]

# Headers a client sets on Put Blob and Set Blob Properties, and the header a read gives them back in.
CONTENT_HEADERS = {
    b"x-ms-blob-content-type": "Content-Type",
    b"x-ms-blob-content-encoding": "Content-Encoding",
    b"x-ms-blob-content-language": "Content-Language",
    b"x-ms-blob-content-md5": "Content-MD5",
    b"x-ms-blob-cache-control": "Cache-Control",
    b"x-ms-blob-content-disposition": "Content-Disposition",
}


class Blob:
    """A page blob, a block blob (kept only so that it can be refused), or a snapshot of one of these."""

    def __init__(self, name: str, kind: str, now: float, pages: Pages | None = None, content: bytes = b"") -> None:
        self.name = name
        self.kind = kind  # "PageBlob" or "BlockBlob"
        self.pages = pages
        self.content = content
        self.sequence_number = 0
        self.metadata: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.content_headers: dict[str, str] = {"Content-Type": "application/octet-stream"}
        self.copy: dict[str, str] = {}  # x-ms-copy-* of the copy that made it, or is to
        self.copied_from: Blob | None = None  # what a pending copy brings; gone when the server ends
        self.tier = ""  # that was set; "" for none
        self.tier_changed = 0.0
        self.incremental: dict[str, str] = {}  # of an incremental copy: whose, and the last snapshot of that
        self.lease = Lease()
        self.created = now
        self.modified = now
        self.etag = next_etag()
        self.generation = self.etag  # the same until Put Blob or a copy makes the blob anew; a snapshot has its blob's
        self.snapshot: str | None = None
        self.snapshots: dict[str, Blob] = {}

    @property
    def size(self) -> int:
        """Bytes."""
        return self.pages.size if self.pages is not None else len(self.content)

    @property
    def copy_is_pending(self) -> bool:
        """Whether content is still to come; until then it reads as zeros, and nobody may modify it."""
        return self.copy.get("x-ms-copy-status") == "pending"

    def need_pages(self) -> Pages:
        """The pages; Refusal InvalidBlobType when this is no page blob."""
        if self.pages is None:
            raise Refusal("InvalidBlobType")
        return self.pages

    def touch(self, now: float) -> None:
        """A change happened: new ETag and Last-Modified."""
        self.etag = next_etag()
        self.modified = now

    def version_headers(self) -> dict[str, str]:
        """ETag and Last-Modified."""
        return {"ETag": self.etag, "Last-Modified": http_date(self.modified)}


class Container:
    """A container and its blobs by name."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.metadata: dict[str, str] = {}
        self.blobs: dict[str, Blob] = {}
        self.policies: dict[str, dict[str, str]] = {}  # stored access policies, see sas.Policies
        self.modified = now
        self.etag = next_etag()

    def touch(self, now: float) -> None:
        """A change happened to the container itself: new ETag and Last-Modified."""
        self.etag = next_etag()
        self.modified = now

    def version_headers(self) -> dict[str, str]:
        """ETag and Last-Modified."""
        return {"ETag": self.etag, "Last-Modified": http_date(self.modified)}


class State:
    """All accounts. `directory` None keeps everything in memory."""

    def __init__(self, accounts: list[str], directory: Path | None = None) -> None:
        self.directory = directory
        self.accounts: dict[str, dict[str, Container]] = {name: {} for name in accounts}
        self._file_numbers = itertools.count(1)
        self._last_snapshot = 0.0
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            self._load()

    def container(self, account: str, name: str) -> Container:
        """The container, or Refusal ContainerNotFound."""
        found = self.accounts[account].get(name)
        if found is None:
            raise Refusal("ContainerNotFound")
        return found

    def blob(self, account: str, container: str, name: str, snapshot: str | None = None) -> Blob:
        """The blob or its snapshot, or Refusal ContainerNotFound, BlobNotFound."""
        found = self.container(account, container).blobs.get(name)
        if found is not None and snapshot is not None:
            found = found.snapshots.get(snapshot)
        if found is None:
            raise Refusal("BlobNotFound")
        return found

    def new_pages(self, size: int) -> Pages:
        """Storage for a new page blob."""
        return Pages(size, self.new_path())

    def put(self, container: Container, blob: Blob) -> None:
        """Add a blob, in place of one of the same name; the old one's snapshots stay, as the service keeps them."""
        old = container.blobs.get(blob.name)
        if old is not None:
            blob.snapshots, old.snapshots = old.snapshots, {}
            blob.created = old.created
            blob.lease = old.lease
            _discard(old)
        container.blobs[blob.name] = blob

    def take_snapshot(self, blob: Blob, now: float, metadata: dict[str, str]) -> Blob:
        """A read-only copy; metadata empty means the blob's own. Names never repeat, even within 100 ns."""
        taken = max(now, self._last_snapshot + 1e-6)
        self._last_snapshot = taken
        pages = blob.pages.copy(self.new_path()) if blob.pages is not None else None
        twin = Blob(blob.name, blob.kind, now, pages, blob.content)
        twin.sequence_number = blob.sequence_number
        twin.metadata = metadata or dict(blob.metadata)
        twin.tags = dict(blob.tags)
        twin.content_headers = dict(blob.content_headers)
        twin.created, twin.modified, twin.etag = blob.created, blob.modified, blob.etag
        twin.generation = blob.generation
        twin.snapshot = iso_time(taken)
        blob.snapshots[twin.snapshot] = twin
        return twin

    def remove(self, container: Container, blob: Blob) -> None:
        """Remove a blob with its snapshots, or one snapshot."""
        if blob.snapshot is not None:
            del container.blobs[blob.name].snapshots[blob.snapshot]
        else:
            del container.blobs[blob.name]
        _discard(blob)

    def remove_container(self, account: str, name: str) -> None:
        """Remove a container and everything in it."""
        for blob in list(self.container(account, name).blobs.values()):
            _discard(blob)
        del self.accounts[account][name]

    def save(self, now: float) -> None:
        """Write everything but page content to the directory, if there is one."""
        if self.directory is None:
            return
        saved = {
            account: {
                name: {
                    "metadata": container.metadata,
                    "modified": container.modified,
                    "etag": container.etag,
                    "policies": container.policies,
                    "blobs": [_blob_to_json(blob, now) for blob in container.blobs.values()],
                }
                for name, container in containers.items()
            }
            for account, containers in self.accounts.items()
        }
        temporary = self.directory / "state.json.new"
        temporary.write_text(json.dumps(saved))
        temporary.replace(self.directory / "state.json")

    def elapse_leases(self, seconds: float) -> None:
        """Let the time of every lease pass."""
        for containers in self.accounts.values():
            for container in containers.values():
                for blob in container.blobs.values():
                    blob.lease.elapse(seconds)

    def new_path(self) -> Path | None:
        """A file for the pages of a new blob; None: in memory."""
        if self.directory is None:
            return None
        for number in self._file_numbers:
            path = self.directory / f"{number}.pages"
            if not path.exists():
                return path
        raise AssertionError("count() ended")

    def _load(self) -> None:
        assert self.directory is not None
        path = self.directory / "state.json"
        if not path.exists():
            return
        for account, containers in json.loads(path.read_text()).items():
            kept = self.accounts.setdefault(account, {})
            for name, saved in containers.items():
                container = kept[name] = Container(name, saved["modified"])
                container.metadata, container.etag = saved["metadata"], saved["etag"]
                container.policies = saved["policies"]
                for blob in saved["blobs"]:
                    container.blobs[blob["name"]] = _blob_from_json(blob, self.directory)


def _discard(blob: Blob) -> None:
    for each in _with_snapshots(blob):
        if each.pages is not None:
            each.pages.remove()


def _with_snapshots(blob: Blob) -> Iterator[Blob]:
    yield blob
    yield from blob.snapshots.values()


_PLAIN = (
    "name",
    "kind",
    "sequence_number",
    "metadata",
    "tags",
    "content_headers",
    "copy",
    "incremental",
    "tier",
    "tier_changed",
    "created",
    "modified",
    "etag",
    "generation",
    "snapshot",
)


def _blob_to_json(blob: Blob, now: float) -> dict[str, Any]:
    saved: dict[str, Any] = {name: getattr(blob, name) for name in _PLAIN}
    saved["lease"] = blob.lease.to_json(now)
    saved["snapshots"] = [_blob_to_json(each, now) for each in blob.snapshots.values()]
    if blob.pages is None:
        saved["content"] = base64.b64encode(blob.content).decode()
    else:
        assert blob.pages.path is not None
        saved["pages"] = {"file": blob.pages.path.name, "size": blob.pages.size}
    return saved


def _blob_from_json(saved: dict[str, Any], directory: Path) -> Blob:
    pages = Pages(saved["pages"]["size"], directory / saved["pages"]["file"]) if "pages" in saved else None
    blob = Blob(saved["name"], saved["kind"], saved["created"], pages, base64.b64decode(saved.get("content", "")))
    for name in _PLAIN:
        setattr(blob, name, saved[name])
    blob.lease = Lease.from_json(saved["lease"])
    blob.snapshots = {each["snapshot"]: _blob_from_json(each, directory) for each in saved["snapshots"]}
    return blob
