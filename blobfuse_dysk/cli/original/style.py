"""How the original dysk's verbs take their options and print their results, so that scripts go on working.

Printed as by khenidak/dysk (2021): a table with columns of 32 characters, or JSON with these keys in this order. The
key Sas held the secret; here it is empty.
"""

from __future__ import annotations

import functools
import json
import os
import random
import string
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from blobfuse_dysk.cli.output import warn
from blobfuse_dysk.cli.types import GO_BOOL
from blobfuse_dysk.disk import DEFAULT_REALM, DiskAddress
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.printable import printable, printable_json
from blobfuse_dysk.vhd import FOOTER_SIZE

if TYPE_CHECKING:
    from blobfuse_dysk.attachment import Attachment

__all__ = [
    "Account",
    "Dysk",
    "account_options",
    "address_of",
    "flag",
    "of_attachment",
    "print_dysk",
    "print_status",
    "random_name",
    "read_dysk",
    "read_text",
    "realm_option",
]

_GIB = 1 << 30
_COLUMN = 32  # characters
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Dysk:
    """A dysk as the original printed it. Names and order of the fields are its JSON keys."""

    Type: str  # R or RW
    Name: str
    AccountName: str
    Sas: str  # read from files; never printed
    Path: str  # /container/blob
    LeaseId: str
    Major: int
    Minor: int
    Vhd: bool
    SizeGB: int
    AccountRealm: str

    @property
    def address(self) -> DiskAddress:
        """The disk. A secret in Sas may be a SAS or an account key: only a SAS has a signature field."""
        container, _, blob = self.Path.lstrip("/").partition("/")
        is_sas = "sig=" in self.Sas
        return address_of(
            self.AccountName, container, blob, None if is_sas else self.Sas or None, self.Sas if is_sas else None
        )


def flag(*names: str, default: bool | None, help_text: str) -> Callable[[_Function], _Function]:
    """A boolean as the original's flag library had it: `-v`, `-v=false`, `--vhd=true`."""
    return click.option(*names, type=GO_BOOL, is_flag=False, flag_value="true", default=default, help=help_text)


