"""Workers as their holder sees them: started, handed what they need, listened to, killed, reaped.

Standard library only, as the holder.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket

from blobfuse_dysk.device.holder import program
from blobfuse_dysk.device.ipc import message, state
from blobfuse_dysk.device.ipc.log import LOGGED
from blobfuse_dysk.device.kernel import fuse, programs
from blobfuse_dysk.device.kernel.memfd import locked

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Callable

    from blobfuse_dysk.device.holder.reservation import Reservation
    from blobfuse_dysk.device.ipc.messages import Briefing, Program
    from blobfuse_dysk.device.ipc.statefile import StateFile

__all__ = ["Crew", "Pauses", "WorkerProcess", "run_apart"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_MOST_FREE, _FREE_AGAIN_S = 5, 2.0
_MOST_LINES = 20  # of standard error that are kept for an error message


class Pauses:
    """How long to wait between the death of a worker and the start of the next.

    Not at all while deaths are rare: MOST_FREE in a row, and one more for every FREE_AGAIN_S that workers lived, so
    that one that is killed now and then costs no more than its start. Beyond that it is a crash loop, and each pause is
    twice as long as the one before, until workers have lived for long enough to have all free starts back.
    """

    def __init__(self) -> None:
        self._free = float(_MOST_FREE)
        self._next_s = _FIRST_PAUSE_S

    def after(self, lived_s: float) -> float:
        """The pause after a worker that lived so long, both in seconds."""
        self._free = min(_MOST_FREE, self._free + lived_s / _FREE_AGAIN_S)
        if self._free == _MOST_FREE:
            self._next_s = _FIRST_PAUSE_S
        if self._free >= 1:
            self._free -= 1
            return 0.0
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return pause_s


class WorkerProcess:
    """A running worker: its channel (standard input there), its standard error, its end.

    One that another holder had started is init's child: how it ends is not known, only that it does.
    """

    def __init__(self, pid: int, pidfd: int, channel: socket.socket, stderr: int, *, ours: bool = True) -> None:
        """The descriptors belong to this from now on. ours: it is a child of this process."""
        self.pid = pid
        self.pidfd = pidfd
        self.channel = channel
        self.stderr = stderr
        os.set_blocking(stderr, False)
        self.ours = ours
        self.listening = True  # its end of the channel is open
        self.reason: str | None = None  # why it gives up, by its own word
        self._last_lines: list[str] = []
        self._status: int | None = None

    @classmethod
    def start(cls, command: Program) -> WorkerProcess:
        """Start a process of {worker: argv, environment}. Until it is briefed it ends when we do. Raises OSError."""
        channel, theirs = message.channel()
        stderr, write_end = os.pipe2(os.O_CLOEXEC)
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            pid = programs.start(command["worker"], command["environment"], (theirs.fileno(), null, write_end))
        except OSError:
            channel.close()
            os.close(stderr)
            raise
        finally:
            theirs.close()
            os.close(write_end)
            os.close(null)
        return cls(pid, os.pidfd_open(pid), channel, stderr)

    def fds(self) -> list[int]:
        """What to wait for."""
        fds = [self.stderr, self.pidfd]
        return [*fds, self.channel.fileno()] if self.listening else fds

    def hang_up(self) -> None:
        """It closed its end of the channel, so do not wait for that any more."""
        self.listening = False

    def read_stderr(self) -> list[str]:
        """Lines that the worker (or libfuse in it) wrote to its standard error since the last call."""
        text = b""
        with contextlib.suppress(BlockingIOError):
            text = os.read(self.stderr, 64 << 10)
        lines = [line for line in text.decode(errors="replace").splitlines() if line.strip()]
        last_words = [line for line in lines if not line.startswith(LOGGED)]
        self._last_lines = (self._last_lines + last_words)[-_MOST_LINES:]
        return [line.removeprefix(LOGGED) for line in lines]

    def kill(self) -> None:
        """SIGKILL; its death shows on pidfd. One that is not our child may be gone already."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> list[str]:
        """Wait for the end, which must be certain; return what it said last, as read_stderr."""
        if self.ours:
            _, self._status = os.waitpid(self.pid, 0)
        else:
            state.has_ended(self.pidfd)
        lines = self.read_stderr()
        self.channel.close()
        os.close(self.stderr)
        os.close(self.pidfd)
        return lines

    def end_text(self) -> str:
        """How it ended and its last words, for people."""
        if self._status is None:
            how = "not seen how"
        else:
            code = os.waitstatus_to_exitcode(self._status)
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        last_words = self.reason or (self._last_lines[-1] if self._last_lines else None)
        return f"{how}: {message.clip(last_words)}" if last_words else how


