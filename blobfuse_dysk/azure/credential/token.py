"""Prints an Entra ID access token for Azure Storage: `python -I token.py [--client-id ID]`.

The only place that imports azure-identity. It runs as a child of whoever needs a token and ends at once, so that its
30 MiB of libraries do not stay. The login is azure-identity's default one: environment variables (AZURE_TENANT_ID,
AZURE_CLIENT_ID, AZURE_CLIENT_SECRET...), workload identity, managed identity, Azure CLI.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from pathlib import Path

if __name__ == "__main__":
    # Where the package is, and in Debian's all that it comes with, which is on no path but its own programs'.
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

__all__ = ["main"]

# What logins say that were not set up here; the rest was set up, and failed.
_NOT_HERE = re.compile(
    r"unavailable|not fully configured|is not installed|not found on path|could not be found|package (is|to be)", re.I
)
SCOPE = "https://storage.azure.com/.default"


def main(arguments: list[str] | None = None) -> int:
    """Print {"access_token", "expires_on"} and return 0, or print one line to standard error and return 1."""
    parser = argparse.ArgumentParser(prog="token.py", description=__doc__.splitlines()[0])
    parser.add_argument("--client-id", help="of the user-assigned managed identity to use")
    options = parser.parse_args(arguments)
    try:
        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential
    except ImportError:
        print("the package azure-identity is missing; run: pip install 'blobfuse-dysk[entra]'", file=sys.stderr)
        return 1
    logging.disable(logging.CRITICAL)  # each login that does not apply logs a warning
    # Not as None: then AZURE_CLIENT_ID would not count.
    named = {"managed_identity_client_id": options.client_id} if options.client_id else {}
    login = DefaultAzureCredential(exclude_interactive_browser_credential=True, **named)
    try:
        token = login.get_token(SCOPE)
    except ClientAuthenticationError as error:
        print(_reason(str(error.message)), file=sys.stderr)
        return 1
    print(json.dumps({"access_token": token.token, "expires_on": token.expires_on}))
    return 0


def _reason(message: str) -> str:
    """azure-identity's message in one line.

    It has a paragraph for each login that it tried, `NAME: why`. One that does not apply here says no more than that;
    what is left is told, or the names if nothing is.
    """
    tried = [line.strip() for line in message.splitlines() if re.match(r"\s*\w+Credential: ", line)]
    failed = [line for line in tried if not _NOT_HERE.search(line)]
    if tried and not failed:
        names = ", ".join(line.partition("Credential: ")[0] for line in tried)
        return f"no login applies on this machine (tried {names})"
    return " ".join(" ".join(failed or [message]).split())[:500]


if __name__ == "__main__":
    sys.exit(main())
