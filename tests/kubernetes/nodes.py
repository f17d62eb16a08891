"""A node plugin as a process of its own, and a kubelet's calls of it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb
from tests.leaks import RunDirs

__all__ = ["KEY", "Account", "CallFailed", "Plugin", "Pod", "capability", "mode"]

Mode = pb.VolumeCapability.AccessMode
START_S, CALL_S = 60.0, 110.0


class Account:
    """What a volume's secret has."""

    endpoint: str
    account: str
    key: str


KEY = "accountkey"


class CallFailed(Exception):
    """A call that was refused: the code's name, and the line that kubectl describe shows."""

    def __init__(self, code: str, line: str) -> None:
        super().__init__(f"{code}: {line}")
        self.code = code
        self.line = line


def mode(name: str) -> int:
    return int(Mode.Mode.Value(name))


def capability(
    access: str = "SINGLE_NODE_WRITER", *, block: bool = False, fstype: str = "", flags: Sequence[str] = ()
) -> pb.VolumeCapability:
    """What a kubelet says of how a volume is to be used."""
    found = pb.VolumeCapability()
    found.access_mode.mode = mode(access)  # type: ignore[assignment]
    if block:
        found.block.SetInParent()
    else:
        found.mount.fs_type = fstype
        found.mount.SetInParent()
        found.mount.mount_flags.extend(flags)
    return found


class Plugin:
    """dysk-csi --mode node, in the environment of a test's directories, and its client."""

    def __init__(self, dirs: RunDirs, name: str = "node-a", words: Sequence[str] = ()) -> None:
        """words: what its command line begins with, such as nsenter."""
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("AZURE_")},
            **dirs.environment,
            "DYSK_NODE": name,
        }
        self.socket = dirs.root / f"{name}.sock"
        self.log = dirs.root / f"{name}.log"
        self._words = list(words)
        self.process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    def start(self, wrapper: Sequence[str] = ()) -> None:
        """Start it, and wait until it answers. wrapper: a program that runs it, in place of Python."""
        program = list(wrapper) or [sys.executable, "-m", "blobfuse_dysk.kubernetes.csi.main"]
        command = [*self._words, *program, "--mode", "node", "--endpoint", f"unix://{self.socket}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        self._channel = grpc.insecure_channel(f"unix:{self.socket}")
        try:
            grpc.channel_ready_future(self._channel).result(timeout=START_S)
        except grpc.FutureTimeoutError:
            raise AssertionError(f"it does not answer: {self.log.read_text()}") from None

    def kill(self) -> None:
        """SIGKILL, as a node's kubelet never does and its kernel may."""
        assert self.process
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        if self._channel:
            self._channel.close()
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)

    def __enter__(self) -> Plugin:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def begin(self, method: str, **fields: Any) -> Any:
        """Send a call; the result is a future of gRPC's."""
        descriptor = pb.DESCRIPTOR.services_by_name["Node"].methods_by_name[method]
        request = GetMessageClass(descriptor.input_type)(**fields)
        assert self._channel
        call: Any = self._channel.unary_unary(
            f"/csi.v1.Node/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(descriptor.output_type).FromString,
        )
        return call.future(request, timeout=CALL_S, wait_for_ready=True)

    def call(self, method: str, **fields: Any) -> Any:
        """Raises CallFailed."""
        try:
            return self.begin(method, **fields).result()
        except grpc.RpcError as error:
            raise CallFailed(error.code().name, error.details() or "") from None


class Pod:
    """A kubelet's calls for one volume: where it is staged, and where its pods have it."""

    def __init__(
        self,
        plugin: Plugin,
        root: Path,
        disk: str,
        secrets: Mapping[str, str],
        *,
        how: pb.VolumeCapability | None = None,
        context: Mapping[str, str] | None = None,
        at_stage: bool = True,
        at_publish: bool = False,
    ) -> None:
        """at_stage, at_publish: which calls bring the secret."""
        self.plugin = plugin
        self.disk = disk
        self.secrets = dict(secrets)
        self.how = how or capability()
        self.context = dict(context or {})
        self.at_stage = at_stage
        self.at_publish = at_publish
        self.staged = root / "staged"
        self.staged.mkdir(parents=True, exist_ok=True)
        (root / "pods").mkdir(exist_ok=True)
        self._root = root

    def target(self, name: str = "one") -> Path:
        return self._root / "pods" / name

    def stage_fields(self) -> dict[str, Any]:
        return {
            "volume_id": self.disk,
            "staging_target_path": str(self.staged),
            "volume_capability": self.how,
            "secrets": self.secrets if self.at_stage else {},
            "volume_context": self.context,
        }

    def publish_fields(self, name: str = "one", *, readonly: bool = False) -> dict[str, Any]:
        fields = self.stage_fields()
        fields["secrets"] = self.secrets if self.at_publish else {}
        return {**fields, "target_path": str(self.target(name)), "readonly": readonly}

    def stage(self) -> None:
        self.plugin.call("NodeStageVolume", **self.stage_fields())

    def publish(self, name: str = "one", *, readonly: bool = False) -> Path:
        self.plugin.call("NodePublishVolume", **self.publish_fields(name, readonly=readonly))
        return self.target(name)

    def unpublish(self, name: str = "one") -> None:
        self.plugin.call("NodeUnpublishVolume", volume_id=self.disk, target_path=str(self.target(name)))

    def unstage(self) -> None:
        self.plugin.call("NodeUnstageVolume", volume_id=self.disk, staging_target_path=str(self.staged))

    def up(self) -> Path:
        """Stage and publish."""
        self.stage()
        return self.publish()

    def down(self, *names: str) -> None:
        """Unpublish and unstage."""
        for name in names or ("one",):
            self.unpublish(name)
        self.unstage()

    def stats(self, name: str = "one") -> pb.NodeGetVolumeStatsResponse:
        found = self.plugin.call(
            "NodeGetVolumeStats",
            volume_id=self.disk,
            volume_path=str(self.target(name)),
            staging_target_path=str(self.staged),
        )
        assert isinstance(found, pb.NodeGetVolumeStatsResponse)
        return found


@contextlib.contextmanager
def refused(code: str, *says: str) -> Iterator[None]:
    """The call inside ends with this code, and a line that says so."""
    try:
        yield
    except CallFailed as error:
        assert error.code == code, error
        assert "\n" not in error.line
        for each in says:
            assert each in error.line, error
    else:
        raise AssertionError(f"it was not refused with {code}")


def until(condition: Any, what: str, limit_s: float = 20.0) -> None:
    """Poll for a condition; fail the test if it does not come true."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {limit_s:g} s"
        time.sleep(0.02)