def _secret(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A secret on the command line is taken, with a warning; `-` reads it where others cannot see it."""
    option = parameter.opts[0]
    if value is None:
        return None
    if not value:
        raise UsageError(f"{option} has no value", remedy=f"give one, or leave {option} out")
    if value != "-":
        warn(
            f"other users of this machine can read what stands behind {option} from the process list: "
            f"put it into /etc/dysk/ACCOUNT.conf, or write {option} - and give it on standard input"
        )
        return value
    line = sys.stdin.readline().strip()
    if not line:
        raise UsageError(f"{option} - found nothing on standard input", remedy="give the secret there, in one line")
    return line


@dataclass(frozen=True, slots=True)
class Account:
    """The options that name an account and a page blob in it, as they were given."""

    account: str
    key: str | None = field(repr=False)
    sas: str | None = field(repr=False)
    realm: str
    pageblob_name: str | None
    container_name: str

    def disk(self, blob: str) -> DiskAddress:
        """A blob of the container."""
        return address_of(self.account, self.container_name, blob, self.key, self.sas)

    @property
    def connection(self) -> AttachOptions:
        """How to reach the account."""
        return AttachOptions(realm=realm_option(self.realm))


def account_options(function: _Function) -> _Function:
    """The options that name an account and a blob in it, in the original's words. The verb gets `at`, an Account."""

    @functools.wraps(function)
    def packed(*words: Any, **given: Any) -> Any:
        return function(*words, at=Account(**{name: given.pop(name) for name in Account.__slots__}), **given)

    for option in reversed(
        [
            click.option("-a", "--account", required=True, help="Storage account."),
            click.option("-k", "--key", callback=_secret, help="Account key; '-' reads it from standard input."),
            click.option("-s", "--sas", callback=_secret, help="SAS, instead of a key; '-' reads it likewise."),
            click.option("--realm", default=DEFAULT_REALM, show_default=True, help="The cloud's suffix."),
            click.option("-p", "--pageblob-name", help="Page blob."),
            click.option("-c", "--container-name", default="dysks", show_default=True, help="Container."),
        ]
    ):
        packed = option(packed)
    return cast(_Function, packed)


def address_of(account: str, container: str, blob: str, key: str | None, sas: str | None) -> DiskAddress:
    """The disk's address with the secret in it; without one, credentials are found as for every other verb."""
    return replace(DiskAddress.parse(f"{account}/{container}/{blob}"), account_key=key, sas=sas)


def random_name() -> str:
    """The device's name when none is given: `dysk` and eight random letters and digits."""
    return "dysk" + "".join(random.choices(string.ascii_letters + string.digits, k=8))


def realm_option(realm: str) -> str | None:
    """The realm for AttachOptions. The original's default is no wish: an endpoint in the credential file goes first."""
    return None if realm == DEFAULT_REALM else realm


def read_text(path: str) -> str:
    """A file's text, or with `-` that of standard input; raises UsageError."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}") from None


def of_attachment(attachment: Attachment, disk: DiskAddress, realm: str) -> Dysk:
    """An attachment in the original's words."""
    number = os.stat(attachment.device).st_rdev  # noqa: PTH116 - a device's number, not a file's properties
    return Dysk(
        Type="R" if attachment.read_only else "RW",
        Name=attachment.name,
        AccountName=disk.account,
        Sas="",
        Path=f"/{disk.container}/{disk.blob}",
        LeaseId=attachment.lease["id"] if attachment.lease else "",
        Major=os.major(number),
        Minor=os.minor(number),
        Vhd=attachment.vhd,
        SizeGB=(attachment.size + (FOOTER_SIZE if attachment.vhd else 0)) // _GIB,
        AccountRealm=realm,
    )


def print_dysk(dysk: Dysk, *, as_json: bool) -> None:
    """Print it as the original did."""
    if as_json:
        values = {name: getattr(dysk, name) for name in Dysk.__slots__}
        print(printable_json(json.dumps({**values, "Sas": ""}, indent=4, ensure_ascii=False)))
        return
    rows: list[list[str]] = [
        ["Type", "Name", "VHD", "SizeGB", "AccountName", "Path"],
        [dysk.Type, dysk.Name, "Yes" if dysk.Vhd else "No", str(dysk.SizeGB), dysk.AccountName, dysk.Path],
    ]
    for row in rows:
        print(printable("".join(cell.ljust(_COLUMN) for cell in row[:-1]) + row[-1]))


def print_status(message: str) -> None:
    """The original's word that something was done, on standard error."""
    print(f"Status:\n{message}", file=sys.stderr)


def read_dysk(text: str) -> Dysk:
    """Read the original's JSON; raises UsageError. Keys that are missing have the original's defaults."""
    remedy = "give what dyskctl mount -o json printed"
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UsageError(f"this is not the JSON of a dysk: {error}", remedy=remedy) from None
    if not isinstance(values, dict):
        raise UsageError("this is not the JSON of a dysk: it is no object", remedy=remedy)
    known = {name: values[name] for name in Dysk.__slots__ if name in values}
    defaults = {"Type": "RW", "Sas": "", "LeaseId": "", "Major": 0, "Minor": 0, "Vhd": False, "SizeGB": 0}
    fields = {**defaults, "AccountRealm": DEFAULT_REALM, **known}
    missing = [name for name in ("AccountName", "Name", "Path") if not isinstance(fields.get(name), str)]
    if missing or fields["Type"] not in ("R", "RW"):
        wrong = f"has no {missing[0]}" if missing else f"has Type {fields['Type']!r}, not R or RW"
        raise UsageError(f"the JSON of the dysk {wrong}", remedy=remedy)
    return Dysk(**fields)
