"""A machine for dyskctl's tests: the attachment layer and the account are replaced at their module boundaries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from blobfuse_dysk import attachment, live
from blobfuse_dysk.azure import deletion, management
from blobfuse_dysk.azure.credential import resolve
from blobfuse_dysk.azure.credential.credential import Credential, Proof
from blobfuse_dysk.azure.wire import BlobProperties
from blobfuse_dysk.cli.main import main
from blobfuse_dysk.disk import DiskAddress, Endpoint
from blobfuse_dysk.disks import look
from blobfuse_dysk.errors import DyskError, NotFoundError
from blobfuse_dysk.options import AttachOptions

KEY = "a2V5a2V5a2V5"  # no account's


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of dyskctl left behind."""

    code: int
    out: str
    err: str


@dataclass
class Machine:
    """What there is: attachments here, disks (their sizes) in the account. calls: what the layers below were asked."""

    capsys: pytest.CaptureFixture[str]
    attached: dict[str, attachment.Attachment] = field(default_factory=dict)
    disks: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    failure: Exception | BaseException | None = None
    rows: list[management.DiskRow] = field(default_factory=list)
    secrets: list[tuple[str | None, str | None]] = field(default_factory=list)
    counted: dict[str, object] = field(default_factory=dict)  # in status

    def run(self, *words: str) -> Outcome:
        """Run dyskctl in this process."""
        code = main(list(words))
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    def attach(self, disk: DiskAddress | str, options: AttachOptions) -> attachment.Attachment:
        assert isinstance(disk, DiskAddress)
        self._note("attach", str(disk), options)
        self.secrets.append((disk.account_key, disk.sas))
        if str(disk) not in self.disks:
            raise NotFoundError(f"disk {disk} does not exist", remedy="create it with dyskctl create")
        found = replace(
            EXAMPLE,
            name=options.name or "data",
            disk=str(disk),
            size=self.disks[str(disk)],
            read_only=options.read_only,
        )
        self.attached[found.name] = found
        return found

    def detach(
        self, target: str, *, force: bool = False, lose_data: bool = False, timeout_s: float | None = None
    ) -> None:
        self._note("detach", target, force, lose_data)
        del self.attached[self.get(target).name]

    def attachments(self) -> list[attachment.Attachment]:
        return list(self.attached.values())

    def get(self, target: str) -> attachment.Attachment:
        for found in self.attached.values():
            if target in (found.name, found.device, found.disk):
                return found
        raise NotFoundError(f"{target} is not attached here", remedy="see dyskctl list")

    def status(self, target: str) -> dict[str, object]:
        name = self.get(target).name
        return {"name": name, "state": "attached", "requests": {"read": 5, "write": 0}, "warnings": [], **self.counted}

    def upgrade(self, target: str) -> live.Upgrade:
        self._note("upgrade", target)
        return live.Upgrade(self.get(target).name, "0.1.0", "0.2.0")

    def change(self, target: str, **settings: float | None) -> list[str]:
        self._note("change", target, settings)
        return []

    def reload_credential(
        self, target: str, credentials: str | None = None, *, text: str | None = None
    ) -> dict[str, object]:
        self._note("reload", target, credentials if text is None else {"text": text})
        return {"what": "SAS from a test", "expires": "2026-01-31T12:00:00Z", "expires_in_s": 3600.0}

    def create_disk(
        self, address: DiskAddress, credential: Credential, size: int, footer: bytes | None = None, **options: object
    ) -> None:
        self._note("create", str(address), size, footer)
        if str(address) in self.disks:
            raise DyskError(f"disk {address} exists already")
        self.disks[str(address)] = size

    def delete_disk(self, address: DiskAddress, credential: Credential, **options: object) -> None:
        self._note("delete", str(address), options)
        del self.disks[str(address)]

    def list_disks(
        self, address: DiskAddress, credential: Credential, *, allocated: bool = False
    ) -> list[management.DiskRow]:
        self._note("list", f"{address.account}/{address.container}", allocated)
        found = [row for row in self.rows if row.disk.startswith(f"{address.account}/{address.container}/")]
        return found if allocated else [replace(row, allocated=None) for row in found]

    def blob_properties(self, address: DiskAddress, credential: Credential) -> BlobProperties:
        self._note("properties", str(address))
        if str(address) not in self.disks:
            raise NotFoundError(f"disk {address} does not exist", missing="disk")
        return BlobProperties(self.disks[str(address)], "PageBlob", 0, "available", {}, "", "")

    def resolve(self, address: DiskAddress, options: AttachOptions) -> tuple[DiskAddress, Credential]:
        self.secrets.append((address.account_key, address.sas))
        credential = Credential(address.account, Proof("key", "the test", account_key=KEY))
        return replace(address, endpoint=Endpoint.of_account(address.account)), credential

    def _note(self, *call: object) -> None:
        self.calls.append(call)
        if self.failure:
            raise self.failure


EXAMPLE = attachment.Attachment(
    name="data",
    device="/dev/null",  # its numbers are the same on every Linux
    disk="mystore/disks/data",
    size=32 << 30,
    read_only=False,
    state="attached",
    mountpoints=["/data"],
    lease={"id": "00112233-4455-6677-8899-aabbccddeeff", "epoch": 7, "seconds": 60.0},
    cache="none",
    vhd=False,
    since="2026-01-31T12:00:00Z",
    sector_size=512,
    link="/dev/dysk/data",
    by_blob="/dev/dysk/by-blob/mystore/disks/data",
    endpoint="https://mystore.blob.core.windows.net",
    detail=None,
    restarts=0,
    partitions=[],
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Machine:
    """A machine with nothing attached and an account without disks."""
    fake = Machine(capsys)
    for name in ("attach", "detach", "attachments", "get", "status"):
        monkeypatch.setattr(attachment, name, getattr(fake, name))
    for name in ("upgrade", "change", "reload_credential"):
        monkeypatch.setattr(live, name, getattr(fake, name))
    for name in ("create_disk", "list_disks"):
        monkeypatch.setattr(management, name, getattr(fake, name))
    monkeypatch.setattr(deletion, "delete_disk", fake.delete_disk)
    monkeypatch.setattr(look, "blob_properties", fake.blob_properties)
    monkeypatch.setattr(resolve, "resolve", fake.resolve)
    return fake
