"""The cluster's own certificate authority, and a key pair and kubeconfig for each that speaks with the API."""

from __future__ import annotations

import datetime
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tools.clusterlib.places import KEYS

_YEAR = datetime.timedelta(days=365)


def _name(common: str, group: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if group:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    return x509.Name(parts)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # a clock that is set back a little does no harm
        .not_valid_after(now + _YEAR)
    )


def _write(name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate | None) -> None:
    KEYS.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = serialization.Encoding.PEM
    (KEYS / f"{name}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    if certificate:
        (KEYS / f"{name}.crt").write_bytes(certificate.public_bytes(pem))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (KEYS / f"{name}.pub").write_bytes(public)


@dataclass(frozen=True)
class Authority:
    """Signs for this cluster; its own certificate is ca.crt in KEYS."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls) -> Authority:
        """A new authority, written as ca.key and ca.crt."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("cluster")
        certificate = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write("ca", key, certificate)
        return cls(key, certificate)

    def issue(self, file: str, common: str, group: str | None = None, names: tuple[str, ...] = ()) -> None:
        """A key and a certificate of the name `common` in FILE.key and FILE.crt; a server has `names`, or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        builder = _builder(_name(common, group), self.certificate.subject, key.public_key()).add_extension(
            x509.ExtendedKeyUsage(usages), critical=False
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), False)
        _write(file, key, builder.sign(self.key, hashes.SHA256()))


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def create_signing_pair(file: str) -> None:
    """A key pair without certificate: FILE.key signs the tokens of service accounts, FILE.pub checks them."""
    _write(file, ec.generate_private_key(ec.SECP256R1()), None)


def write_kubeconfig(path: Path, server: str, user: str) -> None:
    """A kubeconfig for the client whose key pair was issued as file `user`."""
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {"name": "c", "cluster": {"server": server, "certificate-authority": str(KEYS / "ca.crt")}}
                ],
                "users": [
                    {
                        "name": user,
                        "user": {
                            "client-certificate": str(KEYS / f"{user}.crt"),
                            "client-key": str(KEYS / f"{user}.key"),
                        },
                    }
                ],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": user}}],
                "current-context": "c",
            },
            indent=1,
        )
    )
