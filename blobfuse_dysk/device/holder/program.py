"""What of a worker's word its holder believes: a program in its place only if root has installed it.

A worker takes bytes from the network, and has no rights but those that serving takes (device/worker/privileges.py). Its
holder has more. So what a worker says of the program that is to take its place is believed as far as it can be checked:
the interpreter is the holder's own, the arguments are those of a worker, and nobody but root could have written the
program, the modules that it finds, or a directory on the way there. (A tree of a Kubernetes driver has an interpreter
of its own, installed.py: a holder that is of a tree starts a worker of another tree with that tree's.) What belongs to
the installation that the holder is of itself is as good as the holder is, whoever owns it. Standard library only, as
the holder.
"""

from __future__ import annotations

import json
import os
import stat
import sys

from blobfuse_dysk.installed import interpreter_of, tree_of

TYPE_CHECKING = False  # importing typing would cost the holder half a MiB
if TYPE_CHECKING:
    from blobfuse_dysk.device.ipc.messages import Program

__all__ = ["OWN", "check", "has_same_variables"]

OWN = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
"""The directory of the installation that this holder is of."""
_WORKER = os.path.join("blobfuse_dysk", "device", "worker", "worker.py")
_FLAGS = ["-S", "-P", "-s"]
_MOST_LINKS = 40  # as the kernel has it; see path_resolution(7)


def check(command: Program, name: str) -> None:
    """Raise PermissionError, which says what is wrong, unless this may be started for the attachment `name`."""
    interpreter, *rest = command["worker"]
    if len(rest) != 6 or rest[:3] != _FLAGS or rest[4:] != ["--name", name]:
        raise PermissionError(0, "these are not the arguments of a worker")
    program = rest[3]
    if not program.endswith(f"/{_WORKER}"):
        raise PermissionError(0, f"{program} is no worker")
    if os.path.realpath(interpreter) != os.path.realpath(sys.executable) and not _is_of_tree(interpreter, program):
        raise PermissionError(0, f"{interpreter} is another interpreter than the holder's, {sys.executable}")
    for path in (interpreter, program, *command["environment"].get("PYTHONPATH", "").split(os.pathsep)):
        if not os.path.isabs(path):
            raise PermissionError(0, f"the path {path!r} is not absolute")
        if problem := None if _is_own(path) else _problem(path):
            raise PermissionError(0, problem)


def has_same_variables(before: int, after: int) -> bool:
    """Whether a worker's configuration, a memfd, has the variables of the one before: programs of root see them.

    All else in it concerns the disk alone, or is not believed (device/worker/monitor.py).
    """
    try:
        old, new = (json.loads(os.pread(fd, os.fstat(fd).st_size, 0))["variables"] for fd in (before, after))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(old == new)


def _is_of_tree(interpreter: str, program: str) -> bool:
    """Whether a tree's interpreter is to run the worker of the same tree, for a holder that is of a tree as well."""
    tree = tree_of(program)
    return bool(tree and tree_of(OWN + os.sep) and interpreter == interpreter_of(tree))


def _is_own(path: str) -> bool:
    return path == sys.executable or os.path.commonpath([OWN, os.path.normpath(path)]) == OWN


def _problem(path: str) -> str | None:
    """Who else could change what is at this path, and how; None if nobody can. What is not there is judged likewise."""
    pending, at, links = [part for part in path.split("/") if part], "/", 0
    if problem := _problem_of(at):
        return problem
    while pending:
        part = pending.pop(0)
        if part in (".", ".."):
            at = os.path.dirname(at) if part == ".." else at
            continue
        at = os.path.join(at, part)
        try:
            if problem := _problem_of(at):
                return problem
            target = os.readlink(at) if os.path.islink(at) else None
        except FileNotFoundError:
            parent = os.path.dirname(at)
            others = os.lstat(parent).st_mode & 0o022
            return f"{at} is not there, and others could make it" if others else None
        except OSError as error:
            return f"{at}: {error.strerror}"
        if target is not None:
            links += 1
            if links > _MOST_LINKS:
                return f"{path} has too many links"
            pending = [part for part in target.split("/") if part] + pending
            at = "/" if target.startswith("/") else os.path.dirname(at)
    return None


def _problem_of(path: str) -> str | None:
    """Of one file or directory. In a sticky directory others can make names, but not change those that are root's."""
    found = os.lstat(path)
    if found.st_uid != 0:
        return f"{path} belongs to user id {found.st_uid}, and only what is root's is started"
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o022 and not sticky:
        return f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return None
