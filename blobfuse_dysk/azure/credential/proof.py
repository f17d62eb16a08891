"""What requests are signed with, and where it may be sent: the credential of a file goes to its own account only.

A file in /etc/dysk is found by the account's name. Whoever has root attach a URL, or write one into fstab, must not
come by that account's secret by putting the name before a host of their own. So a file's credential goes to the
account's host in the clouds that are known here, over HTTPS, and to what the file itself names. What the environment
has goes to such a host as well, and to what is named as an endpoint, but to no other host that a disk's URL brings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from blobfuse_dysk.azure.credential.file import Conf, ConnectionString
from blobfuse_dysk.azure.credential.tokencommand import own_command
from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.errors import CredentialError

__all__ = ["Proof", "check_account", "check_scope", "is_known", "named_endpoints"]

# Source: https://learn.microsoft.com/azure/storage/common/storage-account-overview#standard-endpoints (zNN: accounts in
# a DNS zone), /azure/storage/common/storage-private-endpoints, and the list of `az cloud list` for the other clouds.
_CLOUDS = ("core.windows.net", "core.chinacloudapi.cn", "core.usgovcloudapi.net", "core.cloudapi.de")
_KNOWN_HOST = re.compile(
    rf"(?P<account>[a-z0-9]+)(?:-secondary)?(?:(?:\.privatelink)?\.blob\.(?:{'|'.join(map(re.escape, _CLOUDS))})"
    r"|\.z[0-9]{1,2}(?:\.privatelink)?\.blob\.storage\.azure\.net)"
)


@dataclass(frozen=True, slots=True)
class Proof:
    """What requests are signed with, and where it comes from. kind: key, sas, token or anonymous.

    source: for people. file: to be read again for a renewal, or ''. token_command: for kind token.
    """

    kind: str
    source: str
    account_key: str = field(default="", repr=False)
    sas: str = field(default="", repr=False)
    token_command: tuple[str, ...] = field(default=(), repr=False)
    file: str = ""

    @classmethod
    def from_conf(cls, conf: Conf) -> Proof | None:
        """The credential of a file, or None if it has none."""
        source = file = str(conf.path)
        link = conf.connection
        if conf.auth == "entra":
            return cls("token", source, token_command=conf.token_command or own_command(conf.client_id), file=file)
        if conf.auth == "anonymous":
            return cls("anonymous", source, file=file)
        key, sas = (link.key, link.sas) if link else (conf.account_key, conf.sas)
        if (conf.auth == "sas" and not sas) or (conf.auth == "key" and not key):
            raise CredentialError(f"{source}: auth = {conf.auth}, but the connection string has none")
        if sas and conf.auth != "key":
            return cls("sas", source, sas=sas, file=file)
        return cls("key", source, account_key=key, file=file) if key else None


def check_account(link: ConnectionString | None, source: str, account: str) -> None:
    """Raise CredentialError for a connection string that is another account's. source: where it stands."""
    if link and link.account and link.account != account:
        raise CredentialError(
            f"the connection string in {source} is for account {link.account}, the disk is in {account}",
            remedy=f"put one of {account} there, or name the disk {link.account}/...",
        )


def check_scope(conf: Conf, account: str, endpoint: Endpoint) -> None:
    """Raise CredentialError unless a file's credential may be sent to this endpoint; see the top of this file.

    Plain HTTP to a host of the account is check_transport's to judge.
    """
    check_account(conf.connection, str(conf.path), account)
    if endpoint not in named_endpoints(conf, account) and not is_known(endpoint, account):
        raise CredentialError(
            f"the credential in {conf.path} is not sent to {endpoint}, which is no endpoint of account {account} "
            "that is known here or named in that file",
            remedy=f"if it is the account's, write into the file: endpoint = {endpoint}",
        )


def named_endpoints(conf: Conf, account: str) -> list[Endpoint]:
    """The endpoints of the account that a file names."""
    named = [Endpoint.parse(conf.endpoint, account)] if conf.endpoint else []
    named += [conf.connection.endpoint] if conf.connection and conf.connection.endpoint else []
    return named + ([Endpoint.of_account(account, conf.realm)] if conf.realm else [])


def is_known(endpoint: Endpoint, account: str) -> bool:
    """Whether it is the account's in a cloud that is known here."""
    known = _KNOWN_HOST.fullmatch(endpoint.host)
    return bool(known and known["account"] == account and not endpoint.path and endpoint.has_default_port)
