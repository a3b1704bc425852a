"""The client behind TLS, against Python's own server side."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import serial
import trustme

from gateway.client.address import Address
from gateway.client.protocol_gateway import Serial
from gateway.client.tls_layer import context_of
from tests.support.scripted_access_server import ScriptedAccessServer


@dataclass
class Identities:
    """PEM files of a lab: its authority, the client and the server."""

    ca: trustme.CA
    ca_path: Path
    client_path: Path

    def server_context(self, host: str = "127.0.0.1") -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert(host).configure_cert(context)
        return context


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Identities:
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    ca.issue_cert("desk@example.org").private_key_and_cert_chain_pem.write_to_path(
        str(folder / "client.pem")
    )
    return Identities(ca, folder / "ca.pem", folder / "client.pem")


@pytest.fixture
def server(lab: Identities) -> Iterator[ScriptedAccessServer]:
    with ScriptedAccessServer(lab.server_context()) as running:
        yield running


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_port_behind_tls_is_as_any_other(lab: Identities, version: ssl.TLSVersion) -> None:
    every = bytes(range(256)) * 1000
    context = lab.server_context()
    context.minimum_version = context.maximum_version = version
    with ScriptedAccessServer(context) as server:
        with Serial(server.url(f"?ca={lab.ca_path}"), baudrate=115200, timeout=60) as port:
            port.write(every)
            server.wait_for(lambda: server.data() == every)
            server.say(every.replace(b"\xff", b"\xff\xff"))
            assert port.read(len(every)) == every
            port.baudrate = 921600
        assert len(server.segments[0]) == 8  # all settings in one record


def test_a_client_shows_its_certificate(lab: Identities) -> None:
    context = lab.server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(lab.ca_path)
    with ScriptedAccessServer(context) as server:
        options = f"?ca={lab.ca_path}&timeout=20"
        with Serial(server.url(f"{options}&cert={lab.client_path}"), timeout=60) as port:
            port.write(b"x")
            server.wait_for(lambda: server.data() == b"x")
        with pytest.raises(serial.SerialException, match="could not open port"):
            Serial(server.url(options))


def test_a_server_of_another_name_or_of_nobody_is_refused(lab: Identities) -> None:
    with ScriptedAccessServer(lab.server_context("other.example")) as server:
        with pytest.raises(serial.SerialException, match=r"127\.0\.0\.1'"):
            Serial(server.url(f"?ca={lab.ca_path}"))
        with pytest.raises(serial.SerialException, match="certificate verify failed"):
            Serial(server.url("?tls"))


def test_a_server_without_tls_is_told_from_one_with(lab: Identities) -> None:
    with ScriptedAccessServer() as server, pytest.raises(serial.SerialException, match="could not"):
        Serial(server.url(f"?ca={lab.ca_path}&timeout=0.5"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path, lab: Identities) -> None:
    with pytest.raises(OSError, match=r"ca=none\.pem"):
        context_of(Address("lab", 1, tls=True, ca="none.pem"))
    with pytest.raises(OSError, match=r"cert=none\.pem"):
        context_of(Address("lab", 1, tls=True, ca=str(lab.ca_path), cert="none.pem"))
