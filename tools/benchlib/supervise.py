"""Ctrl-C reaches the benchmark alone, not the programs that it started: it takes them down itself, in the right order.

A terminal sends SIGINT to every process of the foreground group: the server would be gone before the disks on it are
detached. So the run is a child in a session of its own, and its parent, which stays with the terminal, hands on the
first SIGINT, SIGTERM or SIGHUP as SIGINT. Should the parent be killed, the kernel sends that signal.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

__all__ = ["supervised"]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTED = 130  # as a shell has it: 128 + SIGINT


def supervised(run: Callable[[], int]) -> int:
    """Call `run` in a child; returns its exit code, or INTERRUPTED."""
    sys.stdout.flush()
    parent = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON)  # the child may be under way before this goes on
    child = os.fork()
    if child == 0:
        os._exit(_as_child(run, parent, before))
    told = False

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            print("\nending: taking down what was started", file=sys.stderr, flush=True)
            os.kill(child, signal.SIGINT)
        told = True

    for number in _HANDED_ON:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _as_child(run: Callable[[], int], parent: int, mask: set[int | signal.Signals]) -> int:
    os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if os.getppid() == parent:  # it may have gone before the kernel was told
            code = run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return code
