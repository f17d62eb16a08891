"""kubernetes/csi/: codes, sizes, requests, lists, locks, and the socket's path, each by itself."""

from __future__ import annotations

import errno
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from blobfuse_dysk import errors
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import DeviceError, DyskError, Kind, NotFoundError, ServiceError, StoreError, UsageError
from blobfuse_dysk.kubernetes.csi import requests
from blobfuse_dysk.kubernetes.csi.capacity import DEFAULT_SIZE, fits, size_for
from blobfuse_dysk.kubernetes.csi.locks import VolumeLocks
from blobfuse_dysk.kubernetes.csi.paging import pieces
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from blobfuse_dysk.kubernetes.csi.socketpath import claimed, parse_endpoint
from blobfuse_dysk.kubernetes.csi.status import MOST_LINE, CallError, code_of, line_of

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), StatusCode.INVALID_ARGUMENT),
        (errors.CredentialError("x"), StatusCode.UNAUTHENTICATED),
        (NotFoundError("x"), StatusCode.NOT_FOUND),
        (errors.LeasedError("x"), StatusCode.FAILED_PRECONDITION),
        (errors.AttachedError("x"), StatusCode.FAILED_PRECONDITION),
        (errors.BusyError("x"), StatusCode.FAILED_PRECONDITION),
        (DeviceError("x"), StatusCode.INTERNAL),
        (errors.TransportError("x", sent=True), StatusCode.UNAVAILABLE),
        (errors.GatewayError("x", status=502), StatusCode.UNAVAILABLE),
        (ServiceError("x", status=503, code="ServerBusy"), StatusCode.UNAVAILABLE),
        (ServiceError("x", status=403, code="AuthenticationFailed"), StatusCode.UNAUTHENTICATED),
        (ServiceError("x", status=403, code="AuthorizationFailure"), StatusCode.PERMISSION_DENIED),
        (ServiceError("x", status=409, code="SnapshotCountExceeded"), StatusCode.RESOURCE_EXHAUSTED),
        (ServiceError("x", status=409, code="BlobAlreadyExists"), StatusCode.ALREADY_EXISTS),
        (ServiceError("x", status=418), StatusCode.INTERNAL),
        (StoreError("x", Kind.DENIED), StatusCode.PERMISSION_DENIED),
        (StoreError("x", Kind.UNREACHABLE), StatusCode.UNAVAILABLE),
        (StoreError("x", Kind.FENCED), StatusCode.FAILED_PRECONDITION),
        (DyskError("x"), StatusCode.FAILED_PRECONDITION),
        (errors.LaterError("x"), StatusCode.ABORTED),
        (errors.LossError("x"), StatusCode.DATA_LOSS),
        (CallError(StatusCode.OUT_OF_RANGE, "x"), StatusCode.OUT_OF_RANGE),
        (OSError(errno.ENOSPC, "no space"), StatusCode.RESOURCE_EXHAUSTED),
        (OSError(errno.EIO, "io"), StatusCode.INTERNAL),
        (ZeroDivisionError("secret"), StatusCode.INTERNAL),
    ],
)
def test_each_error_has_its_code_and_one_line(error: Exception, code: StatusCode) -> None:
    assert code_of(error) is code
    assert "\n" not in line_of(error)
    assert "secret" not in line_of(error)


