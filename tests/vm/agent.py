#!/usr/bin/python3
"""Runs in the virtual machine: carries out what the tests ask for over a virtio port. Debian's own Python, no more.

One JSON object a line: {"id": N, "run": SHELL COMMAND} is answered by {"id": N, "code": EXIT STATUS, "output": TEXT},
output holding both streams. Commands run beside each other, each in a thread.
"""

from __future__ import annotations

import json
import subprocess
import threading

PORT = "/dev/virtio-ports/agent"


def main() -> None:
    """Answer until the machine ends."""
    lock = threading.Lock()
    with open(PORT, "r+b", buffering=0) as port:  # noqa: PTH123 -- a character device

        def carry_out(order: dict[str, object]) -> None:
            done = subprocess.run(
                ["/bin/bash", "-c", str(order["run"])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
            answer = {"id": order["id"], "code": done.returncode, "output": done.stdout.decode(errors="replace")}
            data = json.dumps(answer).encode() + b"\n"
            with lock:
                while data:
                    data = data[port.write(data) or 0 :]

        pending = b""
        while True:
            data = port.read(65536)
            if not data:  # nobody is at the other end
                threading.Event().wait(0.1)
                continue
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                threading.Thread(target=carry_out, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
