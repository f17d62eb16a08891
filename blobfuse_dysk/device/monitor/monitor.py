"""Does for a worker what takes root, which the worker has given up (kernel/privileges.py): reads files, runs logins.

The worker asks for what renews a credential: the text of a credential file, the certificates of a file, whether a file
is another one than before, the output of a program that fetches a token. Whoever has taken the worker over can ask as
well; so only what is a credential file in order comes out of any file, of a file of authorities the certificates alone,
and no program runs but our own and those that credential files name, in the environment that the attachment began with.

Started by the worker (worker/delegate.py) as `python -S -P -s monitor.py --name NAME`, with a channel to it as standard
input. The first packet brings the configuration. Each question is one packet, with a socket on which the answer goes
back, so that none waits for another and an answer that nobody waits for any more harms nobody. The worker's end is this
process's end; without this process the worker serves on, with the credential that it has. It writes nothing, and has no
descriptor of the disk's. It stays as long as the disk is attached, so it is small: no trio. Modelled on the privileged
monitor of OpenSSH's sshd.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from blobfuse_dysk import environment
from blobfuse_dysk.azure.credential import access
from blobfuse_dysk.azure.credential.credential import Proof
from blobfuse_dysk.azure.credential.file import parse_conf, read_private
from blobfuse_dysk.azure.credential.tokencommand import MOST_OUTPUT, own_command
from blobfuse_dysk.device.ipc import message
from blobfuse_dysk.device.kernel import privileges
from blobfuse_dysk.errors import CredentialError, DyskError

__all__ = ["Monitor", "main"]

_ANSWER_S = 30.0  # for the worker to take an answer
_MOST_AUTHORITIES = 8 << 20  # bytes
_CERTIFICATE = re.compile(
    rb"-----BEGIN (?P<kind>(?:X509 |TRUSTED )?CERTIFICATE)-----\s[A-Za-z0-9+/=\s]+-----END (?P=kind)-----"
)


class Monitor:
    """What may be asked, and the answers. proof_file: of the credential that the attachment has now, or ''."""

    def __init__(self, proof_file: str) -> None:
        self._commands = {own_command()}
        # What a worker before this one had in its configuration it may have made up; what is in the file counts.
        if proof_file:
            with contextlib.suppress(DyskError):
                self._credential(proof_file)

    def serve(self, channel: socket.socket) -> None:
        """Answer until the worker is gone."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
        while True:
            data, fds, whole = message.receive_packet(channel)
            if not data:
                return
            with contextlib.ExitStack() as stack:
                answers = [stack.enter_context(socket.socket(fileno=fd)) for fd in fds]
                if whole and len(answers) == 1:
                    with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
                        self._answer(json.loads(data), answers[0], channel)

    def _answer(self, question: dict[str, Any], answers: socket.socket, channel: socket.socket) -> None:
        if question["op"] == "run":
            answer = self._start(tuple(question["command"]), answers, channel)
            if answer is None:
                return
        elif question["op"] == "credential":
            try:
                answer = {"text": self._credential(question["path"])}
            except DyskError as error:
                answer = {"error": message.error_to_message(error)}
        elif question["op"] == "authorities":
            try:
                answer = {"text": _certificates(question["path"])}
            except OSError as problem:
                answer = {"errno": problem.errno}
        else:
            answer = {"signature": access.signature_of(question["path"])}
        answers.settimeout(_ANSWER_S)
        answers.sendall(json.dumps(answer).encode())

    def _credential(self, path: str) -> str:
        """The text of a file, if all of it is what a credential file has; the program that it names may run."""
        text = read_private(Path(path))
        proof = Proof.from_conf(parse_conf(Path(path), text))
        if proof and proof.token_command:
            self._commands.add(proof.token_command)
        return text

    def _start(
        self, command: tuple[str, ...], answers: socket.socket, channel: socket.socket
    ) -> dict[str, object] | None:
        """Have a program run, in a process that answers by itself; or say why not."""
        if command not in self._commands:
            error = CredentialError(f"no credential file names the program {command[:1]}", remedy="reload the file")
            return {"error": message.error_to_message(error)}
        if os.fork():
            return None
        try:
            channel.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            answers.sendall(json.dumps(_run(command, answers)).encode())
        finally:
            os._exit(0)


def _run(command: tuple[str, ...], asker: socket.socket) -> dict[str, object]:
    """What the program leaves, the end of its standard error only; it is ended when the asker goes, or when its output
    is longer than a token can be.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        return {"errno": error.errno}
    assert process.stdout
    assert process.stderr
    files = {file.fileno(): file for file in (process.stdout, process.stderr)}
    output, written = process.stdout.fileno(), dict.fromkeys(files, b"")
    pidfd = os.pidfd_open(process.pid)
    waits = {*files, asker.fileno(), pidfd}
    poll = select.poll()
    for fd in waits:
        poll.register(fd, select.POLLIN)
    while waits != {asker.fileno()}:
        for fd, _ in poll.poll():
            if fd == asker.fileno():
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                os._exit(0)
            piece = os.read(fd, 1 << 16) if fd != pidfd else b""
            if piece:
                written[fd] += piece
                if len(written[fd]) > MOST_OUTPUT and fd == output:
                    os.killpg(process.pid, signal.SIGKILL)
                    waits = {asker.fileno()}
                    break
                written[fd] = written[fd][-MOST_OUTPUT:]
                continue
            poll.unregister(fd)
            waits.remove(fd)
            if fd != pidfd:
                files[fd].close()
    stdout, stderr = (text.decode("latin-1") for text in written.values())
    return {"status": process.wait(), "stdout": stdout, "stderr": stderr}


def _certificates(path: str) -> str:
    """Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        data = file.read(_MOST_AUTHORITIES)
    return "\n".join(found[0].decode("ascii") for found in _CERTIFICATE.finditer(data))


def main() -> int:
    """Take the configuration from standard input's channel, and answer. Return the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # as the worker
    privileges.seclude(f"dysk-monitor {sys.argv[-1]}", name="dysk-monitor")
    channel = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _, fds, _ = message.receive_packet(channel)
    if not fds:
        return 1
    config = json.loads(os.pread(fds[0], os.fstat(fds[0]).st_size, 0))
    os.close(fds[0])
    environment.restore(config["variables"])
    Monitor(config["credential"]["proof"]["file"]).serve(channel)
    return 0


if __name__ == "__main__":
    os._exit(main())  # nothing is left to tidy up
