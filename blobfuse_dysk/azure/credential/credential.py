"""A credential: what requests to one account are signed with, and how it is kept fresh.

A `Credential` hands out signers and renews what it signs with: a file is read again, a token fetched anew. Nothing
here prints, logs or puts into a repr any secret; `to_config` has them, for the memory of another process of ours only.
Where a credential comes from is in resolve.py.

What is new is tried before it is used (`Credential.trial`, store/lease/trial.py), since what it takes the place of may
still be good: a wrong key in a file costs nothing but a line in the log. Only if the old one has expired is one taken
that could not be tried, and one that the service refuses is never taken.

trio is imported where it is used: the attaching process makes credentials and hands them on, and never runs trio.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blobfuse_dysk.azure.credential.file import Conf, parse_conf, read_conf
from blobfuse_dysk.azure.credential.proof import Proof, check_scope
from blobfuse_dysk.azure.credential.sas import Sas
from blobfuse_dysk.azure.credential.tokencommand import Token, fetch_token, own_command
from blobfuse_dysk.azure.signing import AnonymousSigner, BearerSigner, SasSigner, ServiceClock, SharedKeySigner, Signer
from blobfuse_dysk.disk import Endpoint
from blobfuse_dysk.errors import CredentialError, DyskError, UsageError
from blobfuse_dysk.timestamp import utc_text

if TYPE_CHECKING:
    import trio

__all__ = [
    "NO_CREDENTIAL",
    "Credential",
    "Proof",
    "Trial",
    "check_transport",
    "credential_from_config",
]

log = logging.getLogger(__name__)

NO_CREDENTIAL = "CredentialUnavailable"
"""ServiceError.code when no request was sent because the credential could not be had (no token)."""
_DESCRIPTOR = Path("the descriptor")  # how messages name the text of a credential file that came without a file
_SOON_S = 86400.0
_SPARE_S = 300.0  # a SAS from a file is read again when this little of it is left
_AGAIN_S = 60.0  # and then, as after a failed renewal, this often
_REFUSED_S = 5.0  # a refusal by the service causes a renewal at most this often

_Find = Callable[[], Awaitable[Proof]]
Trial = Callable[["Credential"], Awaitable[None]]
"""Asks the service whether it takes a credential. Raises CredentialError if not, another DyskError if nobody knows."""


class Credential:
    """The proof of identity for one account, kept fresh. Made by resolve.py or credential_from_config.

    renew_at: seconds since the epoch when `freshen` should be awaited before the next request; inf for never.
    ca_file, allow_http: how the endpoint is to be trusted. clock: the service's time, shared by all signers.
    endpoint: where it is used, which what is read later must be for; None if it is not read again.
    trial: how a new one is tried; None for not at all. on_switch: called when another one is in use than before, but
    for a new token of the same origin. problem: why the newest one that there was is not in use, if it is not.
    left_out: what else has changed in the file, and is not used before the disk is attached anew; empty for nothing.
    """

    def __init__(
        self,
        account: str,
        proof: Proof,
        *,
        ca_file: str | None = None,
        allow_http: bool = False,
        token: Token | None = None,
        endpoint: Endpoint | None = None,
        clock: ServiceClock | None = None,
    ) -> None:
        self.account = account
        self.ca_file = ca_file
        self.allow_http = allow_http
        self.endpoint = endpoint
        self.clock = clock or ServiceClock()
        self.trial: Trial | None = None
        self.on_switch: Callable[[], None] = _nothing
        self.problem: str | None = None
        self.left_out = ""
        self._on_trial = False
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
        usable = self.kind != "token" or self._token is not None
        return self._signer if usable and self.renew_at > time.time() else None

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
        asked_at = time.monotonic()
        async with self._renewal():
            if self._renewed_at < asked_at and (force or self.renew_at <= time.time()):
                await self._renew(lambda: self._in_file(self._proof.file))

    async def reload(self, file: str = "") -> bool:
        """Read the file again, or from now on another one; return whether what is in use has changed, or was in doubt.

        Raises CredentialError, and all is as it was before.
        """
        if not file and not self.file:
            raise CredentialError(
                f"the {self.describe()} cannot be read again", remedy="name a file with the new one: --credentials FILE"
            )
        return await self._reload(lambda: self._in_file(file or self.file))

    async def take(self, text: str) -> bool:
        """From now on use what this says, which is the text of a credential file; return what `reload` does.

        Then no file is read again. Raises CredentialError, and all is as it was before.
        """
        return await self._reload(lambda: self._in_text(text))

    async def _reload(self, find: _Find) -> bool:
        async with self._renewal():
            doubted, proof = self.problem is not None, self._proof
            await self._renew(find)
            return doubted or proof != self._proof

    def _renewal(self) -> trio.Lock:
        """Held by who renews."""
        import trio

        if self._lock is None:
            self._lock = trio.Lock()
        return self._lock

    async def _renew(self, find: _Find) -> None:
        """Take what `find` returns, and a new token. Raises CredentialError."""
        before = self.problem
        try:
            proof = await find()
            token = await fetch_token(proof.token_command) if proof.kind == "token" else None
            if (proof, token) != (self._proof, self._token):
                await self._try(proof, token)
                switched = proof != self._proof
                self._token = token
                self._use(proof)
                if switched:
                    self.on_switch()
            self.renew_at = self._next_renewal()
            self.problem = None
        except CredentialError as error:
            self.problem = error.line()
            if not self._usable:
                raise
            if self.problem != before:
                log.warning("the old credential stays in use: %s", self.problem)
            raise CredentialError(f"{error}; the old credential stays in use", remedy=error.remedy) from error
        finally:
            self._renewed_at = time.monotonic()
            if self.renew_at <= time.time():
                self.renew_at = time.time() + (_AGAIN_S if self._usable else _REFUSED_S)

    async def _in_file(self, file: str) -> Proof:
        """What is in `file` now; the same as before if there is no file."""
        import trio

        if not file:
            return self._proof
        conf = await trio.to_thread.run_sync(read_conf, Path(file))
        proof = self._in_conf(conf)
        self._leave_out(conf)
        return proof

    async def _in_text(self, text: str) -> Proof:
        """What a text says that came without a file. It can name no program: root's files alone say what root runs."""
        proof = replace(self._in_conf(parse_conf(_DESCRIPTOR, text)), file="")
        if proof.kind == "token" and proof.token_command != own_command():
            raise CredentialError(
                f"{_DESCRIPTOR} names a login of its own (token_command, client_id)",
                remedy="write that into a credential file, and name the file",
            )
        return proof

    def _in_conf(self, conf: Conf) -> Proof:
        if self.endpoint:
            check_scope(conf, self.account, self.endpoint)
        proof = Proof.from_conf(conf)
        if proof is None:
            raise CredentialError(f"{conf.path} has no credential{'' if conf.path == _DESCRIPTOR else ' any more'}")
        return proof

    def _leave_out(self, conf: Conf) -> None:
        """Notice what the connections were made by; an allow_http that is gone may have been the option's."""
        changed = ["ca_file"] if (conf.ca_file or None) != self.ca_file else []
        changed += ["allow_http"] if conf.allow_http and not self.allow_http else []
        what = " and ".join(changed)
        left_out = f"{what} as at the attach, not as in {conf.path} now: attach it anew for that" if what else ""
        if left_out and left_out != self.left_out:
            log.warning("%s", left_out)
        self.left_out = left_out

    async def _try(self, proof: Proof, token: Token | None) -> None:
        """Return if these may take the place of what is in use. Raises CredentialError."""
        new = Credential(
            self.account, proof, ca_file=self.ca_file, allow_http=self.allow_http, token=token, clock=self.clock
        )
        new._on_trial = True
        try:
            if self.endpoint:
                check_transport(self.endpoint, new)
            if self.trial and self._usable:
                await self.trial(new)
        except CredentialError:
            raise
        except UsageError as error:
            raise CredentialError(str(error), remedy=error.remedy) from None
        except DyskError as error:
            if self.expires_at is not None and self.expires_at <= self.clock.now():
                return
            raise CredentialError(
                f"the {new.describe()} could not be tried: {error}",
                remedy="a changed file is tried again within a minute; dyskctl reload does it at once",
            ) from error

    async def renew_refused(self, refused: Signer) -> bool:
        """After the service refused a request signed by `refused`: renew, return True if the signer is another now."""
        if self._on_trial:
            return False
        if self._signer is refused and time.monotonic() - self._renewed_at > _REFUSED_S:
            with contextlib.suppress(CredentialError):  # it is in the log, and in `problem`
                await self.refresh(force=True)
        return self._signer is not refused

    def warn(self) -> None:
        """Log a warning if it has ended or ends within a day and nothing renews it."""
        expires_at = self.expires_at
        if self._on_trial or self.kind != "sas" or expires_at is None or expires_at > time.time() + _SOON_S:
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
            if not self._usable:
                log.warning("credential of account %s cannot be renewed: %s", self.account, error.line())
        except Exception as error:
            self._failure = CredentialError(f"the credential cannot be renewed ({type(error).__name__})")
            log.exception("renewing the credential of account %s", self.account)
        finally:
            self._renewing.set()
            self._renewing = None


