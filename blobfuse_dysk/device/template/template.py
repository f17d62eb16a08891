"""The template as a program: becomes a daemon before it loads what it is for, which is in server.py.

Started as `python -S -P -s template.py [--leave-cgroup]` with a listening socket as standard input.

Modules can have something done in each child that is forked (os.register_at_fork). What is loaded here wants that for
what other threads had: threading and logging renew locks, trio forgets its threads. Only a process of one thread forks
here, which has no lock at that moment (kernel/programs.py). So it is left out: it would write to 170 pages of each
child, and of its parent. Random numbers alone would be the same in all children; programs.py sees to that.
"""

from __future__ import annotations

import os
import socket
import sys
import time

__all__ = ["main"]


def main() -> int:
    """Serve what standard input listens to. Return the exit status."""
    began_ns = time.time_ns()  # before anything of ours is loaded
    if os.fork():
        os._exit(0)  # so that nobody has to wait for us but init
    vars(os)["register_at_fork"] = _pass_over  # before anything is loaded that has one
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    listener = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    program = os.path.abspath(__file__)
    sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(program), "..", "..", "..")))
    from blobfuse_dysk.device.kernel import cgroup

    leaves_cgroup = "--leave-cgroup" in sys.argv
    if leaves_cgroup:
        cgroup.join()  # before there is memory to be charged; holders say what of it could not be done
    from blobfuse_dysk.device.template.server import serve

    serve(listener, program, began_ns, leaves_cgroup=leaves_cgroup)
    return 0


def _pass_over(**hooks: object) -> None:
    """Take the place of os.register_at_fork."""


if __name__ == "__main__":
    os._exit(main())  # nothing is left to tidy up
