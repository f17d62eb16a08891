"""The template as a program: becomes a daemon before it loads what it is for, which is in server.py.

Started as `python -S -P -s template.py [--leave-cgroup]` with a listening socket as standard input.
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


if __name__ == "__main__":
    os._exit(main())  # nothing is left to tidy up