def _nothing() -> None:
    pass


def credential_from_config(config: dict[str, Any], endpoint: Endpoint | None = None) -> Credential:
    """The inverse of Credential.to_config. endpoint: where it is used."""
    proof = dict(config["proof"])
    proof["token_command"] = tuple(proof["token_command"])
    token = Token(**config["token"]) if config["token"] else None
    return Credential(
        config["account"],
        Proof(**proof),
        ca_file=config["ca_file"],
        allow_http=config["allow_http"],
        token=token,
        endpoint=endpoint,
    )


def check_transport(endpoint: Endpoint, credential: Credential) -> None:
    """Refuse plain HTTP to another machine, unless it was allowed, and that of tokens. Raises UsageError."""
    if endpoint.scheme == "http" and credential.kind == "token":  # the service takes none so, nor does the SDK send any
        raise UsageError(
            f"{endpoint} is plain HTTP, and the {credential.describe()} is sent over HTTPS only",
            remedy="write https:// in the endpoint",
        )
    if endpoint.scheme == "http" and not endpoint.is_loopback and not credential.allow_http:
        raise UsageError(
            f"{endpoint} is plain HTTP: the disk's data and the {credential.describe()} could be read on the way",
            remedy="use https://, or, on a network that you trust, allow_http = yes in the credential file (in "
            'Kubernetes: allowhttp: "yes" in the Secret)',
        )
