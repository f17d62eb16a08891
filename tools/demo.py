"""The demo: a page blob served by Azurite becomes a mounted ext4, is written to, and is read back from the blob.

It shows the commands that it runs, as a person would type them. Everything it makes lies in one directory or is named
in the state file there, so that --cleanup in a later process finds it all.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blobfuse_dysk import attachments, detach
from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.testing.azurite import Azurite

DISK = f"{Azurite.account}/demo/disk"
_DIRECTORY = Path("/run/dysk-demo")
_PATIENCE_S = 10.0  # for an attachment that is about to end
SAMPLE_SIZE = 16 << 20  # bytes

NEXT = """
The disk went through its whole life. What to type next:

  sudo tools/demo --keep        the same, and the disk stays mounted for you to play with
  sudo tools/test               everything that is tested
  dyskctl --help                the verbs; README.md tells how to attach a disk of your own account
"""
NEXT_KEPT = """
The disk stays mounted on {data}, served by Azurite. What to type next:

  cp -r /etc {data}
      use it as any file system
  dyskctl list
  dyskctl status {disk}
      this machine's attachments, and what this one is doing
  umount {data}
      writes everything out and lets the disk go
  mount -t dysk {disk} {data} -o credentials={credentials}
      and here it is again
  sudo tools/demo --cleanup{directory}
      remove all of this
"""


@dataclass(frozen=True, slots=True)
class Place:
    """The directory with everything that the demo makes."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def credentials(self) -> Path:
        return self.root / "azurite.conf"

    @property
    def data(self) -> Path:
        return self.root / "data"


class Narrator:
    """Runs commands, showing each with the time since the start, and its output."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:5.1f} s] {text}", flush=True)

    def run(self, *command: str) -> None:
        """Run a command; raises DyskError when it fails."""
        self.say(f"$ {shlex.join(command)}")
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise DyskError(f"{command[0]} failed with exit code {done.returncode}")


def show(narrator: Narrator, place: Place) -> None:
    """The demo itself. Raises DyskError; what was made by then is left to clean_up()."""
    narrator.say("starting Azurite, the emulator of the storage service")
    azurite = Azurite(die_with_parent=False, directory=place.root)
    azurite.start()
    place.state.write_text(json.dumps({"pid": azurite.pid, "endpoint": azurite.endpoint}))
    place.credentials.touch(mode=0o600)
    place.credentials.write_text(f"account_key = {azurite.key}\nendpoint = {azurite.endpoint}\n")

    data = str(place.data)
    mount = ("mount", "-t", "dysk", DISK, data, "-o", f"fstype=ext4,credentials={place.credentials}")
    narrator.run("dyskctl", "create", DISK, "--size", "1GiB", "--credentials", str(place.credentials))
    place.data.mkdir()
    narrator.run(*mount)

    sample = place.data / "sample"
    narrator.say(f"writing {SAMPLE_SIZE >> 20} MiB of random data to {sample}")
    content = os.urandom(SAMPLE_SIZE)
    sample.write_bytes(content)
    narrator.run("umount", data)
    narrator.run(*mount)
    narrator.say("reading it back; nothing of it is in this machine's cache any more")
    if sample.read_bytes() != content:
        raise DyskError(f"{sample} is not what was written")
    narrator.say(f"the same, SHA-256 {hashlib.sha256(content).hexdigest()[:16]}...")
    narrator.run("df", "-h", data)
    narrator.run("findmnt", data)
    narrator.run("dyskctl", "list")


def clean_up(narrator: Narrator, place: Place) -> None:
    """Take down what any earlier run of the demo left; what is not there any more is no error."""
    if not place.root.exists():
        narrator.say("nothing is left of the demo")
        return
    azurite: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        azurite = json.loads(place.state.read_text())
    if azurite:
        _take_down(narrator, place, azurite)
        _end_azurite(azurite["pid"], place)
    shutil.rmtree(place.root)
    narrator.say("removed all that the demo made")


def _take_down(narrator: Narrator, place: Place, azurite: dict[str, Any]) -> None:
    """See mount and attachment gone before their service.

    An interrupted mount.dysk takes its attachment back, or finishes, while mount(8) has ended already. Without the
    service nothing can be written any more, and nobody waits for it.
    """
    deadline = time.monotonic() + (_PATIENCE_S if _runs(azurite["pid"], place) else 0)
    while True:
        left = [each for each in attachments() if each.endpoint == azurite["endpoint"]]
        if left and time.monotonic() > deadline:
            narrator.say(f"letting {left[0].device} go by force")
            detach(left[0].name, force=True, lose_data=True)
        if os.path.ismount(place.data):
            narrator.say(f"$ umount {place.data}")
            if subprocess.run(["umount", place.data], stdin=subprocess.DEVNULL, check=False).returncode:
                raise DyskError(f"{place.data} cannot be unmounted", remedy=f"end what uses it: fuser -vm {place.data}")
        elif not left:
            return
        time.sleep(0.05)


def _runs(pid: int, place: Place) -> bool:
    """Whether the Azurite of an earlier run does, and its process id does not belong to something else by now."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cwd").readlink() == place.root
    return False


def _end_azurite(pid: int, place: Place) -> None:
    with contextlib.suppress(ProcessLookupError):
        if _runs(pid, place):
            os.killpg(pid, signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/demo", description=(__doc__ or "").splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep", action="store_true", help="leave the disk mounted, and Azurite running")
    choice.add_argument("--cleanup", action="store_true", help="remove what a run with --keep left")
    parser.add_argument(
        "--directory", type=Path, default=_DIRECTORY, help="where everything is put (default: %(default)s)"
    )
    options = parser.parse_args()
    narrator, place = Narrator(), Place(options.directory)
    directory = "" if options.directory == _DIRECTORY else f" --directory {shlex.quote(str(options.directory))}"
    try:
        if options.cleanup:
            clean_up(narrator, place)
            return 0
        if place.root.exists():
            raise DyskError("the demo is there already", remedy=f"remove it: sudo tools/demo --cleanup{directory}")
        place.root.mkdir(mode=0o700)
        try:
            show(narrator, place)
        except BaseException:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C again is not to leave half of it
            with contextlib.suppress(DyskError):  # what is in the way of it has been printed by umount
                clean_up(narrator, place)
            raise
        if not options.keep:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            clean_up(narrator, place)
        kept = NEXT_KEPT.format(data=place.data, disk=DISK, credentials=place.credentials, directory=directory)
        print(kept if options.keep else NEXT)
    except DyskError as error:
        print(f"tools/demo: {error.line()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
