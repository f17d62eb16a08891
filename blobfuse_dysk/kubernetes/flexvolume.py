"""The FlexVolume driver azure/dysk, as the kubelet runs it: one command, one line of JSON on standard output, no more.

    dysk init                       dysk mount DIR JSON
    dysk unmount DIR                dysk expandfs JSON DEVICE DIR NEW_SIZE OLD_SIZE

Everything else is answered with "Not supported", which the kubelet remembers. It reads standard output and standard
error together, so nothing is ever written to the latter. The disk is mounted on the pod's own directory; a second pod
of this node has it mounted once more. What is attached here is staging.py's business, as for CSI.

Options: container, blob, accountName, fsType; kubernetes.io/fsType, kubernetes.io/readwrite (ro, rw);
kubernetes.io/secret/accountname and /accountkey, in base64. Others of StorageClasses are known too (parameters.py).

Sources: the original's kubernetes/flexvolume/dysk for the options; Kubernetes, pkg/volume/flexvolume (driver-call.go,
mounter-defaults.go, expander.go) for the calls and answers, and
https://github.com/kubernetes/community/blob/master/contributors/devel/sig-storage/flexvolume.md .
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from blobfuse_dysk import attachment, live
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import CredentialError, DyskError, NotFoundError, UsageError
from blobfuse_dysk.kubernetes import mounting
from blobfuse_dysk.kubernetes.own import Own, is_left_over
from blobfuse_dysk.kubernetes.parameters import Parameters
from blobfuse_dysk.kubernetes.staging import Staging, Wanted
from blobfuse_dysk.kubernetes.volume import Secret, with_secret
from blobfuse_dysk.mount.grow import grow_file_system
from blobfuse_dysk.mount.tools import top_mount
from blobfuse_dysk.printable import printable

__all__ = ["PREFIX", "main"]

PREFIX = "flex-"  # of the names of attachments
_SECRET = "kubernetes.io/secret/"
_OF_KUBERNETES = "kubernetes.io/"
_SECTOR = 512


class _NotSupportedError(Exception):
    """The kubelet does it itself, or leaves it out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    warnings = _Warnings()
    logging.basicConfig(handlers=[warnings], level=logging.WARNING, force=True)
    answer, code = _answer(words)
    if warnings.lines:
        answer = {**answer, "message": "; ".join([str(answer.get("message", "")), *warnings.lines]).removeprefix("; ")}
    print(json.dumps(answer))
    return code


