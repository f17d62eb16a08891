"""dyskctl status: what an attachment is and does, in ten lines; all that is counted with --verbose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.output import print_json, print_pairs, size_text
from blobfuse_dysk.cli.types import complete_attachment
from blobfuse_dysk.disk import format_size

if TYPE_CHECKING:
    from blobfuse_dysk.attached import Attachment

__all__ = ["status"]


@click.command(cls=Verb)
@click.argument("target", metavar="NAME|DEVICE|DISK", shell_complete=complete_attachment)
@click.option("--verbose", is_flag=True, help="Everything that is counted, as -o json has it.")
@click.pass_context
def status(context: click.Context, target: str, verbose: bool) -> None:
    """Show what an attachment is doing: state, lease, requests, bytes, latencies, what is not written yet.

    \b
    Examples:
      dyskctl status data
      watch dyskctl status data
      dyskctl status data --verbose
      dyskctl -o json status data
    """
    from blobfuse_dysk import attachment

    found = attachment.get(target)
    counted = attachment.status(target)
    first = {name: getattr(found, name) for name in ("name", "device", "mountpoints", "disk", "size")}
    if settings(context).json:
        print_json({**first, **counted})
    elif verbose:
        print_pairs({**first, "size": size_text(found.size), **counted})
    else:
        print_pairs(summary(found, counted))


def summary(found: Attachment, counted: dict[str, Any]) -> dict[str, object]:
    """The ten lines: name -> text. What a worker of another version, or none, does not tell is a dash."""
    state, since = counted.get("state", found.state), counted.get("state_since")
    detail = counted.get("detail")
    return {
        "name": f"{found.name}, {found.device or 'no device yet'}",
        "mounted on": ", ".join(found.mountpoints),
        "disk": f"{found.disk}, {size_text(found.size)}, {'read-only' if found.read_only else 'read-write'}",
        "state": f"{state}{f' since {since}' if since else ''}{f': {detail}' if detail else ''}",
        "waits": _waits(counted.get("waiting")),
        "lease": _lease(counted.get("lease"), found.read_only),
        "credential": _credential(counted.get("credential")),
        "I/O": _calls(counted.get("io")),
        "latency": _latency(counted.get("io")),
        "cache": _cache(counted.get("cache")),
    }


def _waits(waiting: dict[str, Any] | None) -> str | None:
    if not waiting:
        return None
    fails = waiting.get("fails_in_s")
    until = "for ever" if fails is None else f"for {fails:.0f} s more at most"
    calls = f"{waiting['calls']} calls, for {waiting['since_s']:.0f} s" if "calls" in waiting else "I/O"
    return f"{calls}, {until}: {waiting.get('reason')}"


def _lease(lease: dict[str, Any] | None, read_only: bool) -> str | None:
    if not lease:
        return "none, as it is read-only" if read_only else None
    if lease.get("term_s") is None:
        return "infinite"
    return f"{lease['term_s']:.0f} s, ends in {lease['expires_in_s'] or 0:.0f} s unless it is renewed"


def _credential(credential: dict[str, Any] | None) -> str | None:
    if not credential:
        return None
    expires = credential.get("expires")
    return f"{credential['what']}{f', until {expires}' if expires else ''}"


def _calls(io: dict[str, Any] | None) -> str | None:
    if not io:
        return None
    amounts = io.get("bytes", {})
    pieces = [
        f"{name} {count}" + (f" ({format_size(amounts[name])})" if amounts.get(name) else "")
        for name, count in io.get("calls", {}).items()
    ]
    errors = sum(io.get("errors", {}).values())
    return ", ".join([*pieces, f"failed {errors}", f"in flight {io.get('in_flight', 0)}"])


def _latency(io: dict[str, Any] | None) -> str | None:
    found = (io or {}).get("latency_ms", {})
    pieces = [
        f"{name} {each['p50']:.1f} ms (99 %: {each['p99']:.1f})"
        for name, each in found.items()
        if each.get("p50") is not None and each.get("p99") is not None
    ]
    return ", ".join(pieces)


def _cache(cache: dict[str, Any] | None) -> str | None:
    if not cache:
        return None
    if "ring_bytes" not in cache:
        return str(cache.get("mode"))
    left, room = format_size(cache["dirty_bytes"]), format_size(cache["ring_bytes"])
    return f"{cache['mode']}, {left} not written yet, of {room}"
