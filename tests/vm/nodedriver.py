"""A Kubernetes node's driver in a machine that has no package of ours, and what stands for kubelet and container there.

The container is a service of systemd that sees an image (images.py) as its root, has a network of its own, and whose
processes die with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.vm.images import IN_IMAGE
from tests.vm.machine import Machine, VmError
from tests.vm.place import ACCOUNT, DISK, KEY, Place

__all__ = ["NodeDriver"]

_CALLS = Path(__file__).with_name("calls.py")
_PLUGIN = "/var/lib/kubelet/plugins/csi-dysk"
_SOCKET = f"{_PLUGIN}/csi.sock"
_STAGED, _PUBLISHED = "/var/lib/kubelet/staged", "/data"  # where tests/vm/load.py writes
_IMAGES = "/run/images"
_CALL_S = 300.0  # more than a kubelet has: the machine is emulated, and may have little of a processor
_START_S = 400.0  # a tree is copied and read, too


class NodeDriver:
    """The driver of one machine, whose second drive holds the images, and the one volume, `Place.new_disk`'s."""

    def __init__(self, place: Place, machine: Machine) -> None:
        self._place = place
        self._machine = machine
        self._python = ""

    def start(self, image: int) -> None:
        """Start the container, as a kubelet would; returns when the driver answers."""
        ask = self._machine.ask
        ask(f"mkdir -p {_IMAGES} && (mountpoint -q {_IMAGES} || mount -o ro /dev/vdb {_IMAGES})")
        ask(f"mkdir -p {_PLUGIN} {_STAGED}")
        root = f"{_IMAGES}/image-{image}"
        container = (
            f"-p RootDirectory={root} -p MountAPIVFS=yes -p PrivateNetwork=yes -E DYSK_NODE={self._machine.name}"
        )
        program = f"/{IN_IMAGE}/bin/dysk-node --mode=node --endpoint=unix://{_SOCKET}"
        ask(f"systemd-run --quiet --collect --unit=driver {container} {program}")
        self._python = f"{root}/{IN_IMAGE}/bin/python3"
        self.call(("NodeGetInfo", {}), limit_s=_START_S)

    def stop(self) -> None:
        """SIGTERM, and the rest of the container's processes with it: the pod was deleted."""
        self._machine.ask("systemctl stop driver.service")

    def kill(self) -> None:
        """SIGKILL of everything in the container."""
        self._machine.ask("systemctl kill --signal=KILL driver.service")
        gone = "systemctl is-active driver.service; true"
        self._place.await_("the driver's end", lambda: self._machine.ask(gone).strip() != "active", 30)

    def stage_and_publish(self) -> None:
        self.call(("NodeStageVolume", self._volume(staging_target_path=_STAGED)), ("NodePublishVolume", self._where()))

    def unpublish_and_unstage(self) -> None:
        self.call(
            ("NodeUnpublishVolume", {"volume_id": DISK, "target_path": _PUBLISHED}),
            ("NodeUnstageVolume", {"volume_id": DISK, "staging_target_path": _STAGED}),
        )

    def expand(self, size: int) -> None:
        """Grow the volume to `size` bytes where it is in use."""
        fields = {"volume_id": DISK, "volume_path": _PUBLISHED, "staging_target_path": _STAGED}
        self.call(("NodeExpandVolume", {**fields, "capacity_range": {"required_bytes": size}}))

    def condition(self) -> dict[str, Any]:
        """The volume's: abnormal, message."""
        fields = {"volume_id": DISK, "volume_path": _PUBLISHED, "staging_target_path": _STAGED}
        (answer,) = self.call(("NodeGetVolumeStats", fields))
        found: dict[str, Any] = answer["volumeCondition"]
        return found

    def call(self, *calls: tuple[str, dict[str, Any]], limit_s: float = _CALL_S) -> list[dict[str, Any]]:
        """Calls one after the other; VmError with the driver's own line if one is refused."""
        lines = "".join(f"{name} {json.dumps(fields)}\n" for name, fields in calls)
        self._machine.ask(f"cat >/root/calls.py <<'END_CALLS'\n{_CALLS.read_text()}END_CALLS")
        run = f"{self._python} -I /root/calls.py {_SOCKET} {limit_s} <<'END_LINES'\n{lines}END_LINES"
        try:
            output = self._machine.ask(run, timeout_s=limit_s * len(calls) + 60)
        except VmError as error:
            log = self._machine.ask("journalctl -b --no-pager -u driver | tail -n 20", check=False)
            raise VmError(f"{error}\n{log}") from None
        return [json.loads(line) for line in output.splitlines() if line.startswith("{")]

    def _where(self) -> dict[str, Any]:
        return self._volume(staging_target_path=_STAGED, target_path=_PUBLISHED)

    def _volume(self, **more: str) -> dict[str, Any]:
        endpoint = f"http://10.0.2.2:{self._place.server.port}/{ACCOUNT}"
        return {
            "volume_id": DISK,
            "volume_capability": {"mount": {"fs_type": "ext4"}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}},
            "secrets": {"accountname": ACCOUNT, "accountkey": KEY, "endpoint": endpoint, "allowhttp": "yes"},
            **more,
        }
