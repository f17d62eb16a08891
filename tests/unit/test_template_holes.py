"""What is made after a template has filled its holes lies close together, in pages that nothing else is in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Objects, and pieces of malloc(), of which most are freed; a fifth of them stays where it is.
MAKE_HOLES = """
import ctypes, gc, json, sys
from blobfuse_dysk.device.template import holes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
SIZES = (16, 32, 48, 64, 208, 512)
def make(size, number):
    return object() if size == 16 else float(number) if size == 32 else bytes(size - 33)
kept = [[make(size, number) for number in range(5 * (24_000 // size))] for size in SIZES]
pieces = [[libc.malloc(ctypes.c_size_t(size)) for number in range(5 * 60)] for size in (600, 3000, 8000)]
for each in kept:
    each[:] = [one for number, one in enumerate(each) if number % 5 == 0]
for each in pieces:
    for number, at in enumerate(each):
        if number % 5:
            libc.free(ctypes.c_void_p(at))
old = {id(one) >> 12 for each in kept for one in each}
top = max(map(max, pieces))
"""
FILL = """
holes.fill()
gc.freeze()
"""
# How many of those that are made now lie in pages with what was there before, or below it.
COUNT_OLD = """
lies = {}
for size in SIZES:
    new = [make(size, number) for number in range(100)]
    lies[f"objects of {size}"] = sum(id(one) >> 12 in old for one in new)
for size in (600, 3000):
    new = [libc.malloc(ctypes.c_size_t(size)) for number in range(20)]
    lies[f"pieces of {size}"] = sum(at < top for at in new)
print(json.dumps(lies))
"""


def run(*parts: str, **variables: str) -> dict[str, int]:
    """What a program of these prints."""
    program = "".join(parts)
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_without_it_what_is_new_goes_where_something_is_already() -> None:
    lies = run(MAKE_HOLES, COUNT_OLD)
    for what, number in lies.items():  # so this program can tell
        assert number >= (90 if "objects" in what else 20), (what, lies)


def test_what_is_new_lies_in_pages_of_its_own() -> None:
    lies = run(MAKE_HOLES, FILL, COUNT_OLD)
    for what, number in lies.items():
        # Some are what the program itself has made and freed since, among them.
        assert number <= (20 if "objects" in what else 0), (what, lies)


@pytest.mark.parametrize("allocator", ["pymalloc", "malloc"])
def test_it_takes_little_however_memory_is_handed_out(allocator: str) -> None:
    takes = """
import json, time
from blobfuse_dysk.device.template import holes
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
before = rss()
holes.fill()
print(json.dumps({"bytes": rss() - before}))
"""
    assert run(takes, PYTHONMALLOC=allocator)["bytes"] < 16 << 20


def test_a_few_large_holes_are_taken_only_once() -> None:
    again = """
before = sum(map(len, holes._kept))
holes.fill()
print(json.dumps({"first": before, "again": sum(map(len, holes._kept)) - before}))
"""
    taken = run(MAKE_HOLES, FILL, again)
    assert taken["again"] < taken["first"] / 5


def test_a_template_fills_its_holes_before_it_forks() -> None:
    serves = """
import json, socket, time
from blobfuse_dysk.device.template import holes, server
class Serves:
    def __init__(self, listener, run):
        pass
    def serve(self):
        print(json.dumps({"taken": sum(map(len, holes._kept))}))
server.Template = Serves
server.serve(socket.socket(socket.AF_UNIX), "", time.time_ns(), leaves_cgroup=True)
"""
    assert run(serves)["taken"] > 100
