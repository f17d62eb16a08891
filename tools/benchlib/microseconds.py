"""Where the microseconds of a request go: CPU time of the worker's code, layer by layer, then with FUSE around it.

    .venv/bin/python -m tools.benchlib.microseconds [--depth 32] [--count 5000] [--repeat 5]

Each layer of the block layer is called by as many tasks as the depth says, on a server of this project without any
service time; what a layer costs is the difference to the one below. The last rows are those of a real attachment under
fio, user and system time of the worker, and of nbdfuse with nbdkit's curl plugin and the plain prototype in one
run. CPU time of the least disturbed of several runs: on a machine that does other things, medians say more about
those.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Awaitable, Callable
from random import Random

import trio

from blobfuse_dysk.azure.credential.resolve import resolve
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.store.contract import Store
from blobfuse_dysk.store.open import open_stack
from blobfuse_dysk.store.parts.ring import Ring
from blobfuse_dysk.store.stack import Stack, StackOptions
from tools.benchlib import fio
from tools.benchlib.meter import Meter
from tools.benchlib.peers.nbdfuse import nbdfuse_device
from tools.benchlib.peers.prototype import prototype_device
from tools.benchlib.place import Place, open_place

__all__ = ["main"]

_SIZE = 64 << 20  # bytes; of the disk whose layers are called
_DEVICE_SIZE = 512 << 20  # bytes; many times the read cache, so that each read under fio is a request
_BLOCK = 4096  # bytes
Call = Callable[[int], Awaitable[object]]


async def cpu_us(call: Call, depth: int, count: int, repeat: int) -> float:
    """CPU time of this process for one call, in microseconds, with `depth` of them in progress."""
    random = Random(1)
    left = 0

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(random.randrange(_SIZE // _BLOCK) * _BLOCK)

    runs = []
    for _ in range(repeat):
        left = count
        before = time.process_time()
        async with trio.open_nursery() as nursery:
            for _ in range(depth):
                nursery.start_soon(caller)
        runs.append((time.process_time() - before) / count * 1e6)
    return min(runs)


def layers(stack: Stack) -> list[Store]:
    """The layers of a stack, from the bottom. No interface shows them, as nobody else has any business there."""
    found: list[Store] = [stack.store]
    while (inner := getattr(found[-1], "_inner", None)) is not None:
        found.append(inner)
    return found[::-1]


async def print_layers(place: Place, depth: int, count: int, repeat: int) -> None:
    """A row for the HTTP client and one for each layer."""
    address, credential = resolve(DiskAddress.parse(place.make_disk("layers", _SIZE)), AttachOptions())
    options = StackOptions.of(AttachOptions(), "bench")
    descriptor = os.memfd_create("ring")
    ring = Ring(descriptor, 64 << 20)
    data = os.urandom(_BLOCK)
    async with open_stack(address, credential, options, ring=ring) as stack:
        for offset in range(0, _SIZE, 1 << 20):
            await stack.store.write(offset, os.urandom(1 << 20))
        await stack.store.flush()
        client = getattr(layers(stack)[0], "_client")  # noqa: B009 (a private name, on purpose)
        rows: list[tuple[str, Call, Call]] = [
            (
                "HTTP client",
                lambda offset: client.get_range(offset, _BLOCK, timeout_s=30.0),
                lambda offset: client.put_pages(
                    offset, data, lease_id=stack.lease_id, epoch=stack.epoch, timeout_s=30.0
                ),
            )
        ]
        for layer in layers(stack):
            rows.append((type(layer).__name__, _reader(layer), _writer(layer, data)))
        below = [0.0, 0.0]
        for name, *calls in rows:
            cells = []
            for side, call in enumerate(calls):
                total = await cpu_us(call, depth, count, repeat)
                cells.append(f"{total - below[side]:+.1f} | {total:.1f}")
                below[side] = total
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
        await stack.store.flush()
        await stack.release()
    ring.close()
    os.close(descriptor)


def _reader(layer: Store) -> Call:
    return lambda offset: layer.read(offset, _BLOCK)


def _writer(layer: Store, data: bytes) -> Call:
    return lambda offset: layer.write(offset, data)


def print_devices(place: Place, depth: int, repeat: int) -> None:
    """A row for the worker of a real attachment, and one for each peer."""
    device = place.run("attach", place.make_disk("io", _DEVICE_SIZE), "--name", "io")
    fio.fill(device)
    workers = Meter(tuple(place.processes("worker")))
    read, write = (_device_us(device, pattern, depth, repeat, workers) for pattern in ("randread", "randwrite"))
    print(f"| all of the worker, by /proc/PID/stat, under fio | | {read:.1f} | | {write:.1f} |", flush=True)
    place.run("detach", "io")
    with nbdfuse_device(place.url("io"), place.root) as (peer, processes):
        used = _device_us(peer, "randread", depth, repeat, Meter(processes))
        print(f"| nbdfuse + nbdkit curl, likewise | | {used:.1f} | | |", flush=True)
    with prototype_device(place.url("io"), _DEVICE_SIZE, place.root) as (peer, processes):
        used = _device_us(peer, "randread", depth, repeat, Meter(processes))
        print(f"| plain prototype, likewise | | {used:.1f} | | |")


def _device_us(device: str, pattern: fio.Pattern, depth: int, repeat: int, meter: Meter) -> float:
    return min(fio.run(device, fio.Job(pattern, depth, 2.0), meter)["cpu_us_per_io"] for _ in range(repeat))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--count", type=int, default=5000, help="calls in each run")
    parser.add_argument("--repeat", type=int, default=5, help="runs; the least disturbed one counts")
    options = parser.parse_args()
    print(f"CPU time in microseconds of a random 4 KiB request, depth {options.depth}, no service time\n")
    print("| | read | so far | write | so far |\n|---|---|---|---|---|")
    with open_place(0) as place:
        os.environ["AZURE_STORAGE_CONNECTION_STRING"] = place.server.connection_string
        trio.run(print_layers, place, options.depth, options.count, options.repeat)
        print_devices(place, options.depth, options.repeat)


if __name__ == "__main__":
    main()
