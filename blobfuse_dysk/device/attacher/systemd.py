"""Has systemd start a holder, where systemd runs the machine and has a unit for the program that asks.

A holder that the attaching process starts is in that process's control group. For a mount that systemd makes that is
the mount unit's, for a command that of the login session: it would be killed with them, at shutdown before the last
unmounting. A service of its own is not.

A tree of a Kubernetes driver (installed.py) has a unit of its own, dysk-holder-ID@.service, since several of them are
in use side by side. The unit may belong to another installation than the one that runs (a clone beside a package), and
this process may see other mounts or another network than systemd does (containers, `ip netns exec`); then the holder is
started as anywhere else. Sources: systemd.service(5), sd_booted(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import string
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from blobfuse_dysk.device.ipc import state
from blobfuse_dysk.errors import AttachedError, DeviceError
from blobfuse_dysk.installed import own_tree

__all__ = ["SERVICE", "name_of", "start", "systemctl", "template", "usable"]

SERVICE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "holder", "systemd.py")
RUN = "/run/dysk"
_DIRECTORIES = ("/etc/systemd/system", "/run/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_SYSTEMCTL = "/usr/bin/systemctl"
_IN_NAMES = frozenset(string.ascii_letters + string.digits + ":-_.")
_AGAIN_S = 0.5  # the last holder of that name may be ending just now, in systemd's eyes; then it has to be asked again
_LIMIT_S = 30.0


def name_of(name: str) -> str:
    """The unit of an attachment."""
    return template().replace("@", f"@{name}")


def template(tree: str | None = None) -> str:
    """The unit of all attachments of this installation, or of a tree that is named by its ID.

    What no unit's name may have, as the + of a version between releases, is _ there: IDs differ in their digests.
    Source: systemd.unit(5), "String Escaping for Inclusion in Unit Names".
    """
    tree = tree or own_tree()
    if tree is None:
        return "dysk-holder@.service"
    return f"dysk-holder-{''.join(each if each in _IN_NAMES else '_' for each in tree)}@.service"


def usable(run: str) -> bool:
    """Whether systemd can start this program's holder so that it sees what we see."""
    return run == RUN and os.path.isdir("/run/systemd/system") and _is_ours() and _sees_what_systemd_sees()


def start(name: str, run: str) -> socket.socket:
    """Have a holder started and return the channel to it. Raises AttachedError if the name is taken, or DeviceError."""
    with _listening(name, run) as listener:
        deadline = time.monotonic() + _LIMIT_S
        while time.monotonic() < deadline:
            systemctl("start", "--no-block", name_of(name))
            try:
                channel, _ = listener.accept()
            except TimeoutError:
                continue
            channel.settimeout(None)
            if _user_of(channel) == 0:
                return channel
            channel.close()
    raise DeviceError(
        f"systemd did not start {name_of(name)} within {_LIMIT_S:g} s", remedy=f"see journalctl -u {name_of(name)}"
    )


@contextmanager
def _listening(name: str, run: str) -> Iterator[socket.socket]:
    """A socket that the holder will connect to. While it is there nobody else can start a holder of that name."""
    path = state.launch_path(run, name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        state.make_run(run)
        with state.lock(run):
            if name in state.names(run) or _answers(path):
                raise AttachedError(f"the name {name} is taken", remedy=f"choose another, or: dyskctl detach {name}")
            if os.path.lexists(path):
                os.unlink(path)  # of a process that was killed
            mask = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(mask)
            listener.listen(1)
    except OSError as error:
        listener.close()
        raise DeviceError(f"cannot make {path}: {error.strerror}") from None
    except BaseException:
        listener.close()
        raise
    try:
        listener.settimeout(_AGAIN_S)
        yield listener
    finally:
        with contextlib.ExitStack() as locked:
            with contextlib.suppress(DeviceError):  # somebody was stopped with it
                locked.enter_context(state.lock(run))
            os.unlink(path)
            listener.close()


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(0.0)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _is_ours() -> bool:
    """Whether the unit that is in force starts this very program."""
    for directory in _DIRECTORIES:
        try:
            with open(os.path.join(directory, template())) as file:
                return SERVICE in file.read()
        except OSError:
            continue
    return False


def _sees_what_systemd_sees() -> bool:
    try:
        return all(os.readlink(f"/proc/self/ns/{kind}") == os.readlink(f"/proc/1/ns/{kind}") for kind in ("mnt", "net"))
    except OSError:
        return False


def systemctl(*arguments: str) -> None:
    """Have systemctl do it. Raises DeviceError with its own words."""
    try:
        done = subprocess.run(
            [_SYSTEMCTL, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise DeviceError(f"cannot start {_SYSTEMCTL}: {error.strerror}") from None
    if done.returncode:
        words = done.stderr.strip().partition("\n")[0] or f"exit code {done.returncode}"
        raise DeviceError(f"systemctl {' '.join(arguments)} failed: {words}", remedy="see journalctl")


def _user_of(channel: socket.socket) -> int:
    pid_uid_gid = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", pid_uid_gid)[1]
    return uid
