"""dysk-node: how a node's driver gets out of its container, and begins on the machine.

    dysk-node [--flexvolume-dir=DIRECTORY] ARGUMENTS...    in the container; ARGUMENTS are dysk-csi's

1. In the container (`main`): it may do what it needs to, or says so. The image's tree is copied to the machine
   (tree.py). Then this process joins the namespaces of process 1, one after the other, and becomes a program of that
   tree. It stays the container's first process: it is stopped and counted as any container is.
2. On the machine (`begin`), where it sees mounts, devices and network as the machine does: units (units.py) are made,
   attachments of other trees are taken over by this one's worker, trees that nobody uses are removed. Then it is the
   driver.

What the driver attaches is held by services of systemd, or, where there is no systemd, by processes in the control
group of process 1. So nothing that is attached is in the container's control group, nor needs its files: kubelet may
stop, replace or delete the pod.

/proc/1/root is the machine's root directory for a process that shares its process numbers and may trace it, which a
privileged container with hostPID may. So nothing has to be mounted into it. (Where the node is no whole machine,
another process than 1 may stand for it: environment.machine_pid.) Sources: setns(2), namespaces(7), proc_pid_root(5).
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from pathlib import Path

from blobfuse_dysk import attachment, environment, live
from blobfuse_dysk.device.attacher.launch import WORKER
from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.errors import DeviceError, DyskError
from blobfuse_dysk.installed import TREES, own_tree, tree_of
from blobfuse_dysk.kubernetes.host import tree, units
from blobfuse_dysk.printable import printable

__all__ = ["begin", "enter", "main"]

_HERE = "--on-the-machine"
_FLEXVOLUME = "--flexvolume-dir="  # the kubelet's directory for plugins, where the FlexVolume driver is to be, too
_NAMESPACES = ("net", "ipc", "uts", "cgroup", "mnt")  # the mounts last: with them /proc is another
_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Run dysk-node; returns the exit status, or becomes the driver."""
    logging.basicConfig(format="dysk-node: %(levelname)s: %(message)s", level=logging.INFO)
    try:
        if arguments[:1] == [_HERE]:
            begin()
            rest = arguments[1:]
            if rest and rest[0].startswith(_FLEXVOLUME):
                from blobfuse_dysk.kubernetes.flexinstall import install

                _log.info("the FlexVolume driver is %s", *install([rest.pop(0).removeprefix(_FLEXVOLUME)]))
            from blobfuse_dysk.kubernetes.csi.main import main as driver

            return driver(rest)
        enter(arguments)
    except DyskError as error:
        print(f"dysk-node: {error.line()}", file=sys.stderr)
        return error.exit_code
    return 1


def enter(arguments: list[str]) -> None:
    """Copy the tree, join the machine's namespaces, become the driver. Raises DeviceError; returns never."""
    pid = environment.machine_pid()
    check_container(pid)
    installed = tree.install(Path(sys.prefix), Path(f"/proc/{pid}/root{TREES}"))
    join_namespaces(pid)
    program = f"{TREES}/{installed.name}/bin/dysk-node"
    variables = {**environment.started_with(), "DYSK_LEAVE_CGROUP": "1"}
    variables.pop("SSL_CERT_FILE", None)  # the launcher set it for the image's files
    try:
        os.chdir("/")
        os.execve(program, [program, _HERE, *arguments], variables)
    except OSError as error:
        raise DeviceError(
            f"cannot start {program} on the node: {error.strerror}", remedy=f"is {TREES} mounted noexec there?"
        ) from None


def check_container(pid: int, proc: str = "/proc") -> None:
    """Raise DeviceError unless this process may leave its container for where process `pid` is."""
    first = ""
    with contextlib.suppress(OSError):
        first = Path(f"{proc}/{pid}/exe").readlink().name
    if os.getpid() == 1 or first == "pause":  # the container's own, or that of a pod which shares its processes
        raise DeviceError("the pod does not share its node's processes", remedy="set hostPID: true in its spec")
    try:
        Path(f"{proc}/{pid}/root/proc").stat()
    except OSError:
        raise DeviceError(
            "the container may not reach its node", remedy="set securityContext.privileged: true on it"
        ) from None


def join_namespaces(pid: int) -> None:
    """Be in the namespaces of a process; this one may have no other thread. Raises DeviceError."""
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.ExitStack() as files:
        opened = []
        for kind in _NAMESPACES:
            try:
                opened.append((kind, os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)))
            except FileNotFoundError:
                continue  # a kernel without that kind
            files.callback(os.close, opened[-1][1])
        for kind, fd in opened:
            if libc.setns(fd, 0):
                problem = os.strerror(ctypes.get_errno())
                raise DeviceError(f"cannot join the node's {kind} namespace: {problem}", remedy="see setns(2)")


def begin() -> None:
    """On the machine: units, the attachments of other trees, trees that nobody uses. Raises DeviceError."""
    own = own_tree()
    if own is None:
        raise DeviceError(f"this program does not run from {TREES}", remedy="start it without " + _HERE)
    units.install_units(Path(TREES, own))
    take_over(own)
    if all(state.alive(attachment.find_state(found.name)["holder"]) for found in attachment.attachments()):
        # A holder that systemd is about to start again has no process for now.
        for removed in tree.remove_unused(Path(TREES), own):
            units.remove_units(removed)
            _log.info("removed %s, which nothing runs from any more", removed)


def take_over(own: str) -> None:
    """Have this tree's worker serve what workers of other trees serve. One that cannot goes on, with a line in the log.

    Attachments of a machine's own installation are not touched: they are that installation's.
    """
    for found in attachment.attachments():
        worker = attachment.find_state(found.name)["worker"]
        running = tree_of(_program_of(worker["pid"])) if worker and state.alive(worker) else None
        if running in (None, own):
            continue
        try:
            live.upgrade(found.name)
            _log.info("%s is served by %s now, was %s", found.name, own, running)
        except DyskError as error:
            _log.warning("%s goes on with %s: %s", found.name, running, printable(error.line()))


def _program_of(pid: int) -> str:
    """Which worker.py a process was started with; '' if it is none."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        for word in words:
            if word.endswith(os.path.relpath(WORKER, Path(WORKER).parents[3]).encode()):
                return os.fsdecode(word)
    return ""
