"""dyskctl attach-file and shutdown: what the units of systemd call."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click

from blobfuse_dysk.cli.attaching import attach_disk, parse_disk
from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import attachment_json, print_error, print_json
from blobfuse_dysk.errors import AttachedError, BusyError, DyskError, NotFoundError

__all__ = ["attach_file", "shutdown"]

_IO_TIMEOUT_S = 30.0  # for a service that does not answer, once the machine shuts down
_LIMIT_S = 90.0
_PAUSE_S = 0.5


@click.command(name="attach-file", cls=Verb)
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def attach_file(context: click.Context, file: Path) -> None:
    """Attach the disk that a file describes, and print its device. The name is the file's, without .conf.

    The file has lines `key = value`: disk, and any option of `dyskctl attach`. A disk that is attached under that name
    already is left as it is. See dysk@.service(8).

    \b
    /etc/dysk/disks.d/db.conf:
      disk = mystore/disks/db
      io_timeout = never

    \b
    Example:
      dyskctl attach-file /etc/dysk/disks.d/db.conf
    """
    from blobfuse_dysk import attachment
    from blobfuse_dysk.diskfile import read_disk_file

    described = read_disk_file(file)
    disk, options = parse_disk(described.disk), described.options
    with contextlib.suppress(NotFoundError):
        found = attachment.get(options.name or "")
        if found.state != "dead":
            if found.disk != disk.key:
                raise AttachedError(
                    f"the name {found.name} is taken by {found.disk}", remedy=f"first: dyskctl detach {found.name}"
                )
            print_json(attachment_json(found)) if settings(context).json else print(found.device)
            return
    attach_disk(settings(context), disk, options)


@click.command(cls=Verb)
@click.pass_context
def shutdown(context: click.Context) -> None:
    """While the machine shuts down: wait until all disks are detached, detach those that nobody mounts.

    I/O that waits for a service which does not answer fails after 30 seconds from then on, whatever io-timeout is, so
    that unmounting comes to an end. After 90 seconds the disks that cannot reach their service are let go by force.
    Does nothing unless systemd is stopping the machine.

    \b
    Example:
      dyskctl shutdown
    """
    from blobfuse_dysk import attachment, environment
    from blobfuse_dysk.mount import tools

    answer = tools.run_tool([tools.find_tool("systemctl"), "is-system-running"])
    if answer.stdout.strip() != "stopping":
        return
    deadline = time.monotonic() + _LIMIT_S
    hurried: set[str] = set()
    while present := attachment.attachments():
        for found in present:
            if found.name not in hurried:
                hurried.add(found.name)
                _hurry(found.name)
            mine = not (environment.config_dir() / "disks.d" / f"{found.name}.conf").exists()
            with contextlib.suppress(BusyError, NotFoundError):
                if time.monotonic() > deadline:
                    if found.state != "attached":
                        _tell(found.name, force=True)
                elif mine and not found.mountpoints:
                    _tell(found.name, force=found.state == "dead")
        if time.monotonic() > deadline:
            return
        time.sleep(_PAUSE_S)


def _hurry(name: str) -> None:
    from blobfuse_dysk import attachment, live

    with contextlib.suppress(DyskError):
        io_timeout_s = attachment.find_state(name)["io_timeout_s"]
        live.change(name, io_timeout_s=min(_IO_TIMEOUT_S, io_timeout_s or _IO_TIMEOUT_S))


def _tell(name: str, *, force: bool) -> None:
    """Detach, and say what went wrong, for the journal."""
    from blobfuse_dysk import attachment

    try:
        attachment.detach(name, force=force, lose_data=force, timeout_s=_IO_TIMEOUT_S)
    except (BusyError, NotFoundError):
        raise
    except DyskError as error:
        print_error(f"{name}: {error}", error.remedy, as_json=False)
