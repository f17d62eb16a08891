"""Who is asking: SharedKey signatures, bearer tokens, and (through sas) shared access signatures, all verified.

Source: https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key and
https://learn.microsoft.com/rest/api/storageservices/authorize-with-azure-active-directory
"""

from __future__ import annotations

import base64
import calendar
import email.utils
import hmac
import re

from .answers import Refusal
from .config import Config
from .request import Request
from .sas import check_sas
from .state import State

__all__ = ["authorize"]

_CHALLENGE = (
    "Bearer authorization_uri=https://login.microsoftonline.com/00000000-0000-0000-0000-000000000000/oauth2/authorize "
    "resource_id=https://storage.azure.com"
)
# The headers of StringToSign behind Content-Length, in order; Date is handled by itself.
_SIGNED_BEFORE_LENGTH = (b"content-encoding", b"content-language")
_SIGNED_BEFORE_DATE = (b"content-md5", b"content-type")
_BLANKS = re.compile(rb'("(?:[^"\\]|\\.)*")|[ \t\r\n]+')  # a quoted string, which stays, or linear white space
_SIGNED_AFTER_DATE = (b"if-modified-since", b"if-match", b"if-none-match", b"if-unmodified-since", b"range")


def authorize(config: Config, state: State, request: Request, permissions: str, resource_type: str, now: float) -> str:
    """Return the permission letters the caller has, or raise Refusal.

    permissions: letters, any of which allows the operation; resource_type: s, c or o (service, container, object).
    """
    keys = config.accounts.get(request.target.account)
    if keys is None:
        raise Refusal("ResourceNotFound")
    given = request.headers.get(b"authorization")
    if given is not None and given.startswith(b"SharedKey "):
        _check_shared_key(request, given, keys, config.max_skew_s, now)
        return "rwdlct"
    if given is not None and given.startswith(b"Bearer "):
        return _check_token(config, request, given[7:].decode("latin-1"), permissions, now)
    if given is not None:
        raise Refusal("InvalidAuthenticationInfo", status=400)
    if "sig" in request.target.query:
        container = state.accounts[request.target.account].get(request.target.container)
        policies = container.policies if container is not None else {}
        return check_sas(request, keys, policies, permissions, resource_type, now)
    raise Refusal("NoAuthenticationInformation", WWW_Authenticate=_CHALLENGE)


def string_to_sign(request: Request) -> bytes:
    """The text that a SharedKey client signs: header values as Latin-1, which is what HTTP has, in UTF-8."""
    get = request.headers.get
    length = get(b"content-length", b"")
    parts = [request.method.encode()]
    parts += [get(name, b"") for name in _SIGNED_BEFORE_LENGTH]
    parts.append(b"" if length == b"0" else length)
    parts += [get(name, b"") for name in _SIGNED_BEFORE_DATE]
    parts.append(b"" if b"x-ms-date" in request.headers else get(b"date", b""))
    parts += [get(name, b"") for name in _SIGNED_AFTER_DATE]
    parts += [
        name + b":" + _folded(value) for name, value in sorted(request.headers.items()) if name.startswith(b"x-ms-")
    ]
    text = b"\n".join(parts)
    if not text.isascii():
        text = text.decode("latin-1").encode()
    return text + b"\n" + request.target.resource


def _folded(value: bytes) -> bytes:
    """Canonical: each piece of white space is one blank, but for those in quoted strings."""
    return _BLANKS.sub(lambda found: found[1] or b" ", value).strip(b" ")


def _check_shared_key(request: Request, given: bytes, keys: list[bytes], max_skew_s: float, now: float) -> None:
    account, _, signature = given[10:].partition(b":")
    if account.decode("latin-1") != request.target.account or not signature:
        raise Refusal("AuthenticationFailed")
    date = request.headers.get(b"x-ms-date") or request.headers.get(b"date")
    if date is None or abs(_parse_date(date) - now) > max_skew_s:
        raise Refusal(
            "AuthenticationFailed", f"Request date header too old or missing: '{(date or b'').decode('latin-1')}'"
        )
    text = string_to_sign(request)
    for key in keys:
        if base64.b64encode(hmac.digest(key, text, "sha256")) == signature:
            return
    raise Refusal("AuthenticationFailed")


def _check_token(config: Config, request: Request, text: str, permissions: str, now: float) -> str:
    if not (request.secure or config.tokens_over_http):
        raise Refusal("AuthenticationFailed", "Authentication scheme Bearer is not supported over HTTP.")
    token = config.tokens.get(text)
    if token is None or (token.expires_at is not None and now >= token.expires_at):
        challenge = f'{_CHALLENGE}, error="invalid_token"'
        raise Refusal("InvalidAuthenticationInfo", WWW_Authenticate=challenge)
    if not set(permissions) & set(token.permissions):
        raise Refusal("AuthorizationPermissionMismatch")
    return token.permissions


_date_cache: tuple[bytes, float] = (b"", 0.0)


def _parse_date(text: bytes) -> float:
    """Seconds since the epoch; 0 (always refused) when malformed. Clients under load repeat the same second."""
    global _date_cache
    if _date_cache[0] != text:
        parsed = email.utils.parsedate_tz(text.decode("latin-1"))
        seconds = float(calendar.timegm((*parsed[:6], 0, 0, 0)) - (parsed[9] or 0)) if parsed else 0.0
        _date_cache = (text, seconds)
    return _date_cache[1]