def test_every_kind_of_error_is_in_the_table() -> None:
    """A new subclass of DyskError is to be thought about; INTERNAL is for what broke beneath: devices, and copies."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DyskError)]
    for kind in set(kinds) - {DeviceError, errors.FailedCopyError}:
        given: dict[str, Any] = {"status": 404, "sent": True}
        made = kind("x", Kind.GONE) if kind is StoreError else _made(kind, given)
        assert code_of(made) is not StatusCode.INTERNAL, kind


def _made(kind: type[DyskError], given: dict[str, Any]) -> DyskError:
    return kind("x", **{name: value for name, value in given.items() if name in kind.FIELDS})


def test_a_line_is_not_longer_than_an_event_takes() -> None:
    assert len(line_of(UsageError("x" * 10_000))) == MOST_LINE + 3


def test_the_remedy_for_a_leased_disk_is_not_one_of_the_command_line() -> None:
    error = errors.LeasedError("disk a is leased by node b", remedy="use --break-lease")
    assert line_of(error) == "disk a is leased by node b: it is free once that has let go of it"


@pytest.mark.parametrize(
    ("required", "limit", "vhd", "size"),
    [
        (1, 0, False, MIB),
        (MIB, 0, False, MIB),
        (MIB + 1, 0, False, 2 * MIB),
        (32 * GIB, 0, True, 32 * GIB),
        (32 * GIB, 32 * GIB, False, 32 * GIB),
        (0, 0, False, DEFAULT_SIZE),
        (0, 5 * MIB + 7, False, 5 * MIB),
        (8 * TIB, 0, False, 8 * TIB),
        (8 * TIB - MIB, 0, True, 8 * TIB - MIB),
    ],
)
def test_sizes_are_whole_mebibytes_within_what_was_asked(required: int, limit: int, vhd: bool, size: int) -> None:
    asked = pb.CapacityRange(required_bytes=required, limit_bytes=limit)
    assert size_for(asked, vhd=vhd) == size
    assert fits(size, asked)


@pytest.mark.parametrize(
    ("required", "limit", "vhd", "least"),
    [
        (9 * TIB, 0, False, 0),
        (8 * TIB, 0, True, 0),
        (MIB + 1, MIB + 2, False, 0),
        (0, MIB - 1, False, 0),
        (GIB, 0, False, GIB + 512),
        (0, GIB, False, 2 * GIB),
        (1 << 62, 0, False, 0),
    ],
)
def test_sizes_that_cannot_be_are_out_of_range(required: int, limit: int, vhd: bool, least: int) -> None:
    with pytest.raises(CallError) as caught:
        size_for(pb.CapacityRange(required_bytes=required, limit_bytes=limit), vhd=vhd, least=least)
    assert caught.value.code is StatusCode.OUT_OF_RANGE


def test_what_is_made_from_a_source_is_as_large_without_a_wish() -> None:
    assert size_for(pb.CapacityRange(), vhd=False, least=3 * GIB) == 3 * GIB


CAPABILITY = pb.VolumeCapability(
    mount=pb.VolumeCapability.MountVolume(),
    access_mode=pb.VolumeCapability.AccessMode(mode=pb.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (pb.CreateVolumeRequest(volume_capabilities=[CAPABILITY]), "no name"),
        (pb.CreateVolumeRequest(name="a"), "no volume_capabilities"),
        (pb.CreateVolumeRequest(name="a" * 129, volume_capabilities=[CAPABILITY]), "name has 129 bytes"),
        (pb.CreateVolumeRequest(name="ü" * 65, volume_capabilities=[CAPABILITY]), "name has 130 bytes"),
        (pb.CreateVolumeRequest(name="a\0", volume_capabilities=[CAPABILITY]), "control character"),
        (pb.CreateVolumeRequest(name="a", volume_capabilities=[pb.VolumeCapability()]), "neither of a mount nor"),
        (
            pb.CreateVolumeRequest(
                name="a", volume_capabilities=[pb.VolumeCapability(block=pb.VolumeCapability.BlockVolume())]
            ),
            "no access mode",
        ),
        (pb.DeleteVolumeRequest(), "no volume_id"),
        (pb.ControllerExpandVolumeRequest(volume_id="a"), "no capacity_range"),
        (pb.ListVolumesRequest(max_entries=-1), "negative"),
        (pb.NodeStageVolumeRequest(volume_id="a", staging_target_path="/a"), "no volume_capability"),
        (pb.NodePublishVolumeRequest(volume_id="a", volume_capability=CAPABILITY), "no target_path"),
        (pb.GetMetadataDeltaRequest(base_snapshot_id="a"), "no target_snapshot_id"),
    ],
)
def test_a_request_without_what_it_must_have_is_refused(request_: Any, told: str) -> None:
    with pytest.raises(CallError) as caught:
        requests.check(request_)
    assert caught.value.code is StatusCode.INVALID_ARGUMENT
    assert told in str(caught.value)


def test_limits_below_what_is_required_are_out_of_range() -> None:
    with pytest.raises(CallError) as caught:
        requests.check(
            pb.CreateVolumeRequest(
                name="a",
                volume_capabilities=[CAPABILITY],
                capacity_range=pb.CapacityRange(required_bytes=2, limit_bytes=1),
            )
        )
    assert caught.value.code is StatusCode.OUT_OF_RANGE


def test_what_changes_something_is_locked_and_what_looks_is_not() -> None:
    assert requests.locked(pb.DeleteVolumeRequest(volume_id="a")) == ("a",)
    assert requests.locked(pb.CreateVolumeRequest(name="n")) == ("n",)
    assert requests.locked(pb.CreateSnapshotRequest(source_volume_id="a", name="n")) == ("a",)
    assert requests.locked(pb.NodeUnpublishVolumeRequest(volume_id="a")) == ("a",)
    for looking in (
        pb.ControllerGetVolumeRequest(volume_id="a"),
        pb.ValidateVolumeCapabilitiesRequest(volume_id="a"),
        pb.NodeGetVolumeStatsRequest(volume_id="a"),
        pb.GetMetadataAllocatedRequest(snapshot_id="a"),
    ):
        assert requests.locked(looking) == ()


def test_every_call_of_the_specification_is_in_the_tables_or_has_nothing_that_is_required() -> None:
    free = ("Probe", "GetPlugin", "List", "GetCap", "ControllerGetCap", "NodeGetCap", "NodeGetInfo", "NodeGetStorage")
    inputs = {m.input_type.name for s in pb.DESCRIPTOR.services_by_name.values() for m in s.methods}
    left = {name for name in inputs - set(requests._REQUIRED) if not name.startswith(free)}
    assert left == {"ControllerListVolumeHealthRequest"}


def test_a_second_call_for_a_volume_is_turned_away() -> None:
    locks = VolumeLocks()
    with locks.held("a"):
        with locks.held("b", ""), pytest.raises(CallError) as caught, locks.held("c", "a"):
            pass
        assert caught.value.code is StatusCode.ABORTED
        with locks.held("c"):  # which that one did not keep
            pass
    with locks.held("a"):
        pass


FIRST, SECOND = (DiskAddress("mystore", name, "*") for name in ("first", "second"))


def _ask(container: DiskAddress, marker: str, most: int) -> tuple[list[str], str]:
    """Ten names in each container, of which a request looks at three at most, and every other one does not count."""
    if container is SECOND and marker == "0":
        raise UsageError("no marker")
    at = int(marker or 0)
    until = min(at + most, at + 3, 10)
    names = [f"{container.container}{number}" for number in range(at, until) if number % 2]
    return names, str(until) if until < 10 else ""


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, 100])
def test_a_list_in_pieces_is_the_whole_list(most: int) -> None:
    every: list[str] = []
    token = ""
    for _ in range(50):
        found, token = pieces([FIRST, SECOND], token, most, _ask)
        assert len(found) == most or not most or not token
        every += found
        if not token:
            break
    assert every == [f"{where}{number}" for where in ("first", "second") for number in (1, 3, 5, 7, 9)]


@pytest.mark.parametrize("token", ["invalid-token", "2:", "1:0", "-1:", "x:1"])
def test_a_token_of_another_list_is_aborted(token: str) -> None:
    with pytest.raises(CallError) as caught:
        pieces([FIRST, SECOND], token, 1, _ask)
    assert caught.value.code is StatusCode.ABORTED


def test_a_container_that_is_not_there_has_nothing_in_it() -> None:
    def ask(container: DiskAddress, marker: str, most: int) -> tuple[list[str], str]:
        if container is FIRST:
            raise NotFoundError("no container", missing="container")
        return ["a"], ""

    assert pieces([FIRST, SECOND], "", 0, ask) == (["a"], "")


@pytest.mark.parametrize("text", ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"])
def test_endpoints_as_side_cars_write_them(text: str) -> None:
    assert parse_endpoint(text) == Path("/csi/csi.sock")


@pytest.mark.parametrize("text", ["", "tcp://0.0.0.0:1", "unix://csi.sock", "csi.sock", f"unix:///{'x' * 107}"])
def test_endpoints_that_are_no_path_of_a_socket(text: str) -> None:
    with pytest.raises(UsageError):
        parse_endpoint(text)


def test_a_socket_that_nobody_answers_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with claimed(path):
        assert not path.exists()
        with pytest.raises(DeviceError, match="another dysk-csi serves"), claimed(path):
            pass
    with claimed(path):
        pass


def test_a_socket_that_answers_and_what_is_no_socket_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "csi.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(DeviceError, match="somebody serves"), claimed(path):
            pass
        assert stat.S_ISSOCK(path.stat().st_mode)
    path.unlink()
    path.write_text("precious")
    with pytest.raises(UsageError, match="is no socket"), claimed(path):
        pass
    assert path.read_text() == "precious"
    with pytest.raises(DeviceError, match="cannot be made"), claimed(tmp_path / "missing" / "csi.sock"):
        pass
