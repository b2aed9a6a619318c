"""Certificates and keys of a deployment: TLS for the server, a key pair for each client.

One folder for each party holds what this party may see and nothing else::

    ca/         ca.pem, ca.key: signs; needed to renew, mounted nowhere
    server/     ca.pem, server.pem, server.key
    operator/   ca.pem, client-000.pub, ...: what registers clients and starts the run
    client-000/ ca.pem, auth.key

Clients prove who they are with an EC key that the operator registers with the SuperLink;
they have no certificate.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedleak.errors import Problem, ResourceError, ScenarioError
from fedleak.records import partition_name

CA = "ca.pem"
SERVER = "server.pem"
SERVER_KEY = "server.key"
CLIENT_KEY = "auth.key"
HOSTS = ("superlink", "localhost", "127.0.0.1", "::1")
"""Names under which a server is reached by default: Compose's service, and loopback."""

_AGAIN = "put the good one back, or remove its folder to make everything in it anew"
_CA_DAYS = 3650
_SERVER_DAYS = 365
_CLOCK_SKEW = timedelta(hours=1)


def make_certificates(
    directory: Path, clients: int, hosts: Sequence[str] = (), owner: int | None = None
) -> None:
    """Make what is missing, and the server's certificate anew.

    Made again in the same directory it renews: the authority and the clients' keys stay
    as long as they are good, so that clients need nothing new, and so do the server's names
    and the files' owner.

    Args:
        directory: Where the parties' folders are made, each 0700, keys 0600.
        clients: Number of clients.
        hosts: Names and addresses under which clients reach the server, beside `HOSTS`.
        owner: User id that owns the parties' files, for containers; needs root.

    Raises:
        ResourceError: The directory cannot be written, the owner not be set, a file of it
            is damaged, or the authority lacks its key.
        ScenarioError: A name is none.
    """
    names = [*HOSTS, *hosts]
    for host in hosts:
        try:
            _host(host)
        except ValueError:
            message = f"{host!r} is neither a name in ASCII letters nor an address"
            raise ScenarioError(Problem("--host", message)) from None
    server = directory / "server" / SERVER
    try:
        if server.exists():
            names += _hosts_of(server)
            uid = server.stat().st_uid
            owner = uid if owner is None and uid != os.getuid() else owner
        authority, authority_key = _authority(directory / "ca")
        certificate, key = _server(authority, authority_key, list(dict.fromkeys(names)))
        _write(directory / "server" / SERVER, _pem(certificate))
        _write(directory / "server" / SERVER_KEY, _private(key))
        for partition in range(clients):
            name = partition_name(partition)
            path = directory / name / CLIENT_KEY
            if not path.exists():
                _write(path, _private(ec.generate_private_key(ec.SECP384R1()), ssh=True))
            public = _public(path)
            _write(directory / "operator" / f"{name}.pub", public)
        parties = [folder for folder in sorted(directory.iterdir()) if folder.name != "ca"]
        for folder in parties:
            _write(folder / CA, _pem(authority))
            if owner is not None:
                for path in (folder, *folder.iterdir()):
                    os.chown(path, owner, owner)
    except OSError as error:
        raise ResourceError(f"cannot write {directory}: {error.strerror or error}") from error


def _hosts_of(path: Path) -> list[str]:
    """Names and addresses that a server's certificate is for."""
    extension = _certificate(path).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(name.value) for name in extension.value]


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise ResourceError(f"{path} is no certificate ({error}); {_AGAIN}") from None


def check_certificates(folder: Path, names: Iterable[str]) -> None:
    """Refuse to start with a file that is missing or a certificate that is out of date.

    Args:
        folder: One party's.
        names: Files that it needs.

    Raises:
        ResourceError: Says which file, and how to make or renew it.
    """
    remedy = f"`fedleak deploy certs {folder.parent}` makes it"
    for name in names:
        path = folder / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ResourceError(f"{path} is missing; {remedy}") from None
        except OSError as error:
            raise ResourceError(
                f"{path} cannot be read ({error.strerror}); it must belong to the user who "
                "starts this, see `fedleak deploy certs --help`"
            ) from error
        if path.suffix == ".pem":
            _check_date(path, content, remedy)
        elif name == SERVER_KEY:
            try:
                serialization.load_pem_private_key(content, password=None)
            except ValueError as error:
                raise ResourceError(
                    f"{path} is no key ({error}); `fedleak deploy certs {folder.parent}` makes a "
                    "new one"
                ) from None


def check_parties(directory: Path, clients: Iterable[str]) -> None:
    """Refuse to start a deployment of which one party's files are no good.

    Args:
        directory: The folder of `make_certificates`.
        clients: Names of the clients.

    Raises:
        ResourceError: Says which file, and how to make or renew it.
    """
    check_certificates(directory / "server", (CA, SERVER, SERVER_KEY))
    check_certificates(directory / "operator", (CA, *(f"{name}.pub" for name in clients)))
    for name in clients:
        check_certificates(directory / name, (CA, CLIENT_KEY))


def _check_date(path: Path, content: bytes, remedy: str) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(content)
    except ValueError as error:
        raise ResourceError(f"{path} is no certificate ({error}); remove it and {remedy}") from None
    now, until = datetime.now(UTC), certificate.not_valid_after_utc
    if until < now:
        raise ResourceError(
            f"{path} expired on {until:%Y-%m-%d}; `fedleak deploy certs {path.parent.parent}` "
            "renews it, clients keep their keys"
        )
    if certificate.not_valid_before_utc > now:
        raise ResourceError(
            f"{path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on: "
            "check this machine's clock"
        )


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority that is there, or a new one where there is none or it is out of date."""
    certificate_path, key_path = folder / CA, folder / "ca.key"
    if certificate_path.exists():
        certificate = _certificate(certificate_path)
        if certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=_SERVER_DAYS):
            if not key_path.exists():
                raise ResourceError(
                    f"{key_path} is missing: put it back, or remove {folder} to begin anew; every "
                    f"party then needs the new {CA}"
                )
            try:
                key = serialization.load_pem_private_key(key_path.read_bytes(), password=None)
            except ValueError as error:
                raise ResourceError(f"{key_path} is no key ({error}); {_AGAIN}") from None
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            return certificate, key
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedLeak deployment")])
    certificate = (
        _builder(name, name, key.public_key(), _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write(certificate_path, _pem(certificate))
    _write(key_path, _private(key))
    return certificate, key


def _server(
    authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, hosts: Sequence[str]
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "FedLeak server")])
    issuer_key = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    certificate = (
        _builder(name, authority.subject, key.public_key(), _SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key),
            critical=False,
        )
        .sign(authority_key, hashes.SHA384())
    )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not host:
            raise
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey, *, ssh: bool = False) -> bytes:
    # Flower reads clients' keys in OpenSSH's format only.
    formats = serialization.PrivateFormat
    return key.private_bytes(
        serialization.Encoding.PEM,
        formats.OpenSSH if ssh else formats.PKCS8,
        serialization.NoEncryption(),
    )


def _public(path: Path) -> bytes:
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise ResourceError(
            f"{path} is no key ({error}); remove it, make it anew and register it"
        ) from None
    return key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )


def _write(path: Path, content: bytes) -> None:
    """Write a file that is its owner's alone from the first moment on."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)
