"""Starts programs of ours: as a fork of this process if that has them loaded as they are installed, else as any other.

Loading is what takes longest at the start of a worker, 400 modules. device/template loads them and forks holders; what
it has loaded, these have, too, and fork their workers, and those their monitors. A fork is the program that would have
been executed, with the same arguments, environment and rights:

- it is done in a process of one thread, for locks that another has would stay locked in the child;
- descriptors are 0, 1 and 2 as given, and no other (what runs a command, cli/handed.py, is given two more). What this
  process had is frozen (gc), so that nothing of it is taken apart in the child, where its descriptors may be other
  files;
- signals are those of a new interpreter, and none reaches the child while they still are its parent's;
- the environment is the same, so a program that is to have another one is executed;
- the command line is shown as it would have been (commandline.py);
- random numbers are its own;
- locks on memory and timers are not inherited; what else hardening.py sets is, and is set once more.

What is installed may be replaced while a process lives, and what it has loaded is then another version, parts of which
would still be loaded from the new one. So before a fork all files are looked at that this process is made of: modules,
and what else it has mapped. Each must be as it was when it was loaded, and older than the loading. Else the program is
executed, and is of what is installed now. Standard library only.
"""

from __future__ import annotations

import fcntl
import gc
import math
import os
import signal
import struct
import sys
import time

from blobfuse_dysk.device.kernel import commandline

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Main = Callable[[], int]
    Stdio = tuple[int, int, int]

__all__ = ["become", "find", "fork", "fork_child", "is_fork", "is_installed", "keep", "start"]

_COARSE_NS = 10_000_000  # by which the time of a change may lag behind the clock: a tick
_TRUSTED_S = 0.1  # for which a look at all files counts
_LOOK = struct.Struct("=QQQQ")
_NONE = bytes(_LOOK.size)


class _Loaded:
    """Programs by the beginning of their command lines, and what they consist of."""

    def __init__(self, programs: Mapping[tuple[str, ...], Main], environment: Mapping[str, str], began_ns: int) -> None:
        self.programs = dict(programs)
        self.environment = dict(environment)
        paths = _paths()
        # In one piece: to count a reference to each path is to write to the page that it is in, and 400 are in as many.
        self._paths = "\0".join(paths)
        self._found = _look(paths)
        self._looked_at_s = -_TRUSTED_S
        self._stale = _last_change(paths) >= began_ns - _COARSE_NS

    def is_installed(self) -> bool:
        """Whether all of it is as it was loaded. What was not once is not any more."""
        now = time.monotonic()
        if not self._stale and now >= self._looked_at_s + _TRUSTED_S:
            self._stale = _look(self._paths.split("\0")) != self._found
            self._looked_at_s = now
        return not self._stale

    def find(self, argv: Sequence[str], environment: Mapping[str, str]) -> Main | None:
        """The program that these would start, whose modules may come from the path that this process had."""
        path = {"PYTHONPATH": self.environment.get("PYTHONPATH")}  # a holder has none, and looks at none
        if {**path, **environment} != {**path, **self.environment}:
            return None
        words = tuple(argv)
        return next((main for begin, main in self.programs.items() if words[: len(begin)] == begin), None)


_loaded: _Loaded | None = None
_is_fork = False


def keep(programs: Mapping[tuple[str, ...], Main], environment: Mapping[str, str], began_ns: int) -> None:
    """Have this process fork these from now on.

    programs: by what their command lines begin with. environment: this process's. began_ns: when loading began.
    """
    global _loaded
    _loaded = _Loaded(programs, environment, began_ns)


def is_installed() -> bool:
    """Whether what this process has loaded still is what is installed."""
    return _loaded is not None and _loaded.is_installed()


def is_fork() -> bool:
    """Whether this process shares memory with the one that has forked it."""
    return _is_fork


def start(argv: Sequence[str], environment: Mapping[str, str], stdio: Stdio) -> int:
    """Start a program; return its process id. Raises OSError.

    stdio: the descriptors that are 0, 1 and 2 there. They stay the caller's.
    """
    pid = fork(argv, environment, stdio)
    if pid is not None:
        return pid
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
    return os.posix_spawn(argv[0], list(argv), environment, file_actions=actions, setsigdef=[signal.SIGHUP])


def fork(argv: Sequence[str], environment: Mapping[str, str], stdio: Stdio) -> int | None:
    """As `start`, but None if this process cannot fork that program (now)."""
    program = find(argv, environment)
    if program is None or not is_installed():
        return None
    return fork_child(lambda: become(program, stdio))


def find(argv: Sequence[str], environment: Mapping[str, str]) -> Main | None:
    """What a fork of this process runs to be the program that would be started by these; None if there is none."""
    main = _loaded.find(argv, environment) if _loaded else None
    if main is None:
        return None

    def run() -> int:
        commandline.show(argv)
        sys.argv = list(argv[next(i for i, word in enumerate(argv) if word.endswith(".py")) :])
        return main()

    return run


def fork_child(do: Callable[[], object]) -> int | None:
    """Fork a child that does this, and ends if that returns; None if there can be none (now).

    It has all that this process has, and no signal reaches it, until it does `become`.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        return None
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        try:
            pid = os.fork()
        except OSError:  # no memory for that; another program takes less of it
            return None
        if pid == 0:
            try:
                do()
            finally:
                os._exit(1)  # the frames below are another program's
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def become(run: Main, fds: Sequence[int]) -> None:
    """Be that program, in a child that was forked for it, and end with what it returns.

    fds: the descriptors that are 0, 1, 2 and so on from now on. There are no others then.
    """
    global _is_fork
    status = 1
    try:
        gc.freeze()
        _is_fork = True
        if random := sys.modules.get("random"):
            random.seed()
        _reset_signals()
        # Through numbers above all of them: one of them may be the number of another.
        for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(fds)) for fd in fds]):
            os.dup2(fd, number)
        os.closerange(len(fds), os.sysconf("SC_OPEN_MAX"))
        status = run()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)  # the frames below are another program's


def _reset_signals() -> None:
    """As in a new interpreter. What comes before that is nobody's: all are blocked."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _paths() -> list[str]:
    """The files that this process consists of. Source: proc_pid_maps(5)."""
    found = {path for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None))}
    with open("/proc/self/maps") as file:
        for line in file:
            words = line.rstrip("\n").split(maxsplit=5)
            if len(words) == 6 and words[5].startswith("/"):
                found.add(words[5])
    return sorted(found)


def _look(paths: Sequence[str]) -> bytes:
    """What tells these files from others in their places; those that are not there are told from all others."""
    looks = bytearray()
    for path in paths:
        try:
            found = os.stat(path)
        except OSError:
            looks += _NONE
        else:
            looks += _LOOK.pack(found.st_ctime_ns, found.st_dev, found.st_ino, found.st_size)
    return bytes(looks)


def _last_change(paths: Sequence[str]) -> float:
    """When one of them was changed last, in nanoseconds; infinite if one is not there any more."""
    try:
        return max(os.stat(path).st_ctime_ns for path in paths)
    except OSError:
        return math.inf
