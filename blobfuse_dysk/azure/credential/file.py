"""Credential files and connection strings: text that holds secrets, checked, with errors that show none of them.

A credential file, /etc/dysk/ACCOUNT.conf or one named explicitly, has `key = value` lines; a line that begins with '#'
is a comment. It must be readable by its owner only, and belong to root or to the user who runs the command. Keys:

    account_key = BASE64                  one of the account's two keys
    sas = sv=...&sig=...                  a shared access signature, with or without '?'
    connection_string = ...               as the portal shows it
    auth = key|sas|entra|anonymous        which kind is meant; needed for entra and anonymous only
    token_command = PROGRAM ARG...        prints {"access_token": "...", "expires_on": SECONDS}; no shell runs it
    client_id = ID                        the user-assigned managed identity to use with auth = entra
    endpoint = URL                        of the account's blob service, if it is not https://ACCOUNT.blob.REALM
    realm = SUFFIX                        core.windows.net, core.chinacloudapi.cn, core.usgovcloudapi.net...
    ca_file = PATH                        PEM file of the authorities to trust in place of the system's
    proxy = URL|none                      the HTTP proxy to reach the account through, http://[USER:PASSWORD@]HOST:PORT
    allow_http = yes|no                   plain HTTP to an endpoint that is not on this machine
"""

from __future__ import annotations

import base64
import os
import shlex
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from blobfuse_dysk.azure.credential import access
from blobfuse_dysk.azure.credential.sas import Sas
from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.errors import CredentialError, UsageError
from blobfuse_dysk.keyvalue import Entry, open_text, read_entries
from blobfuse_dysk.proxies import Proxy

__all__ = ["Conf", "ConnectionString", "check_key", "parse_conf", "read_conf", "read_private"]

DEVELOPMENT_ACCOUNT = "devstoreaccount1"
# The emulator's published key, no secret: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
DEVELOPMENT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_KEYS = (
    "account_key", "sas", "connection_string", "auth", "token_command",
    "client_id", "endpoint", "realm", "ca_file", "proxy", "allow_http",
)  # fmt: skip
_PROOFS = ("account_key", "sas", "connection_string", "token_command")
_AUTH = {"key": ("account_key", "connection_string"), "sas": ("sas", "connection_string"), "entra": ("token_command",)}
_SWITCH = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ConnectionString:
    """account: '' if it names none. endpoint: None if it names none."""

    account: str
    key: str = field(repr=False)
    sas: str = field(repr=False)
    endpoint: Endpoint | None

    @classmethod
    def parse(cls, text: str, source: str) -> ConnectionString:
        """Read a connection string; raises CredentialError. source: where it comes from, for the message."""
        fields: dict[str, str] = {}
        for number, piece in enumerate(filter(None, text.strip().split(";")), 1):
            name, equals, value = piece.partition("=")
            if not equals:
                raise CredentialError(
                    f"{source}: part {number} of the connection string is no NAME=VALUE",
                    remedy="copy it again; as the portal shows it, it begins with DefaultEndpointsProtocol=",
                )
            fields[name.strip().lower()] = value.strip()
        if fields.get("usedevelopmentstorage", "").lower() == "true":
            return cls._development(fields.get("developmentstorageproxyuri", "http://127.0.0.1"))
        account, key = fields.get("accountname", ""), fields.get("accountkey", "")
        sas = fields.get("sharedaccesssignature", "")
        if not key and not sas:
            raise CredentialError(
                f"{source}: the connection string has neither AccountKey nor SharedAccessSignature",
                remedy="copy it again, as the portal shows it",
            )
        if key:
            check_key(key, source)
        return cls(account, key, Sas.parse(sas, source).text if sas else "", cls._endpoint(fields, account, source))

    @classmethod
    def _development(cls, proxy: str) -> ConnectionString:
        host = proxy.rstrip("/")
        return cls(DEVELOPMENT_ACCOUNT, DEVELOPMENT_KEY, "", Endpoint.parse(f"{host}:10000", DEVELOPMENT_ACCOUNT))

    @staticmethod
    def _endpoint(fields: dict[str, str], account: str, source: str) -> Endpoint | None:
        scheme = fields.get("defaultendpointsprotocol", "https").lower()
        try:
            if text := fields.get("blobendpoint"):
                return Endpoint.parse(text, account or None)
            if account and (suffix := fields.get("endpointsuffix")):
                return Endpoint.parse(f"{scheme}://{account}.blob.{suffix}")
        except UsageError as error:
            raise CredentialError(f"{source}: {error}", remedy=error.remedy) from None
        return None


@dataclass(frozen=True, slots=True)
class Conf:
    """What a credential file says; fields it does not have are empty or None. auth: '' unless it has a credential."""

    path: Path
    auth: str
    account_key: str = field(repr=False)
    sas: str = field(repr=False)
    connection: ConnectionString | None
    token_command: tuple[str, ...] = field(repr=False)
    client_id: str
    endpoint: str
    realm: str
    ca_file: str
    proxy: str = field(repr=False)
    allow_http: bool


def check_key(key: str, source: str) -> str:
    """Return the account key if it is base64, else raise CredentialError."""
    try:
        if base64.b64decode(key, validate=True):
            return key
    except ValueError:
        pass
    raise CredentialError(f"{source}: the account key is not base64", remedy="copy it again; it has 88 characters")


