"""The writer in a machine, as the tests see it: started, what it has acknowledged, whether what it wrote is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.vm.machine import Machine
from tests.vm.place import Failed, Place, require

__all__ = ["Load"]

_WRITER = Path(__file__).with_name("writer.py")
_ACK = re.compile(rb"^ACK (\d+)\r?$", re.MULTILINE)


class Load:
    """fsync-heavy writes in /data of one machine. The console's log is the record of what was acknowledged."""

    def __init__(self, place: Place, machine: Machine) -> None:
        self._place = place
        self._machine = machine
        self.last = -1
        self.may_fail = False  # the disk was taken from this machine: an I/O error is what is to come

    def start(self) -> None:
        """Go on writing behind the last acknowledged number; returns when the first of these is acknowledged."""
        self.look()
        before = self.last
        self.put(self._machine)
        self._machine.ask(
            f"systemd-run --quiet --collect --unit=writer python3 /root/writer.py write /data {self.last + 1}"
        )
        self._place.await_("the writer's first acknowledgement", lambda: self.look() > before, 60)

    def look(self) -> int:
        """The last acknowledged number; raises Failed if the writer saw an error."""
        text = self._machine.console.read_bytes() if self._machine.console.exists() else b""
        if b"\nBAD" in text and not self.may_fail:
            raise Failed(text[text.index(b"\nBAD") :].decode(errors="replace").strip().splitlines()[0])
        for found in _ACK.finditer(text):
            self.last = max(self.last, int(found[1]))
        return self.last

    def more(self, count: int, limit_s: float = 120.0) -> None:
        """Wait for so many more acknowledgements."""
        goal = self.look() + count
        self._place.await_(f"{count} more acknowledgements", lambda: self.look() >= goal, limit_s)

    def stop(self) -> None:
        """End the writer between two files."""
        self._machine.ask("systemctl stop writer.service")
        self.look()

    def check(self, machine: Machine) -> None:
        """Everything acknowledged is on /data of `machine`."""
        self.look()
        self.put(machine)
        output = machine.ask(f"python3 /root/writer.py check /data {self.last}", check=False)
        require(not output.strip(), output.strip())
        self._place.count("acknowledged writes checked", self.last + 1)

    @staticmethod
    def put(machine: Machine) -> None:
        """Bring the program into the machine."""
        text = _WRITER.read_text()
        machine.ask(f"cat >/root/writer.py <<'END_WRITER'\n{text}END_WRITER")
