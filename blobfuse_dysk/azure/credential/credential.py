"""A credential: what requests to one account are signed with, and how it is kept fresh.

A `Credential` hands out signers and renews what it signs with: a file is read again, a token fetched anew. Nothing
here prints, logs or puts into a repr any secret; `to_config` has them, for the memory of another process of ours only.
Where a credential comes from is in resolve.py.

trio is imported where it is used: the attaching process makes credentials and hands them on, and never runs trio.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blobfuse_dysk.azure.credential.file import Conf, read_conf
from blobfuse_dysk.azure.credential.sas import Sas
from blobfuse_dysk.azure.credential.tokencommand import Token, fetch_token, own_command
from blobfuse_dysk.azure.signing import AnonymousSigner, BearerSigner, SasSigner, ServiceClock, SharedKeySigner, Signer
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import CredentialError, UsageError
from blobfuse_dysk.timestamp import utc_text

if TYPE_CHECKING:
    import trio

__all__ = [
    "NO_CREDENTIAL",
    "Credential",
    "Proof",
    "check_transport",
    "credential_from_config",
]

log = logging.getLogger(__name__)

NO_CREDENTIAL = "CredentialUnavailable"
"""ServiceError.code when no request was sent because the credential could not be had (no token)."""
_SOON_S = 86400.0
_SPARE_S = 300.0  # a SAS from a file is read again when this little of it is left
_AGAIN_S = 60.0  # and then, as after a failed renewal, this often
_REFUSED_S = 5.0  # a refusal by the service causes a renewal at most this often


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


class Credential:
    """The proof of identity for one account, kept fresh. Made by resolve.py or credential_from_config.

    renew_at: seconds since the epoch when `freshen` should be awaited before the next request; inf for never.
    ca_file, allow_http: how the endpoint is to be trusted. clock: the service's time, shared by all signers.
    """

    def __init__(
        self,
        account: str,
        proof: Proof,
        *,
        ca_file: str | None = None,
        allow_http: bool = False,
        token: Token | None = None,
    ) -> None:
        self.account = account
        self.ca_file = ca_file
        self.allow_http = allow_http
        self.clock = ServiceClock()
        self.renew_at = math.inf
        self._lock: trio.Lock | None = None
        self._renewing: trio.Event | None = None
        self._failure: CredentialError | None = None
        self._renewed_at = -math.inf
        self._token = token
        self._signer: Signer
        self._proof: Proof
        self._use(proof)

    @property
    def kind(self) -> str:
        """key, sas, token or anonymous."""
        return self._proof.kind

    @property
    def file(self) -> str:
        """The file it came from, which is read again for a renewal; empty if it came from elsewhere."""
        return self._proof.file

    @property
    def sas(self) -> Sas | None:
        """The SAS, if it is one."""
        return self._sas

    @property
    def expires_at(self) -> float | None:
        """Seconds since the epoch at which it ends, or None if it does not, or if that is not known."""
        if self._sas:
            return self._sas.expires_at
        return self._token.expires_at if self._token and self.kind == "token" else None

    def ready_signer(self) -> Signer | None:
        """The signer for the next request, if there is one and no renewal is due."""
        return self._signer if self.renew_at > time.time() and self._usable else None

    def signer(self) -> Signer:
        """The signer for the next request. Raises CredentialError while there is no token: await freshen() before."""
        if not self._usable:
            raise self._failure or CredentialError("no access token has been fetched")
        return self._signer

    @property
    def _usable(self) -> bool:
        return self.kind != "token" or self._token is not None

    async def freshen(self) -> None:
        """To be awaited when renew_at is past. Renews in the background, and waits for that only if it must.

        It must if there is nothing to sign with, or only what has expired. Raises CredentialError if there is then
        still nothing. Cancelling the wait does not end the renewal.
        """
        import trio

        if self._renewing is None:
            self._renewing = trio.Event()
            trio.lowlevel.spawn_system_task(self._renew_behind, name="credential renewal")
        expires_at = self.expires_at
        if not self._usable or (expires_at is not None and expires_at <= time.time()):
            await self._renewing.wait()
            if not self._usable:
                raise self._failure or CredentialError("no access token has been fetched")

    async def refresh(self, force: bool = False) -> None:
        """Read the file again, fetch a new token; without force only if renew_at is past. Raises CredentialError.

        A failure leaves what was there before in use. Calls at the same time share one renewal.
        """
        import trio

        asked_at = time.monotonic()
        if self._lock is None:
            self._lock = trio.Lock()
        async with self._lock:
            if self._renewed_at >= asked_at or not (force or self.renew_at <= time.time()):
                return
            try:
                if self._proof.file:
                    conf = await trio.to_thread.run_sync(read_conf, Path(self._proof.file))
                    proof = Proof.from_conf(conf)
                    if proof is None:
                        raise CredentialError(f"{self._proof.file} has no credential any more")
                    if proof != self._proof:
                        self._token = None
                        self._use(proof)
                if self.kind == "token":
                    self._token = await fetch_token(self._proof.token_command)
                    self._use(self._proof)
            finally:
                self._renewed_at = time.monotonic()
                if self.renew_at <= time.time():
                    self.renew_at = time.time() + (_AGAIN_S if self._usable else _REFUSED_S)

    async def reload(self, file: str = "") -> None:
        """Read the file again, or from now on another one. Raises CredentialError, and all is as it was before."""
        before = self._proof
        if not file and not before.file:
            raise CredentialError(
                f"the {self.describe()} cannot be read again", remedy="name a file with the new one: --credentials FILE"
            )
        if file:
            self._proof = replace(before, file=file)
        try:
            await self.refresh(force=True)
        except BaseException:
            self._proof = before
            raise

    async def renew_refused(self, refused: Signer) -> bool:
        """After the service refused a request signed by `refused`: renew, return True if the signer is another now."""
        if self._signer is refused and time.monotonic() - self._renewed_at > _REFUSED_S:
            try:
                await self.refresh(force=True)
            except CredentialError as error:
                log.warning("credential of account %s, refused by the service: %s", self.account, error.line())
        return self._signer is not refused

    def warn(self) -> None:
        """Log a warning if it has ended or ends within a day and nothing renews it."""
        expires_at = self.expires_at
        if self.kind != "sas" or expires_at is None or expires_at > time.time() + _SOON_S:
            return
        when = utc_text(expires_at)
        verb = "expires" if expires_at > time.time() else "expired"
        log.warning("the %s for account %s %s at %s", self.describe(), self.account, verb, when)

    def describe(self) -> str:
        """What it is and where it comes from, without the secret."""
        kinds = {"key": "account key", "sas": "SAS", "token": "Entra ID token", "anonymous": "no credential"}
        return f"{kinds[self.kind]} from {self._proof.source}"

    def to_config(self) -> dict[str, Any]:
        """All of it as JSON types, secrets included: to be handed to another process of ours in memory only."""
        return {
            "account": self.account,
            "proof": asdict(self._proof),
            "ca_file": self.ca_file,
            "allow_http": self.allow_http,
            "token": asdict(self._token) if self._token else None,
        }

    def __repr__(self) -> str:
        return f"<Credential for {self.account}: {self.describe()}>"

    def _use(self, proof: Proof) -> None:
        """Sign with this from now on."""
        self._proof = proof
        self._sas = Sas.parse(proof.sas, proof.source) if proof.kind == "sas" else None
        if proof.kind == "key":
            self._signer = SharedKeySigner(self.account, proof.account_key, self.clock)
        elif self._sas:
            self._signer = SasSigner(self._sas.text)
        elif proof.kind == "token" and self._token:
            self._signer = BearerSigner(self._token.text, self.clock)
        else:
            self._signer = AnonymousSigner()
        self.renew_at = self._next_renewal()

    def _next_renewal(self) -> float:
        """Half of a token's remaining life from now, so that many tries are left; shortly before a file's SAS ends."""
        if self.kind == "token":
            return (time.time() + self._token.expires_at) / 2 if self._token else 0.0
        if self._sas and self._sas.expires_at and self._proof.file:
            return self._sas.expires_at - _SPARE_S
        return math.inf

    async def _renew_behind(self) -> None:
        """The background renewal. As a system task it must not raise."""
        assert self._renewing is not None
        try:
            await self.refresh()
            self._failure = None
        except CredentialError as error:
            self._failure = error
            log.warning("credential of account %s cannot be renewed: %s", self.account, error.line())
        except Exception as error:
            self._failure = CredentialError(f"the credential cannot be renewed ({type(error).__name__})")
            log.exception("renewing the credential of account %s", self.account)
        finally:
            self._renewing.set()
            self._renewing = None


def credential_from_config(config: dict[str, Any]) -> Credential:
    """The inverse of Credential.to_config."""
    proof = dict(config["proof"])
    proof["token_command"] = tuple(proof["token_command"])
    token = Token(**config["token"]) if config["token"] else None
    return Credential(
        config["account"], Proof(**proof), ca_file=config["ca_file"], allow_http=config["allow_http"], token=token
    )


def check_transport(address: DiskAddress, credential: Credential) -> None:
    """Refuse plain HTTP to another machine, unless it was allowed. Raises UsageError."""
    endpoint = address.endpoint
    assert endpoint is not None
    if endpoint.scheme == "http" and not endpoint.is_loopback and not credential.allow_http:
        raise UsageError(
            f"{endpoint} is plain HTTP: the disk's data and the {credential.describe()} could be read on the way",
            remedy="use https://, or, on a network that you trust, allow_http = yes in the credential file",
        )