class Crew:
    """What all workers of an attachment get: FUSE connection, control socket, configuration, dirty ring.

    And, where the kernel cannot send requests again, memory for those that a worker has taken (worker/taken.py).
    """

    def __init__(
        self,
        name: str,
        log: str,
        place: Reservation,
        config_fd: int,
        ring_fd: int | None = None,
        taken_fd: int | None = None,
    ) -> None:
        """log: the directory. config_fd: a memfd with secrets, never read here. ring_fd: None for a new, empty ring."""
        self._name = name
        self._log = log
        self._place = place
        self._config_fd = config_fd
        self._config_memory = locked(config_fd)
        # Filled by workers, and never read here: see store/parts/ring.py.
        self._ring_fd = os.memfd_create("dysk-ring") if ring_fd is None else ring_fd
        self._taken_fd = taken_fd

    @property
    def recovers(self) -> bool:
        """Whether a worker gets the requests that the one before it had taken when it died."""
        return self._taken_fd is not None or fuse.can_resend(self._place.init)

    def keep_requests(self, *, always: bool) -> None:
        """Have what workers take outlive them, if the kernel, whose INIT is known now, does not see to it, or `always`.

        Before the first one is briefed: of what another took there is nothing in a memory that is made later. Raises
        OSError.
        """
        if always or not fuse.can_resend(self._place.init):
            self._taken_fd = os.memfd_create("dysk-taken")

    def parts(self) -> dict[str, int]:
        """The descriptors that the attachment consists of."""
        assert self._place.control
        return {
            "fuse": self._place.fuse_fd,
            "config": self._config_fd,
            "ring": self._ring_fd,
            **({} if self._taken_fd is None else {"taken": self._taken_fd}),
            "control": self._place.control.fileno(),
        }

    def replace_config(self, fd: int) -> None:
        """Later workers get this configuration. The descriptor is ours from now on."""
        os.close(self._config_fd)
        self._config_fd = fd
        if self._config_memory:
            self._config_memory.close()
        self._config_memory = locked(fd)

    def start_standby(self, resume: StateFile, command: Program) -> WorkerProcess:
        """Start one that is to stand by, of a program that a worker named. Raises OSError."""
        program.check(command, self._name)
        worker = WorkerProcess.start(command)
        self.brief(worker, resume, standby=True)
        return worker

    def brief(
        self, worker: WorkerProcess, resume: StateFile | None, *, resend: bool = False, standby: bool = False
    ) -> None:
        """Tell it to serve, or to stand by until it is told to.

        resume: the state of the attachment, for a worker after the first. resend: requests died with the one before.
        To one that was told already it may be said again, and changes nothing.
        """
        briefing: Briefing = {
            "op": "standby" if standby else "start",
            "protocol": message.PROTOCOL,
            "name": self._name,
            "log": self._log,
            "init": base64.b64encode(self._place.init).decode(),
            "resume": resume,
            "resend": resend,
        }
        parts = self.parts()
        fds = [parts[name] for name in ("config", "fuse", "control", "ring", "taken") if name in parts]
        message.send(worker.channel, briefing, fds, wait=False)  # if it is dead, its pidfd says so


def run_apart(work: Callable[[], None]) -> None:
    """Run `work` in a process of its own, with no descriptor of this one, and do not wait for it.

    For what may have to wait for the worker, which only this process can replace. Without our descriptors, so that the
    FUSE connection ends when holder and worker are gone, whatever that process is waiting for.
    """
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    try:
        if os.fork() == 0:
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            work()
    finally:
        os._exit(0)
