"""Where the credential for a disk comes from, and which endpoint it is used at.

First found wins: an explicit credential file, a key or SAS given with the disk, ACCOUNT.conf in the configuration
directory (/etc/dysk), the AZURE_STORAGE_* variables (in the Azure CLI's order: AUTH_MODE=login, under which the others
do not count, then connection string, key, SAS).
There is no silent fallback to Entra ID: it is asked for with `auth = entra` in a file or with AUTH_MODE=login.

The way to the endpoint: the proxy that the option or the credential file names, or one of the http_proxy variables.
The endpoint: the disk's URL, the endpoint option, the file's endpoint, a connection string's, the realm.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from blobfuse_dysk import environment
from blobfuse_dysk.azure.credential.credential import Credential, check_transport, credential_from_config
from blobfuse_dysk.azure.credential.file import Conf, ConnectionString, check_key, read_conf
from blobfuse_dysk.azure.credential.proof import Proof, check_account, check_scope, is_known, named_endpoints
from blobfuse_dysk.azure.credential.sas import Sas
from blobfuse_dysk.azure.credential.tokencommand import own_command
from blobfuse_dysk.disk import DEFAULT_REALM, DiskAddress, Endpoint
from blobfuse_dysk.errors import CredentialError
from blobfuse_dysk.options import AttachOptions
from blobfuse_dysk.proxies import choose

__all__ = ["Credential", "credential_from_config", "resolve"]


def resolve(address: DiskAddress, options: AttachOptions) -> tuple[DiskAddress, Credential]:
    """Find the credential and the endpoint. Reads files and variables only, so it neither waits nor fetches a token.

    The address returned has its endpoint filled in and no secret: the credential has that. Raises CredentialError or
    UsageError, which say where was looked and what to write.
    """
    conf = _conf(address.account, options)
    proof, link = _find(address, options, conf)
    check_account(link, proof.source, address.account)
    endpoint = _endpoint(address, options, conf, link)
    if conf and proof.file:
        check_scope(conf, address.account, endpoint)
    elif proof.source.startswith(environment.AZURE_PREFIX):
        _check_variables(address, options, conf, link, proof.source)
    credential = Credential(
        address.account,
        proof,
        ca_file=conf.ca_file or None if conf else None,
        allow_http=options.allow_http or (conf is not None and conf.allow_http),
        endpoint=endpoint,
    )
    settings = {"proxy": options.proxy, f"{conf.path}": conf.proxy} if conf else {"proxy": options.proxy}
    proxy = choose(endpoint.scheme, endpoint.host, endpoint.port, settings, environment.proxy_variables())
    resolved = replace(address, endpoint=endpoint, sas=None, account_key=None, proxy=proxy)
    check_transport(endpoint, credential)
    return resolved, credential


def _conf(account: str, options: AttachOptions) -> Conf | None:
    """The explicit credential file, or the account's own if there is one."""
    if options.credentials is not None:
        # Absolute at the door: the worker, which reads it again, runs in another directory.
        conf = read_conf(Path(options.credentials).absolute())
        if not conf.auth:
            raise CredentialError(
                f"credential file {conf.path} has no credential",
                remedy="write account_key =, sas =, connection_string = or auth = entra into it",
            )
        return conf
    path = environment.config_dir() / f"{account}.conf"
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # reading it tells what is wrong
    if not os.access(path, os.R_OK) and environment.azure_variables():
        return None  # root's file; who may not read it has a credential of his own
    return read_conf(path)


