"""The attaching process's side of a new attachment: starts the holder, waits for the worker, commits or takes back."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

from blobfuse_dysk.device.attacher import systemd
from blobfuse_dysk.device.ipc import message
from blobfuse_dysk.errors import DeviceError

__all__ = ["HOLDER", "WORKER", "Launch", "worker_command", "worker_path"]

_DEVICE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOLDER = os.path.join(_DEVICE, "holder", "holder.py")
WORKER = os.path.join(_DEVICE, "worker", "worker.py")
_TAKE_BACK_S = 20.0  # the holder itself gives its worker 15 s
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def worker_command(name: str) -> list[str]:
    """What the holder runs. No site: that costs 20 ms; the path comes with `environment`."""
    return [sys.executable, "-S", "-P", "-s", WORKER, "--name", name]


def worker_path() -> str:
    """PYTHONPATH for it: where this program's own modules come from."""
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
        if systemd.usable(directories["DYSK_RUN_DIR"]):
            self._channel = systemd.start(name, directories["DYSK_RUN_DIR"])
        else:
            self._channel = self._start_process(environment)
        worker = {**environment, "PYTHONPATH": worker_path()}
        message.send(self._channel, {"worker": worker_command(name), "environment": worker})

    def _start_process(self, environment: dict[str, str]) -> socket.socket:
        ours, theirs = message.channel()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", HOLDER, "--name", self._name],
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

    def order(self, state: dict[str, Any], config: bytes) -> None:
        """Say what to attach. state: the beginning of the attachment's state. config: for the worker, with secrets."""
        memfd = os.memfd_create("dysk-config")
        try:
            os.write(memfd, config)
            order = {
                "name": self._name,
                "run": self._directories["DYSK_RUN_DIR"],
                "dev": self._directories["DYSK_DEV_DIR"],
                "log": self._directories["DYSK_LOG_DIR"],
                "state": state,
            }
            message.send(self._channel, order, [memfd])
        finally:
            os.close(memfd)

    def wait_ready(self) -> dict[str, Any]:
        """Wait until the file can be opened; return the attachment's state. Raises what the holder reports."""
        state: dict[str, Any] = self._wait("ready")["state"]
        return state

    def commit(self, device: str) -> None:
        """Make the attachment independent of this process. Raises DeviceError, and it is not."""
        message.send(self._channel, {"op": "commit", "device": device})
        self._wait("committed")
        self._close()

    def take_back(self) -> None:
        """Give the attachment up and wait for its end, though not for ever."""
        message.send(self._channel, {"op": "abandon"})
        self._channel.settimeout(_TAKE_BACK_S)
        try:
            while message.receive(self._channel)[0] is not None:
                pass
        except TimeoutError:
            pass  # the holder goes on taking it back without us
        self._close()

    def _wait(self, event: str) -> dict[str, Any]:
        answer, _ = message.receive(self._channel)
        if answer is None:
            last = self._last_words()
            raise DeviceError(f"the holder process ended{last}", remedy="see the log, or run: dyskctl doctor")
        if answer["event"] == "error":
            raise message.message_to_error(answer["error"])
        if answer["event"] != event:
            raise DeviceError(
                f"the holder said {answer['event']!r} instead of {event!r}", remedy="report this as a bug"
            )
        return answer

    def _last_words(self) -> str:
        """What the holder wrote before it became a daemon; it ended, so this does not wait."""
        if self._process is None:
            return f" (see journalctl -u {systemd.name_of(self._name)})"
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
