"""tools/vm: makes what is needed, runs the scenarios, prints a summary."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from blobfuse_dysk.testing import PageBlobServer
from tests.vm.machine import Image, VmError
from tests.vm.place import ACCOUNT, KEY, LASTING, ROOT, Failed, Place
from tests.vm.scenarios import SCENARIOS

CACHE = ROOT / ".cache" / "vm"
HERE = Path(__file__).parent
SUITE = "bookworm"


def main() -> int:
    """Return the exit status: 0 when all went well."""
    parser = argparse.ArgumentParser(prog="tools/vm", description="Try the package in virtual machines; as root.")
    titles = "\n".join(f"  {name:14}{(scenario.__doc__ or '').splitlines()[0]}" for name, scenario in SCENARIOS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"scenarios:\n{titles}"
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", help="default: all")
    parser.add_argument("--package", type=Path, help="a package that was built already; default: build one")
    parser.add_argument("--tree", type=Path, help="the same of packaging/container/build --tree")
    parser.add_argument("--suite", default=SUITE, help=f"Debian's release in the machines; default: {SUITE}")
    parser.add_argument("--cuts", type=int, default=4, help="power cuts of the scenario power; default: 4")
    parser.add_argument("--kills", type=int, default=300, help="kills of the scenario worker; default: 300")
    parser.add_argument("--keep", action="store_true", help="keep the machines' consoles")
    options = parser.parse_args()
    unknown = [name for name in options.scenario if name not in SCENARIOS]
    if unknown:
        parser.error(f"unknown scenario {unknown[0]}; there are {', '.join(SCENARIOS)}")
    if options.suite != SUITE and not options.package:
        parser.error(f"--suite {options.suite} takes --package, built on that release (packaging/deb/build)")
    chosen = options.scenario or list(SCENARIOS)
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.0f} s] {text}", flush=True)

    image = _image(options.suite, say)
    work = Path(tempfile.mkdtemp(prefix="dysk-vm-"))
    results: dict[str, str] = {}
    with PageBlobServer({ACCOUNT: KEY}) as server:
        place = Place(image, work, options.package, options.tree, server, say, options.cuts, options.kills)
        try:
            for name in chosen:
                say(f"{name}: {(SCENARIOS[name].__doc__ or '').splitlines()[0]}")
                results[name] = _run(place, name)
                say(f"{name}: {results[name]}")
        finally:
            place.close()
        seen = server.stats()
    _summary(place, results, seen)
    if not options.keep:
        subprocess.run(["rm", "-rf", work], check=True)
    return int(any(result != "passed" for result in results.values()))


def _run(place: Place, name: str) -> str:
    machines = list(place.machines)
    try:
        SCENARIOS[name](place)
    except Exception as error:
        result = f"FAILED: {error}"
        if not isinstance(error, Failed):
            traceback.print_exc()
        for machine in place.machines:
            if machine.running:
                machine.thaw()
                _evidence(place, machine)
                machine.cut_power()
        place.server.outage(None)
        place.server.release()
        place.server.clear_faults()
        made = [each for each in place.machines if each not in machines and each.name not in LASTING]
        for machine in made:
            place.machines.remove(machine)
            machine.close()
        return result
    return "passed"


def _evidence(place: Place, machine: object) -> None:
    from tests.vm.machine import Machine

    assert isinstance(machine, Machine)
    try:
        command = "journalctl -b --no-pager | tail -n 60; systemctl list-jobs --no-pager; dyskctl list"
        place.say(f"the end of {machine.name}'s journal:\n{machine.ask(command, check=False, timeout_s=60)}")
    except VmError as error:
        place.say(f"no journal: {error}")


def _image(suite: str, say: object) -> Image:
    """The common disk, made anew when what it is made of changed."""
    assert callable(say)
    parts = [HERE / "make-image", HERE / "agent.py"]
    stamp = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    directory = CACHE / suite
    mark = directory / "stamp"
    if not mark.exists() or mark.read_text() != stamp:
        say("making the machine's disk (two minutes, once)")
        subprocess.run([HERE / "make-image", directory, suite], check=True)
        mark.write_text(stamp)
    return Image(directory)


def _summary(place: Place, results: dict[str, str], seen: dict[str, object]) -> None:
    print("\nsummary")
    for name, result in results.items():
        print(f"  {name:14}{result.splitlines()[0]}")
    for what, number in place.counts.items():
        print(f"  {what}: {number}")
    for what in ("overlapping_writes", "writes_without_lease", "writes_without_epoch"):
        print(f"  {what.replace('_', ' ')} at the service: {seen[what]}")
    failed = sum(result != "passed" for result in results.values())
    print(f"{len(results) - failed} passed, {failed} failed")


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("tools/vm: not root: run it with sudo")
    sys.exit(main())
