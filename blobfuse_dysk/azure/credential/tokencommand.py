"""Access tokens from a program: run as a short-lived child, so that no identity library is loaded here.

The program prints one JSON object, {"access_token": "...", "expires_on": SECONDS_SINCE_EPOCH}, and exits with 0; the
Azure CLI's `az account get-access-token --resource https://storage.azure.com` prints such an object, too. On failure
the last line of its standard error becomes the error's message.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from blobfuse_dysk.azure.credential import access
from blobfuse_dysk.errors import CredentialError

if TYPE_CHECKING:
    import trio

__all__ = ["MOST_OUTPUT", "Token", "fetch_token", "own_command"]

_LOGIN = (
    "give this machine a managed identity, or root an az login, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and a secret"
)
_OWN = str(Path(__file__).resolve().with_name("token.py"))
MOST_OUTPUT = 64 << 10  # bytes; tokens have one to four KiB
_LAST_S = 253402300800.0  # the end of the year 9999
SILENT_S = 3.0  # before a line in the log, or at the terminal, says what is waited for
_log = logging.getLogger(__name__)
TIMEOUT_S = 60.0  # a managed identity answers in a second; logging in at a slow proxy takes some


@dataclass(frozen=True, slots=True)
class Token:
    """text: the token. expires_at: seconds since the epoch."""

    text: str = field(repr=False)
    expires_at: float


def own_command(client_id: str = "") -> tuple[str, ...]:
    """Our own program for Entra ID, azure/credential/token.py. -I: no variable, no directory brings it other code."""
    command = (sys.executable, "-I", _OWN)
    return (*command, "--client-id", client_id) if client_id else command


async def fetch_token(command: tuple[str, ...], *, timeout_s: float = TIMEOUT_S) -> Token:
    """Run the program and read its token. Raises CredentialError; the program is ended on timeout and cancellation."""
    import trio  # here, because the attaching process imports this module and never runs trio

    own = _OWN in command
    name = "the Entra ID login" if own else f"token_command {command[0]}"
    remedy = _LOGIN if own else "run it by hand, as root, and see what it prints"
    failure: OSError | CredentialError | None = None
    try:
        with trio.fail_after(timeout_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_say_that_it_takes_long, name, timeout_s)
                delegate = access.delegate()
                try:
                    done = await (delegate.run(command) if delegate else _run(command))
                except (OSError, CredentialError) as error:  # caught here, since a nursery would make a group of it
                    failure = error
                nursery.cancel_scope.cancel()
    except trio.TooSlowError:
        raise CredentialError(f"{name} gave no token within {timeout_s:g} s", remedy=remedy) from None
    if isinstance(failure, CredentialError):
        raise failure
    if failure:
        raise CredentialError(f"{name} cannot be run: {failure.strerror}", remedy=remedy) from failure
    if len(done.stdout) > MOST_OUTPUT:
        raise CredentialError(f"{name} printed more than {MOST_OUTPUT >> 10} KiB, which is no token", remedy=remedy)
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        words = lines[-1][:500].rstrip(".") if lines else f"exit status {done.returncode}"
        raise CredentialError(f"{name} failed: {words}", remedy=remedy)
    return _read(done.stdout, name)


async def _run(command: tuple[str, ...]) -> access.Output:
    """Run a program. Returns its exit status, its output, and the end of its standard error.

    A worker has its memory locked, so no more is kept than a token can have: output that goes beyond ends the program.
    Raises OSError if it cannot be run.
    """
    import trio

    async def read(stream: trio.abc.ReceiveStream, into: bytearray, scope: trio.CancelScope | None) -> None:
        async with stream:
            async for piece in stream:
                into += piece
                if len(into) > MOST_OUTPUT:
                    if scope is not None:
                        scope.cancel()
                        return
                    del into[:-MOST_OUTPUT]

    output, complaint = bytearray(), bytearray()
    process = await trio.lowlevel.open_process(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, process.stdout, output, nursery.cancel_scope)
            nursery.start_soon(read, process.stderr, complaint, None)
            await process.wait()
    finally:
        if process.returncode is None:
            with trio.CancelScope(shield=True):
                _end(process)
                await process.wait()
    return access.Output(process.returncode or 0, bytes(output), bytes(complaint))


def _end(process: trio.Process) -> None:
    """Not by SIGTERM, which a worker ignores, and with it what it starts; and whatever the program has started, too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def _say_that_it_takes_long(name: str, timeout_s: float) -> None:
    import trio

    await trio.sleep(SILENT_S)
    _log.warning("waiting for %s, for %g s at most", name, timeout_s)


def _read(output: bytes, name: str) -> Token:
    try:
        answer = json.loads(output)
        text = answer.get("access_token") or answer["accessToken"]
        token = Token(str(text), float(answer["expires_on"]))
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError):
        token = None
    if (
        token is None
        or not 0.0 <= token.expires_at < _LAST_S
        or not token.text.isascii()
        or not token.text.isprintable()
        or " " in token.text
    ):
        raise CredentialError(
            f"{name} printed no token", remedy='it must print {"access_token": "...", "expires_on": SECONDS}'
        )
    return token
