"""What a process gives up for good before it deals with bytes of the network: capabilities, the user root, new rights.

A worker needs one capability while it serves: CAP_IPC_LOCK, for what it maps is locked in memory
(hardening.py). All else that takes root it does before, or has others do. With root's user id alone it could still
write every file of root's, /etc/shadow included; so it takes the user id of a user who owns nothing, if there is one.
The package and tools/setup make that user; a tree of a Kubernetes driver (installed.py), which changes no file of its
machine's, has a number for it of its own. Parts of the program are loaded later, so where that user cannot read all of
it (a clone, or its Python, in somebody's home) CAP_DAC_READ_SEARCH stays as well.

Sources: capabilities(7), PR_SET_NO_NEW_PRIVS(2const), PR_CAPBSET_DROP(2const), PR_SET_KEEPCAPS(2const), setresuid(2).
These count for the calling thread and those that it starts, so there may be no other yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from blobfuse_dysk.device.kernel import commandline, hardening
from blobfuse_dysk.installed import TREES, own_tree

__all__ = ["USER", "User", "drop", "find_user", "seclude", "unreadable"]

USER = "_dysk"
_PASSWD = "/etc/passwd"
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NAME, _PR_CAPBSET_DROP = 4, 8, 15, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 38, 47, 4
_CAP_DAC_READ_SEARCH, _CAP_SETGID, _CAP_SETUID, _CAP_IPC_LOCK = 2, 6, 7, 14
_CAPABILITIES = 64
_CAPABILITY_VERSION = 0x20080522  # linux/capability.h: 64 bits, in two words


@dataclass(frozen=True, slots=True)
class User:
    """Who a process may become."""

    uid: int
    gid: int


def find_user(name: str = USER, path: str | None = None) -> User | None:
    """A user of this machine, or of this program's tree; one that owns nothing, so never root.

    path: the file to look into. Not by the name service, which may wait.
    """
    for each in (path,) if path else _passwd_files():
        try:
            with open(each, encoding="utf-8", errors="replace") as file:
                for line in file:
                    fields = line.rstrip("\n").split(":")
                    if fields[0] == name and len(fields) == 7 and fields[2].isdecimal() and fields[3].isdecimal():
                        return User(int(fields[2]), int(fields[3])) if int(fields[2]) and int(fields[3]) else None
        except OSError:
            pass
    return None


def _passwd_files() -> tuple[str, ...]:
    tree = own_tree()
    return (_PASSWD, f"{TREES}/{tree}{_PASSWD}") if tree else (_PASSWD,)


def unreadable(paths: Iterable[str]) -> str | None:
    """The first directory on the way to these that not everybody may read and search, if there is one."""
    for path in paths:
        at = os.path.realpath(path)
        while True:
            with contextlib.suppress(OSError):  # nothing is loaded from where nothing is
                mode = os.stat(at).st_mode
                needed = 0o005 if stat.S_ISDIR(mode) else 0o004
                if mode & needed != needed:
                    return at
            if at == "/":
                break
            at = os.path.dirname(at)
    return None


def drop() -> str | None:
    """Keep CAP_IPC_LOCK only, become the user who owns nothing, and let no program bring anything back.

    Returns why it is more than that, if it is. Raises OSError, and nothing may be served then.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    has = _capabilities(libc)
    user, why = find_user(), None
    if user is None:
        why = f"it has root's user id: there is no user {USER}"
    elif not (has >> _CAP_SETUID & 1 and has >> _CAP_SETGID & 1):
        user, why = None, "it has root's user id: CAP_SETUID and CAP_SETGID are missing"
    elif closed := unreadable([__file__, *filter(os.path.isabs, sys.path)]):
        why = f"it can read all files: the user {USER} could not load the program, as {closed} is not for everybody"
    keep = has & (1 << _CAP_IPC_LOCK | (1 << _CAP_DAC_READ_SEARCH if why else 0))
    _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(_CAPABILITIES):
        if not keep >> number & 1:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # takes CAP_SETPCAP; no program could use what is left
    if user:
        _prctl(libc, _PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    _set_capabilities(libc, keep)
    _prctl(libc, _PR_SET_DUMPABLE, 0)  # becoming another user may have changed it
    return why


def seclude(title: str, *, name: str) -> None:
    """For a process that keeps its rights, beside one that does not: nobody looks into it, and it stays in memory.

    title: what is seen of it in place of its command line. name: its short one, of which 15 bytes count.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)
    commandline.show([title])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    hardening.stay()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl {option}: {os.strerror(number)}")


def _capabilities(libc: ctypes.CDLL) -> int:
    """Those that this process may use, as bits. Source: capget(2)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    words = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable, for the low bits and for the high ones
    if libc.capget(header, words):
        return 0
    return (words[0] & words[1]) | (words[3] & words[4]) << 32


def _set_capabilities(libc: ctypes.CDLL, bits: int) -> None:
    """Have these and no others, effective and permitted; no program inherits any."""
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    words = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if libc.capset(header, words):
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")
