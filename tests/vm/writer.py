"""The load in a machine: files written and synced one after the other, each acknowledged once it is safe.

`python3 writer.py write DIR FIRST` writes until it is killed; file N holds what N stands for, is fsynced with its
directory, and only then `ACK N` is printed. Old files are overwritten in turn, so that the disk does not fill up.
`python3 writer.py check DIR LAST` reads back: every file must hold a number not older than the last one acknowledged.
The first error of either ends it with status 1 and a line that begins with BAD.
"""

from __future__ import annotations

import hashlib
import os
import sys

FILES = 64
SIZE = 48 << 10


def content(number: int) -> bytes:
    """What file `number` holds: its number, then bytes that follow from it."""
    head = b"%016d" % number
    block = hashlib.sha512(head).digest()
    return (head + block * (SIZE // len(block)))[:SIZE]


def write(directory: str, first: int) -> None:
    """Write from `first` on."""
    folder = os.open(directory, os.O_RDONLY)
    with open("/dev/ttyS0", "w") as console:  # noqa: PTH123 -- no file
        number = first
        while True:
            fd = os.open(f"{directory}/f{number % FILES}", os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, content(number))
            os.fsync(fd)
            os.close(fd)
            os.fsync(folder)
            console.write(f"\nACK {number}\n")
            console.flush()
            number += 1


def check(directory: str, last: int) -> None:
    """`last`: the newest number that was acknowledged."""
    for slot in range(FILES):
        owed = last - (last - slot) % FILES  # the newest acknowledged number of this file
        if owed < 0:
            continue
        with open(f"{directory}/f{slot}", "rb") as file:  # noqa: PTH123 -- the machine's Python
            data = file.read()
        found = int(data[:16] or b"-1")
        if data != content(found) and found <= owed:
            raise ValueError(f"file {slot} is damaged")
        if found < owed:
            raise ValueError(f"file {slot} has {found}, {owed} was acknowledged")


def main() -> None:
    """See above."""
    what, directory, number = sys.argv[1:4]
    try:
        (write if what == "write" else check)(directory, int(number))
    except (OSError, ValueError) as error:
        text = f"BAD {what}: {error}"
        with open("/dev/ttyS0", "w") as console:  # noqa: PTH123
            console.write(f"\n{text}\n")
        sys.exit(text)


if __name__ == "__main__":
    main()
