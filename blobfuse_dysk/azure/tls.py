"""Trust in an endpoint: its certificate is checked against the system's authorities, or against a file's."""

from __future__ import annotations

import errno
import ssl
import stat
from pathlib import Path

from blobfuse_dysk.azure.credential import access
from blobfuse_dysk.errors import CredentialError

__all__ = ["check_ca_file", "tls_context", "untrusted"]

_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64  # openssl/x509_vfy.h, X509_V_ERR_*


def check_ca_file(path: str | None) -> None:
    """Raise CredentialError unless the file of the authorities to trust, if one is named, can be used."""
    try:
        if path:
            _context(path)
    except OSError as error:
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise CredentialError(
            f"certificate authorities {path!r} cannot be loaded: {reason}",
            remedy="name a readable PEM file as ca_file",
        ) from error


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Make a context that checks certificate and host name. ca_file: PEM, trusted in place of the system's authorities.

    Raises CredentialError if the file cannot be read.
    """
    check_ca_file(ca_file)
    context = _context(ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _context(ca_file: str | None) -> ssl.SSLContext:
    """Raises OSError if the file cannot be read, or holds no certificate."""
    delegate = access.delegate()
    if ca_file and delegate:
        return ssl.create_default_context(cadata=delegate.authorities(ca_file))
    if ca_file and not stat.S_ISREG(Path(ca_file).stat().st_mode):  # OpenSSL would wait for who writes to a FIFO
        raise OSError(errno.EINVAL, "it is not a regular file")
    return ssl.create_default_context(cafile=ca_file)


def untrusted(error: ssl.SSLCertVerificationError) -> str:
    """What to do about a certificate that is not accepted."""
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        return "check this machine's clock; if it is right, the endpoint's owner has to renew the certificate"
    if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
        return "name the endpoint as its certificate does"
    return "install ca-certificates, or name the authority's PEM file as ca_file in the credential file"