def read_conf(path: Path) -> Conf:
    """Read and check a credential file. Raises CredentialError, which names the file and the line."""
    delegate = access.delegate()
    return parse_conf(path, delegate.credential_text(path) if delegate else read_private(path))


def parse_conf(path: Path, text: str) -> Conf:
    """Check the text of a credential file. Raises CredentialError, which names the file and the line."""
    expected = f"keys are {', '.join(_KEYS)}"
    entries = read_entries(text, path, _KEYS, expected=expected, error=CredentialError)

    def value(key: str, read: Callable[[str, str], _T], default: _T) -> _T:
        return read(entries[key].value, entries[key].where) if key in entries else default

    return Conf(
        path=path,
        auth=_auth(path, entries),
        account_key=value("account_key", check_key, ""),
        sas=value("sas", lambda text, source: Sas.parse(text, source).text, ""),
        connection=value("connection_string", ConnectionString.parse, None),
        token_command=value("token_command", _words, ()),
        client_id=value("client_id", lambda text, _: text, ""),
        endpoint=value("endpoint", _endpoint, ""),
        realm=value("realm", _realm, ""),
        ca_file=value("ca_file", lambda text, source: _absolute("ca_file", text, source), ""),
        proxy=value("proxy", _proxy, ""),
        allow_http=value("allow_http", _switch, False),
    )


def read_private(path: Path) -> str:
    """Return the text of a file that only its owner can read, and that root or this user owns."""
    try:
        with open_text(path) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CredentialError(f"credential file {path} is not a regular file", remedy="write one there")
            if status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise CredentialError(
                    f"credential file {path} can be read or written by others (mode {mode:04o})",
                    remedy=f"run: chmod 600 {shlex.quote(str(path))}",
                )
            if status.st_uid not in (0, os.geteuid()):
                raise CredentialError(
                    f"credential file {path} belongs to user id {status.st_uid}",
                    remedy=f"run: chown root {shlex.quote(str(path))}",
                )
            return file.read()
    except UnicodeDecodeError:
        raise CredentialError(f"credential file {path} is not text", remedy="write lines key = value") from None
    except ValueError:
        raise CredentialError(f"credential file {str(path)!r} cannot be read: its name has a zero byte in it") from None
    except OSError as error:
        remedy = "run it as root" if isinstance(error, PermissionError) else "check its name; it is a file, mode 0600"
        raise CredentialError(f"credential file {path} cannot be read: {error.strerror}", remedy=remedy) from error


def _auth(path: Path, entries: dict[str, Entry]) -> str:
    """Which kind of credential the file has: key, sas, entra, anonymous, or '' for none."""
    proofs = [key for key in _PROOFS if key in entries]
    if len(proofs) > 1:
        last = max(entries[key].line for key in proofs)
        raise CredentialError(
            f"{path}, line {last}: expected one credential, but {' and '.join(proofs)} are given",
            remedy="remove all but one of them",
        )
    if "auth" in entries:
        where, auth = entries["auth"].where, entries["auth"].value
        if auth not in ("key", "sas", "entra", "anonymous"):
            raise CredentialError(f"{where}: expected auth = key, sas, entra or anonymous", remedy="write one of these")
        allowed = _AUTH.get(auth, ())
        if proofs and proofs[0] not in allowed:
            raise CredentialError(
                f"{where}: auth = {auth} does not go with {proofs[0]}", remedy="remove one of the two"
            )
        if not proofs and auth in ("key", "sas"):
            wanted = " or ".join(allowed)
            raise CredentialError(f"{where}: auth = {auth}, but there is no {wanted}", remedy="add it")
        return auth
    kinds = {"account_key": "key", "sas": "sas", "connection_string": "connection", "token_command": "entra"}
    return kinds[proofs[0]] if proofs else ""


def _words(text: str, source: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
        _absolute("token_command", words[0] if words and "/" in words[0] else "/", source)
        return words
    except ValueError as error:
        raise CredentialError(
            f"{source}: token_command cannot be split into words: {error}", remedy="quote it as a shell wants it"
        ) from None


def _absolute(key: str, path: str, source: str) -> str:
    """What a file names must hold in whichever directory a worker runs."""
    if not path.startswith("/"):
        raise CredentialError(f"{source}: {key} is a relative path", remedy="write it whole, from / on")
    return path


def _proxy(text: str, source: str) -> str:
    try:
        Proxy.parse(text, "the proxy")
    except UsageError as error:
        raise CredentialError(f"{source}: {error}", remedy=error.remedy) from None
    return text


def _endpoint(text: str, source: str) -> str:
    try:
        Endpoint.parse(text)
    except UsageError as error:
        raise CredentialError(f"{source}: {error}", remedy=error.remedy) from None
    return text


def _realm(text: str, source: str) -> str:
    try:
        Endpoint.of_account("any", text)
    except UsageError as error:
        raise CredentialError(f"{source}: {error}", remedy=error.remedy) from None
    return text


def _switch(text: str, source: str) -> bool:
    if text.lower() not in _SWITCH:
        raise CredentialError(f"{source}: expected yes or no", remedy="write one of the two")
    return _SWITCH[text.lower()]
