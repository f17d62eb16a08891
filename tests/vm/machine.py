"""A virtual machine under QEMU, without acceleration, and what the tests do to it: boot, ask, shut down, cut the power.

Each machine has a disk of its own over the common image, and QEMU's own network: 10.0.2.2 is this machine's loopback.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Image", "Machine", "VmError"]

_MEMORY_MIB = 768
_BOOT_S = 240.0
_PAUSE_S = 0.2


class VmError(Exception):
    """The machine, or a command in it, did not do what was asked."""


@dataclass(frozen=True, slots=True)
class Image:
    """What tests/vm/make-image made, in one directory."""

    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root.img"


class Machine:
    """One machine. `start` boots it; `ask` runs a command in it. Its disk survives power cuts."""

    def __init__(self, image: Image, work: Path, name: str, like: Machine | None = None) -> None:
        """work: a directory for its disk, its sockets and its console's log. like: its disk begins as this one's."""
        self.name = name
        self.console = work / f"{name}.console"
        self._image = image
        self._work = work
        self._disk = work / f"{name}.qcow2"
        self._port = work / f"{name}.agent"
        self._process: subprocess.Popen[bytes] | None = None
        self._agent: socket.socket | None = None
        self._ids = itertools.count(1)
        self._pending = b""
        self._answers: dict[int, tuple[int, str]] = {}
        base, form = (like._disk, "qcow2") if like else (image.root, "raw")
        command: list[str | Path] = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            form,
            "-b",
            base.resolve(),
            self._disk,
        ]
        subprocess.run(command, check=True)

    def start(self, payload: Path | None = None) -> None:
        """Power on, and return when the agent answers. payload: a file that the machine sees as /dev/vdb, read-only."""
        self._port.unlink(missing_ok=True)
        drives = ["-drive", f"file={self._disk},if=virtio,cache=writeback"]
        if payload:
            drives += ["-drive", f"file={payload},if=virtio,format=raw,readonly=on"]
        self._process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", str(_MEMORY_MIB), "-smp", "1"),
                *("-display", "none", "-nodefaults", "-no-reboot"),
                *("-kernel", self._image.directory / "vmlinuz", "-initrd", self._image.directory / "initrd"),
                *("-append", f"root=/dev/vda rw console=ttyS0 panic=-1 systemd.hostname={self.name}"),
                *drives,
                *("-serial", f"file:{self.console}"),
                *("-device", "virtio-serial", "-device", "virtserialport,chardev=agent,name=agent"),
                *("-chardev", f"socket,id=agent,path={self._port},server=on,wait=off"),
                *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
                *("-device", "virtio-rng-pci"),
            ],
            stdin=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _BOOT_S
        while True:
            try:
                self._connect()
                break
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise VmError(f"{self.name} did not start") from None
                time.sleep(_PAUSE_S)
        self.ask("true", timeout_s=_BOOT_S)

    def await_boot(self, timeout_s: float = _BOOT_S) -> str:
        """Wait until systemd has started everything; returns its state: running, degraded."""
        return self.ask("systemctl is-system-running --wait", timeout_s=timeout_s, check=False).strip()

    def ask(self, command: str, *, timeout_s: float = 120.0, check: bool = True) -> str:
        """Run a shell command in the machine; return what it printed. Raises VmError when it fails."""
        number = self._send(command)
        code, output = self._receive(number, timeout_s)
        if check and code:
            raise VmError(f"{self.name}: {command}: exit status {code}: {output.strip()[-2000:]}")
        return output

    def code(self, command: str, *, timeout_s: float = 120.0) -> int:
        """The exit status of a shell command in the machine."""
        return self._receive(self._send(command), timeout_s)[0]

    def tell(self, command: str) -> None:
        """Start a shell command in the machine and do not wait for it."""
        self._send(command)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def await_off(self, timeout_s: float) -> float:
        """Wait for the end of the machine, which a reboot is, too; returns the seconds it took."""
        assert self._process
        begun = time.monotonic()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise VmError(f"{self.name} is still running after {timeout_s:.0f} s") from None
        self._hang_up()
        return time.monotonic() - begun

    def shut_down(self, command: str = "systemctl poweroff", timeout_s: float = 240.0) -> float:
        """Shut down in order; returns the seconds until the machine was off."""
        self.tell(command)
        return self.await_off(timeout_s)

    def freeze(self) -> None:
        """Stop its clock and its processor; what it has sent is under way."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def cut_power(self) -> None:
        """The end, at once."""
        assert self._process
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._hang_up()

    def close(self) -> None:
        """End the machine if it runs, and remove its disk."""
        if self.running:
            self.cut_power()
        self._hang_up()
        self._disk.unlink(missing_ok=True)

    def _connect(self) -> None:
        agent = socket.socket(socket.AF_UNIX)
        try:
            agent.connect(str(self._port))
        except OSError:
            agent.close()
            raise
        self._agent, self._pending, self._answers = agent, b"", {}

    def _hang_up(self) -> None:
        if self._agent:
            self._agent.close()
        self._agent = None

    def _send(self, command: str) -> int:
        if self._agent is None:
            raise VmError(f"{self.name} is off")
        number = next(self._ids)
        self._agent.sendall(json.dumps({"id": number, "run": command}).encode() + b"\n")
        return number

    def _receive(self, number: int, timeout_s: float) -> tuple[int, str]:
        deadline = time.monotonic() + timeout_s
        while number not in self._answers:
            left_s = deadline - time.monotonic()
            if self._agent is None or left_s <= 0:
                raise VmError(f"{self.name}: no answer within {timeout_s:.0f} s")
            self._agent.settimeout(left_s)
            with contextlib.suppress(TimeoutError):
                data = self._agent.recv(1 << 16)
                if not data:
                    raise VmError(f"{self.name} went off")
                *lines, self._pending = (self._pending + data).split(b"\n")
                for line in lines:
                    answer = json.loads(line)
                    self._answers[answer["id"]] = (answer["code"], answer["output"])
        return self._answers.pop(number)
