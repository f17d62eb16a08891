"""What a service says to systemd, and gets from it: readiness, and the descriptors that systemd keeps for it.

Source: sd_notify(3), sd_listen_fds(3), https://systemd.io/FILE_DESCRIPTOR_STORE. Standard library only, as the holder.
"""

from __future__ import annotations

import os
import socket
import struct

__all__ = ["Notify", "kept"]

_FIRST_FD = 3  # SD_LISTEN_FDS_START


class Notify:
    """The way to the service manager; says nothing, without an error, where there is none."""

    def __init__(self, address: str | None) -> None:
        """address: NOTIFY_SOCKET, a path or an abstract name that begins with @."""
        self._address = address.replace("@", "\0", 1) if address and address.startswith("@") else address

    def ready(self) -> None:
        """The service is up."""
        self._send("READY=1")

    def keep(self, name: str, fd: int, *, watch: bool = False) -> None:
        """Have a copy of the descriptor kept, for the next start of this service.

        watch: let go of it by itself when the other end is gone (EPOLLHUP).
        """
        self._send(f"FDSTORE=1\nFDNAME={name}{'' if watch else chr(10) + 'FDPOLL=0'}", fd)

    def forget(self, name: str) -> None:
        """Let go of what is kept under this name."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def _send(self, text: str, *fds: int) -> None:
        if not self._address:
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(self._address)
            channel.sendmsg([text.encode()], rights)


def kept(variables: dict[str, str]) -> dict[str, int]:
    """The descriptors that were kept, by name. variables: LISTEN_* of the environment."""
    if variables.get("LISTEN_PID") != str(os.getpid()):
        return {}
    found = {}
    for number, name in enumerate(variables.get("LISTEN_FDNAMES", "").split(":")[: int(variables["LISTEN_FDS"])]):
        fd = _FIRST_FD + number
        os.set_inheritable(fd, False)
        found[name] = fd
    return found
