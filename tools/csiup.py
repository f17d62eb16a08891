"""Starts a page blob server, the driver's controller and its node on sockets, runs a command, and takes all down.

The command has in its environment CSI_ENDPOINT (the node's socket), CSI_CONTROLLER_ENDPOINT, CSI_SECRETS_FILE and
CSI_PARAMETERS_FILE, and CSI_MUTABLE_PARAMETERS_FILE, of what a VolumeAttributesClass may have; files as csi-sanity
reads them. Its exit status is this one's.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.kubernetes.stack import Stack, stack

ROOT = Path(__file__).resolve().parents[1]
SANITY = ROOT / ".cache" / "go" / "bin" / "csi-sanity"
VARIABLES = (
    "CSI_ENDPOINT",
    "CSI_CONTROLLER_ENDPOINT",
    "CSI_SECRETS_FILE",
    "CSI_PARAMETERS_FILE",
    "CSI_MUTABLE_PARAMETERS_FILE",
)
# The calls that csi-sanity has a secret for; it is the same one for all.
_SECRETS = (
    "CreateVolumeSecret",
    "DeleteVolumeSecret",
    "ControllerPublishVolumeSecret",
    "ControllerUnpublishVolumeSecret",
    "ControllerValidateVolumeCapabilitiesSecret",
    "ControllerModifyVolumeSecret",
    "NodeStageVolumeSecret",
    "NodePublishVolumeSecret",
    "CreateSnapshotSecret",
    "DeleteSnapshotSecret",
    "ControllerExpandVolumeSecret",
    "ListSnapshotsSecret",
)
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MUTABLE = {"iops": "1000", "cachingMode": "ReadOnly"}


class Ended(Exception):
    """SIGTERM came, or SIGINT."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/csi-up",
        usage="tools/csi-up [COMMAND...]",
        description="Runs COMMAND with the CSI driver on sockets, on a page blob server of its own: "
        f"{', '.join(VARIABLES)} are in its environment. Without COMMAND it prints how to run csi-sanity, and waits.",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    command: list[str] = parser.parse_args(arguments).command
    if os.geteuid() != 0:
        print("tools/csi-up: not root: attaching and mounting take it: run it with sudo", file=sys.stderr)
        return 1

    def end(number: int, frame: FrameType | None) -> None:
        for each in ENDS:
            signal.signal(each, signal.SIG_IGN)  # all is being taken down already
        raise Ended(number)

    for number in ENDS:
        signal.signal(number, end)
    try:
        with stack() as made:
            environment = _start(made)
            if command:
                return _run(command, environment)
            print("\n".join(f"export {name}={shlex.quote(environment[name])}" for name in VARIABLES))
            print(shlex.join(sanity_command(environment, made.dirs.root)), flush=True)
            while True:
                signal.pause()
    except Ended as ended:
        return 128 + ended.number
    except OSError as error:
        print(f"tools/csi-up: {command[0] if command else 'the driver'}: {error.strerror}", file=sys.stderr)
        return 127


def sanity_command(environment: dict[str, str], place: Path) -> list[str]:
    """csi-sanity's command line. place: a directory for its mounts."""
    node, controller, secrets, parameters, mutable = (environment[name] for name in VARIABLES)
    return [
        str(SANITY),
        f"--csi.endpoint={node}",
        f"--csi.controllerendpoint={controller}",
        f"--csi.secrets={secrets}",
        f"--csi.testvolumeparameters={parameters}",
        f"--csi.testvolumemutableparameters={mutable}",
        f"--csi.mountdir={place / 'mount'}",
        f"--csi.stagingdir={place / 'staging'}",
    ]


def _start(made: Stack) -> dict[str, str]:
    controller = made.controller()
    node = made.start("node")
    texts = (
        "".join(f"{call}:\n{_yaml(made.secrets, '  ')}" for call in _SECRETS),
        _yaml(made.parameters),
        _yaml(MUTABLE),
    )
    values = [node.endpoint, controller.endpoint]
    for name, text in zip(("secrets.yaml", "parameters.yaml", "mutable.yaml"), texts, strict=True):
        path = made.dirs.root / name
        path.touch(0o600)
        path.write_text(text)
        values.append(str(path))
    return dict(zip(VARIABLES, values, strict=True))


def _run(command: list[str], environment: dict[str, str]) -> int:
    process = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        status = process.wait()
    except Ended as ended:
        process.send_signal(ended.number)
        process.wait()
        raise
    return 128 - status if status < 0 else status


def _yaml(values: dict[str, str], indent: str = "") -> str:
    return "".join(f'{indent}{name}: "{value}"\n' for name, value in values.items())


if __name__ == "__main__":
    sys.exit(main())