def _find(address: DiskAddress, options: AttachOptions, conf: Conf | None) -> tuple[Proof, ConnectionString | None]:
    """The proof of identity, and the connection string that it came with."""
    from_conf = Proof.from_conf(conf) if conf else None
    if options.credentials is not None and conf and from_conf:
        return from_conf, conf.connection
    if address.account_key is not None:
        source = address.given_by or "the command line"
        return Proof("key", source, account_key=check_key(address.account_key.strip(), source)), None
    if address.sas is not None:
        source = address.given_by or "the disk's URL"
        return Proof("sas", source, sas=Sas.parse(address.sas, source).text), None
    if conf and from_conf:
        return from_conf, conf.connection
    skipped = ""
    variables = environment.azure_variables()
    if variables:
        found, skipped = _from_variables(address.account, variables)
        if found:
            return found
    looked = f"{environment.config_dir() / address.account}.conf"
    remedy = (
        f"write account_key =, sas =, connection_string = or auth = entra into {looked} (mode 0600), "
        "or set the AZURE_STORAGE_* variables"
    )
    if address.given_by:
        remedy = (
            "in Kubernetes name a Secret with accountname and accountkey in the class "
            f"(csi.storage.k8s.io/...-secret-name) or the volume (...SecretRef); or, on this machine, {remedy}"
        )
        skipped = f" in {address.given_by}, nor on this machine{skipped}"
    raise CredentialError(f"no credential for account {address.account}{skipped}", remedy=remedy)


def _from_variables(
    account: str, variables: dict[str, str]
) -> tuple[tuple[Proof, ConnectionString | None] | None, str]:
    """What the AZURE_STORAGE_* variables give for this account; if nothing, why, as a piece of the error's text."""
    mode = variables.get("AUTH_MODE", "")
    if mode == "login":
        return (Proof("token", "AZURE_STORAGE_AUTH_MODE", token_command=own_command()), None), ""
    if text := variables.get("CONNECTION_STRING"):
        source = "AZURE_STORAGE_CONNECTION_STRING"
        link = ConnectionString.parse(text, source)
        if link.account in ("", account):
            if link.key:
                return (Proof("key", source, account_key=link.key), link), ""
            return (Proof("sas", source, sas=link.sas), link), ""
        return None, f" ({source} is for account {link.account})"
    named = variables.get("ACCOUNT", account)
    if named != account:
        return None, f" (AZURE_STORAGE_ACCOUNT is {named})"
    if key := variables.get("KEY"):
        source = "AZURE_STORAGE_KEY"
        return (Proof("key", source, account_key=check_key(key.strip(), source)), None), ""
    if sas := variables.get("SAS_TOKEN"):
        source = "AZURE_STORAGE_SAS_TOKEN"
        return (Proof("sas", source, sas=Sas.parse(sas, source).text), None), ""
    return None, f" (AZURE_STORAGE_AUTH_MODE is {mode!r}, not 'login')" if mode else ""


def _check_variables(
    address: DiskAddress, options: AttachOptions, conf: Conf | None, link: ConnectionString | None, source: str
) -> None:
    """Raise CredentialError for a URL of a disk that would have what a variable holds sent to a host nobody named."""
    if address.endpoint is None or is_known(address.endpoint, address.account):
        return
    named = named_endpoints(conf, address.account) if conf else []
    if address.endpoint != _endpoint(replace(address, endpoint=None), options, conf, link) and (
        address.endpoint not in named
    ):
        raise CredentialError(
            f"what {source} holds is not sent to {address.endpoint}, which is no endpoint of account "
            f"{address.account} that is known here",
            remedy=f"if it is the account's, name it as the endpoint: --endpoint (-o endpoint=) {address.endpoint}",
        )


def _endpoint(
    address: DiskAddress, options: AttachOptions, conf: Conf | None, link: ConnectionString | None
) -> Endpoint:
    if address.endpoint:
        return address.endpoint
    if options.endpoint:
        return Endpoint.parse(options.endpoint, address.account)
    if conf and conf.endpoint:
        return Endpoint.parse(conf.endpoint, address.account)
    if link and link.endpoint:
        return link.endpoint
    realm = options.realm or (conf.realm if conf else "") or DEFAULT_REALM
    return Endpoint.of_account(address.account, realm)
