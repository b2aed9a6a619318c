"""Certificates: who sees what, names that TLS accepts, and files that are out of date."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedleak.deployment import certificates
from fedleak.deployment.certificates import check_certificates, make_certificates
from fedleak.errors import ResourceError, ScenarioError


@pytest.fixture
def made(tmp_path):
    make_certificates(tmp_path / "certs", 2)
    return tmp_path / "certs"


def test_each_party_gets_what_it_may_see_and_nothing_else(made):
    files = {
        folder.name: sorted(path.name for path in folder.iterdir()) for folder in made.iterdir()
    }
    assert files == {
        "ca": ["ca.key", "ca.pem"],
        "server": ["ca.pem", "server.key", "server.pem"],
        "operator": ["ca.pem", "client-000.pub", "client-001.pub"],
        "client-000": ["auth.key", "ca.pem"],
        "client-001": ["auth.key", "ca.pem"],
    }
    for folder in made.iterdir():
        assert folder.stat().st_mode & 0o777 == 0o700
        for path in folder.iterdir():
            assert path.stat().st_mode & 0o777 == 0o600


def test_the_public_keys_are_those_of_the_clients(made):
    for name in ("client-000", "client-001"):
        private = load_ssh_private_key((made / name / "auth.key").read_bytes(), password=None)
        public = load_ssh_public_key((made / "operator" / f"{name}.pub").read_bytes())
        assert private.public_key().public_numbers() == public.public_numbers()


def handshake(folder, server_name):
    """A TLS handshake on loopback with the files as a server and a client use them."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "server" / "server.pem", folder / "server" / "server.key")
    client = ssl.create_default_context(cafile=folder / "client-000" / "ca.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer():
            connection, _ = listening.accept()
            try:
                server.wrap_socket(connection, server_side=True).close()
            except OSError:
                connection.close()

        answering = threading.Thread(target=answer)
        answering.start()
        try:
            with (
                socket.create_connection(listening.getsockname()) as plain,
                client.wrap_socket(plain, server_hostname=server_name) as secured,
            ):
                return secured.version()
        finally:
            answering.join()


@pytest.mark.parametrize("name", ["superlink", "localhost", "127.0.0.1", "::1"])
def test_a_server_is_trusted_under_its_names(made, name):
    assert handshake(made, name) == "TLSv1.3"


@pytest.mark.parametrize("name", ["elsewhere", "10.0.0.1"])
def test_a_server_is_trusted_under_no_other_name(made, name):
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, name)


def test_a_renewal_keeps_the_authority_and_the_clients_keys(made):
    kept = [made / "ca" / "ca.pem", made / "client-000" / "auth.key"]
    before = [path.read_bytes() for path in kept]
    certificate = (made / "server" / "server.pem").read_bytes()
    make_certificates(made, 3)
    assert [path.read_bytes() for path in kept] == before
    assert (made / "server" / "server.pem").read_bytes() != certificate
    assert (made / "client-002" / "auth.key").exists()
    assert handshake(made, "superlink") == "TLSv1.3"


def test_a_renewal_keeps_the_servers_names(made):
    make_certificates(made, 2, ["fl.example.org", "192.0.2.7"])
    make_certificates(made, 2)
    for name in ("fl.example.org", "192.0.2.7", "superlink", "localhost"):
        assert handshake(made, name) == "TLSv1.3"


@pytest.mark.parametrize("host", ["", "bücher.example"])
def test_a_name_that_is_none_is_refused_and_nothing_written(tmp_path, host):
    with pytest.raises(ScenarioError, match="neither a name in ASCII letters nor an address"):
        make_certificates(tmp_path / "certs", 1, [host])
    assert not (tmp_path / "certs").exists()


def test_long_names_are_taken(tmp_path):
    name = ".".join(["ec2-long-name"] * 6)
    make_certificates(tmp_path, 1, [name])
    assert handshake(tmp_path, name) == "TLSv1.3"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("ca/ca.key", "is no key"),
        ("ca/ca.pem", "is no certificate"),
        ("client-000/auth.key", "is no key"),
    ],
)
def test_a_renewal_names_what_is_damaged(made, file, said):
    (made / file).write_text("nothing of the kind")
    with pytest.raises(ResourceError, match=said) as refused:
        make_certificates(made, 2)
    assert str(made / file) in str(refused.value)


def test_an_authority_without_its_key_is_not_replaced(made):
    before = (made / "client-000" / "ca.pem").read_bytes()
    (made / "ca" / "ca.key").unlink()
    with pytest.raises(ResourceError, match=r"ca\.key is missing: put it back"):
        make_certificates(made, 2)
    assert (made / "client-000" / "ca.pem").read_bytes() == before


def test_an_expired_certificate_is_named_with_its_remedy(made, monkeypatch):
    check_certificates(made / "server", ("ca.pem", "server.pem", "server.key"))
    until = datetime.now(UTC) + timedelta(days=366)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return until

    monkeypatch.setattr(certificates, "datetime", Later)
    with pytest.raises(ResourceError) as refused:
        check_certificates(made / "server", ("ca.pem", "server.pem", "server.key"))
    assert f"{made / 'server' / 'server.pem'} expired on" in str(refused.value)
    assert f"`fedleak deploy certs {made}` renews it" in str(refused.value)


def test_a_servers_key_that_is_none_is_named(made):
    (made / "server" / "server.key").write_text("nothing of the kind")
    with pytest.raises(ResourceError, match=r"server\.key is no key"):
        check_certificates(made / "server", ("ca.pem", "server.pem", "server.key"))


@pytest.mark.parametrize("spoiled", ["missing", "no certificate"])
def test_a_file_that_is_no_good_is_named_with_its_remedy(made, spoiled):
    path = made / "server" / "server.pem"
    if spoiled == "missing":
        path.unlink()
    else:
        path.write_text("nothing of the kind")
    with pytest.raises(ResourceError, match=spoiled) as refused:
        check_certificates(made / "server", ("ca.pem", "server.pem", "server.key"))
    assert str(path) in str(refused.value)
    assert f"`fedleak deploy certs {made}`" in str(refused.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_the_parties_files_can_be_given_to_the_containers_user(made):
    make_certificates(made, 2, owner=10001)
    for folder in made.iterdir():
        owner = 0 if folder.name == "ca" else 10001
        assert {path.stat().st_uid for path in (folder, *folder.iterdir())} == {owner}
    make_certificates(made, 2)
    assert (made / "server" / "server.key").stat().st_uid == 10001, "a renewal gives it nobody else"
