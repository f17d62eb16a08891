"""The attaching process's side of a new attachment: starts the holder, waits for the worker, commits or takes back."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys

from blobfuse_dysk.device.attacher import systemd, template
from blobfuse_dysk.device.ipc import door, message
from blobfuse_dysk.device.ipc.messages import Abandon, Begin, Command, Commit, Committed, Ready
from blobfuse_dysk.device.ipc.statefile import FirstState, StateFile
from blobfuse_dysk.device.kernel.memfd import sealed
from blobfuse_dysk.environment import leaves_cgroup
from blobfuse_dysk.errors import DeviceError

__all__ = ["HOLDER", "WORKER", "Launch", "use_path", "worker_command", "worker_path"]

_DEVICE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOLDER = os.path.join(_DEVICE, "holder", "holder.py")
WORKER = os.path.join(_DEVICE, "worker", "worker.py")
_TAKE_BACK_S = 20.0  # the holder itself gives its worker 15 s
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_log = logging.getLogger(__name__)
_path: str | None = None


def worker_command(name: str) -> list[str]:
    """What the holder runs. No site: that costs 20 ms; the path comes with `environment`."""
    return [sys.executable, "-S", "-P", "-s", WORKER, "--name", name]


def use_path(path: str) -> None:
    """Have workers' modules come from where this process's own came from, which was started with this PYTHONPATH."""
    global _path
    _path = path


def worker_path() -> str:
    """PYTHONPATH for it: where this program's own modules come from."""
    if _path is not None:
        return _path
    paths = [os.path.dirname(os.path.dirname(_DEVICE)), *(path for path in sys.path if path)]
    return os.pathsep.join(dict.fromkeys(paths))


class Launch:
    """An attachment that is not committed yet. The death of this process takes it back, as `take_back` does.

    Making one starts both processes, which takes longest, and `order` tells them what for.
    """

    def __init__(self, name: str, directories: dict[str, str]) -> None:
        """directories: {DYSK_RUN_DIR: ...}. The environment of both processes has these and nothing of ours besides.

        What a process starts with can be read in /proc, and ours may hold secrets.
        """
        self._name = name
        self._directories = directories
        environment = {"PATH": _PATH, "LANG": "C.UTF-8", **directories}
        self._process: subprocess.Popen[bytes] | None = None
        self._is_unit = systemd.usable(directories["DYSK_RUN_DIR"])
        if self._is_unit:
            self._channel = systemd.start(name, directories["DYSK_RUN_DIR"])
        else:
            self._channel = self._start_process(environment)
        worker = {**environment, "PYTHONPATH": worker_path()}
        command: Command = {"op": "command", "worker": worker_command(name), "environment": worker}
        message.send(self._channel, command)

    def _start_process(self, environment: dict[str, str]) -> socket.socket:
        leave = [template.LEAVE_CGROUP] if leaves_cgroup() else []
        argv = [sys.executable, "-I", "-S", HOLDER, "--name", self._name, *leave]
        ours, theirs = message.channel()
        with theirs:
            if template.fork_holder(
                self._directories["DYSK_RUN_DIR"], argv, environment, worker_path(), theirs.fileno()
            ):
                return ours
        ours.close()
        ours, theirs = message.channel()  # of the one before a template that is late may still have the other end
        with theirs:
            try:
                self._process = subprocess.Popen(
                    argv,
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    cwd="/",
                    env=environment,
                )
            except OSError as error:
                ours.close()
                raise DeviceError(f"cannot start {sys.executable}: {error.strerror}") from None
        return ours

    def begin(self, state: FirstState, config: bytes) -> None:
        """Order the attachment. state: the beginning of its state. config: for the worker, with secrets."""
        memfd = sealed("dysk-config", config)
        try:
            order: Begin = {
                "op": "begin",
                "name": self._name,
                "run": self._directories["DYSK_RUN_DIR"],
                "dev": self._directories["DYSK_DEV_DIR"],
                "log": self._directories["DYSK_LOG_DIR"],
                "state": state,
            }
            message.send(self._channel, order, [memfd])
        finally:
            os.close(memfd)

    def wait_ready(self) -> StateFile:
        """Wait until the file can be opened; return the attachment's state. Raises what the holder reports."""
        answer = self._answer()
        if answer["event"] != "ready":
            raise _unexpected(answer)
        return answer["state"]

    def commit(self, device: str) -> None:
        """Make the attachment independent of this process. Raises DeviceError, and it is not."""
        order: Commit = {"op": "commit", "device": device}
        message.send(self._channel, order)
        answer = self._answer()
        if answer["event"] != "committed":
            raise _unexpected(answer)
        self._close()

    def take_back(self) -> None:
        """Give the attachment up and wait for its end, though not for ever."""
        order: Abandon = {"op": "abandon"}
        message.send(self._channel, order)
        self._channel.settimeout(_TAKE_BACK_S)
        try:
            while not door.receive(self._channel, door.HOLDER_TO_ATTACHER, _log.warning).gone:
                pass
        except TimeoutError:
            pass  # the holder goes on taking it back without us
        self._close()

    def _answer(self) -> Ready | Committed:
        """Wait for what the holder says next. Raises the error, if it is one."""
        refused: list[str] = []
        received = door.receive(self._channel, door.HOLDER_TO_ATTACHER, refused.append)
        if received.gone:
            last = self._last_words()
            raise DeviceError(f"the holder process ended{last}", remedy="see the log, or run: dyskctl doctor")
        answer = received.message
        if answer is None:  # it says one thing at a time, so that there is nothing else to wait for
            raise DeviceError("; ".join(refused), remedy="report this as a bug")
        if answer["event"] == "error":
            raise message.message_to_error(answer["error"])
        return answer

    def _last_words(self) -> str:
        """What the holder wrote before it became a daemon; it ended, so this does not wait."""
        if self._is_unit:
            return f" (see journalctl -u {systemd.name_of(self._name)})"
        if self._process is None:
            return ""  # the template's, which was a daemon from its beginning
        assert self._process.stderr
        lines = self._process.stderr.read().decode(errors="replace").splitlines()
        return f": {lines[-1]}" if lines else ""

    def _close(self) -> None:
        """Leave nothing to the garbage collector; the process forked at once and ended."""
        if self._process:
            assert self._process.stderr
            self._process.stderr.close()
            self._process.wait()
        self._channel.close()


def _unexpected(answer: Ready | Committed) -> DeviceError:
    return DeviceError(f"the holder said {answer['event']!r} out of turn", remedy="report this as a bug")