class _Warnings(logging.Handler):
    """What the layers below warn of goes into the one line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(printable(record.getMessage()))


def _answer(words: list[str]) -> tuple[dict[str, object], int]:
    try:
        return {"status": "Success", **_run(words)}, 0
    except _NotSupportedError:
        return {"status": "Not supported"}, 1
    except DyskError as error:
        return {"status": "Failure", "message": error.line()}, 1
    except OSError as error:
        return {"status": "Failure", "message": f"{error.filename or 'this machine'}: {error.strerror}"}, 1
    except Exception as error:
        return {"status": "Failure", "message": f"unexpected {type(error).__name__}: please report it"}, 1


def _run(words: list[str]) -> dict[str, object]:
    command, rest = (words[0], words[1:]) if words else ("", [])
    commands: dict[str, tuple[int, Callable[..., dict[str, object]]]] = {
        "init": (0, _init),
        "mount": (2, _mount),
        "unmount": (1, _unmount),
        "expandfs": (5, _expand),
    }
    if command not in commands:
        raise _NotSupportedError
    count, run = commands[command]
    if len(rest) != count:
        raise UsageError(f"{command} takes {count} arguments, not {len(rest)}", remedy="only the kubelet calls this")
    return run(*rest)


def _init() -> dict[str, object]:
    """No attach: that would be the controller-manager's, which has lost this part. No metrics by the kubelet's own."""
    capabilities = {"attach": False, "selinuxRelabel": True, "supportsMetrics": True, "fsGroup": True}
    return {"capabilities": {**capabilities, "requiresFSResize": True}}


def _mount(directory: str, text: str) -> dict[str, object]:
    path = _path(directory)
    wanted = _wanted(path, _options(text))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Staging(PREFIX).stage(wanted)
    return {}


def _unmount(directory: str) -> dict[str, object]:
    path = _path(directory)
    top = top_mount(path)
    if top is None:
        return {}
    staging = Staging(PREFIX)
    found = _owner(staging, lambda own: own.shows(top))
    if found is None and not is_left_over(top):
        raise DyskError(f"what is mounted on {path} is no volume of azure/dysk", remedy=f"see what: findmnt {path}")
    if found and [each for each in found.places() if each.directory != path]:
        mounting.unmount(path)  # another pod of this node has it
    elif found:
        staging.unstage(found.fields["disk"], path)
    else:
        mounting.unmount(path)
    with contextlib.suppress(OSError):  # the kubelet removes it otherwise
        Path(path).rmdir()
    return {}


def _expand(text: str, device: str, directory: str, new_size: str, old_size: str) -> dict[str, object]:
    """Called with the directory of the pod; of no device, as nothing was attached for the volume."""
    path, size = _path(directory), _size(new_size)
    top = top_mount(path)
    own = _owner(Staging(PREFIX), lambda own: own.shows(top))
    if own is None or top is None or own.device is None:
        raise NotFoundError(f"no volume of azure/dysk is mounted on {path}", remedy="it grows when a pod has it")
    attached = own.attachment
    if attached.read_only:
        raise DyskError(f"{attached.disk} is mounted read-only", remedy="expand it where it is written to")
    if size > attached.size:
        live.grow(attached.name, size)
    grow_file_system(own.device, path, top.fstype)
    return {"volumeNewSize": max(size, attached.size)}


def _owner(staging: Staging, is_it: Callable[[Own], bool]) -> Own | None:
    """The attachment of a volume of this driver for which this holds."""
    for each in attachment.attachments():
        if each.name.startswith(PREFIX):
            with contextlib.suppress(DyskError):
                own = staging.find(each.disk)
                if own and is_it(own):
                    return own
    return None


def _wanted(path: str, options: Mapping[str, str]) -> Wanted:
    """Raises DyskError, which names what is missing."""
    secrets = {key.removeprefix(_SECRET): _decoded(key, value) for key, value in options.items() if _is_secret(key)}
    given = {key: value for key, value in options.items() if not key.startswith(_OF_KUBERNETES) and value}
    for key in ("container", "blob"):
        if key not in given:
            raise UsageError(f"the volume has no option {key}", remedy=f"write options: {key}: into its flexVolume")
    named = given.pop("accountName", given.pop("accountname", ""))
    kind = given.pop("fsType", given.pop("fstype", "")) or options.get("kubernetes.io/fsType", "")
    account = named or Secret.parse(secrets).account
    if not account:
        raise UsageError(
            "neither the volume nor its secret names an account", remedy="write accountname into the secret"
        )
    parameters = Parameters.read(given)
    address = DiskAddress.parse(f"{account}/{given['container']}/{given['blob']}")
    address, attach = with_secret(address, secrets, parameters)
    read_only = options.get("kubernetes.io/readwrite", "rw") == "ro"
    mount = parameters.mount_options(kind)
    return Wanted(
        address=address,
        options=replace(attach, read_only=read_only),
        path=path,
        read_only=read_only,
        fstype=mount.fstype,
        any_fstype=True,
        mkfs_options=mount.mkfs_options or (),
    )


def _is_secret(key: str) -> bool:
    return key.startswith(_SECRET)


def _options(text: str) -> dict[str, str]:
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
            raise ValueError
    except ValueError:
        raise UsageError("the options are no JSON object of strings", remedy="only the kubelet calls this") from None
    return found


def _decoded(key: str, text: str) -> str:
    """The original took keys that were wrapped or had blanks in them."""
    try:
        return base64.b64decode("".join(text.split()), validate=True).decode().strip()
    except (binascii.Error, UnicodeDecodeError):
        raise CredentialError(f"{key} is not base64 of a text", remedy="make the secret with kubectl create") from None


def _size(text: str) -> int:
    try:
        return -(-int(text) // _SECTOR) * _SECTOR
    except ValueError:
        raise UsageError(f"{text!r} is no number of bytes", remedy="only the kubelet calls this") from None


def _path(text: str) -> str:
    if not text.startswith("/"):
        raise UsageError(f"{text!r} is not an absolute path", remedy="only the kubelet calls this")
    path = Path(os.path.normpath(text))
    return str(path.parent.resolve() / path.name)
