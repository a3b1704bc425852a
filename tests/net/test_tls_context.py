"""TLS contexts: which files can be used, a reason for each that can't, and a reload."""

from __future__ import annotations

import gc
import os
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from gateway.inputs import OPEN_TO_OTHERS
from gateway.net.tls_context import (
    MAX_FILE_BYTES,
    Tls,
    TlsContexts,
    TlsFileError,
    client_context,
    doubtful_files,
    server_context,
    wrong_files,
)
from tests.support.certificates import Authority

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def found(tls: Tls) -> list[tuple[str, str]]:
    """The key and the reason of each wrong file; the contexts agree that it is wrong."""
    errors = [(error.key, error.reason) for error in wrong_files(tls)]
    if errors:
        with pytest.raises(TlsFileError) as caught:
            (client_context if errors[0][0] == "ca" else server_context)(tls)
        assert (caught.value.key, caught.value.reason) == errors[0]
    return errors


def test_a_server_requires_certificates_of_its_clients_authority(authority: Authority) -> None:
    tls = authority.server()
    assert found(tls) == []
    context = server_context(tls)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.num_tickets == 0
    assert server_context(replace(tls, client_ca=None)).verify_mode is ssl.CERT_NONE


def test_a_client_checks_the_far_end_and_its_name(authority: Authority) -> None:
    for tls in (Tls(), Tls(ca=str(authority.path)), authority.server()):
        context = client_context(tls)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(client_context(Tls(ca=str(authority.path))).get_ca_certs()) == 1


def test_certificate_and_key_may_be_in_one_file(authority: Authority, tmp_path: Path) -> None:
    tls = authority.server()
    both = tmp_path / "both.pem"
    both.touch(mode=0o600)
    both.write_text(Path(tls.key or "").read_text() + Path(tls.cert or "").read_text())
    server_context(Tls(str(both), str(both)))


@pytest.mark.parametrize("key", ["cert", "key", "client_ca"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", None),
        (b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", None),
        (b"\xff" * (MAX_FILE_BYTES + 1), "larger than 1 MB"),
    ],
)
def test_a_missing_empty_damaged_or_huge_file_is_named(
    authority: Authority, key: str, content: bytes | None, reason: str | None
) -> None:
    tls = authority.server()
    path = Path(getattr(tls, key))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    (error,) = wrong_files(tls)
    assert (error.key, error.path) == (key, str(path))
    assert reason is None or reason == error.reason


def test_each_wrong_file_is_named() -> None:
    tls = Tls("/no/cert", "/no/key", "/no/client_ca", "/no/ca")
    assert [key for key, _ in found(tls)] == ["cert", "client_ca", "ca"]
    assert list(doubtful_files(tls, NOW)) == []  # they are wrong already


def test_a_truncated_certificate_is_named(authority: Authority) -> None:
    tls = authority.server()
    lines = Path(tls.cert or "").read_text().splitlines()
    del lines[3]
    Path(tls.cert or "").write_text("\n".join(lines))
    assert found(tls) == [("cert", "damaged certificate")]


def test_no_other_kind_of_file_is_read(authority: Authority, tmp_path: Path) -> None:
    tls = authority.server()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    kinds = {str(fifo): "a FIFO", "/dev/zero": "a character device", str(tmp_path): "a directory"}
    for path, kind in kinds.items():
        assert found(replace(tls, client_ca=path)) == [
            ("client_ca", f"cannot be read: it is {kind}")
        ]


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_a_key_that_others_may_read_or_write_is_rejected(authority: Authority, mode: int) -> None:
    tls = authority.server()
    Path(tls.key or "").chmod(mode)
    assert found(tls) == [("key", OPEN_TO_OTHERS)]
    Path(tls.key or "").chmod(0o640)
    assert found(tls) == []


def test_a_key_of_another_certificate_is_named(authority: Authority) -> None:
    _, other_key = authority.issue("other", "localhost")
    tls = replace(authority.server(), key=str(other_key))
    assert found(tls) == [("key", "key of another certificate")]


def test_a_weak_certificate_is_named(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        error = ssl.SSLError("too small")
        error.reason = "EE_KEY_TOO_SMALL"
        raise error

    tls = authority.server()
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    assert found(tls) == [("cert", "OpenSSL: ee key too small")]


def test_a_key_with_a_passphrase_is_named_and_not_asked_for(authority: Authority) -> None:
    tls = authority.server()
    path = Path(tls.key or "")
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"secret")
    encoding, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(encoding, pkcs8, encryption))
    assert found(tls) == [("key", "it has a passphrase")]


def test_a_certificate_in_place_of_an_authority_s_is_named(authority: Authority) -> None:
    tls = authority.server()
    assert found(replace(tls, client_ca=tls.cert)) == [
        ("client_ca", "no certificate of an authority (CA:TRUE) in it")
    ]


@pytest.mark.parametrize(
    ("not_before", "not_after", "reason"),
    [
        (NOW - DAY, NOW + DAY, None),
        (NOW - 2 * DAY, NOW - DAY, f"expired on {NOW - DAY:%Y-%m-%d %H:%M} UTC"),
        # From 2050 on, certificates have years of four digits.
        (NOW + DAY, NOW + 20_000 * DAY, f"is not valid before {NOW + DAY:%Y-%m-%d %H:%M} UTC"),
    ],
)
def test_a_certificate_out_of_its_time_is_doubtful(
    authority: Authority, not_before: datetime, not_after: datetime, reason: str | None
) -> None:
    cert, key = authority.issue("gateway", "localhost", not_before=not_before, not_after=not_after)
    tls = Tls(str(cert), str(key), client_ca=str(authority.path))
    assert found(tls) == []
    doubts = [(error.key, error.reason) for error in doubtful_files(tls, NOW)]
    assert doubts == ([] if reason is None else [("cert", f"a certificate in it {reason}")])


def test_an_authority_out_of_its_time_is_doubtful(authority: Authority) -> None:
    long_ago = NOW - 20_000 * DAY
    errors = doubtful_files(authority.server(), long_ago)
    assert {error.key for error in errors} == {"cert", "client_ca"}


# --- contexts in use


async def test_ports_with_equal_settings_share_a_context_while_it_is_in_use(
    authority: Authority,
) -> None:
    tls = authority.server()
    contexts = TlsContexts(structlog.get_logger())
    current = await contexts.server(tls)
    assert await contexts.server(tls) is current
    assert await contexts.client(tls) is not current
    del current
    gc.collect()
    assert not contexts._in_use


async def test_a_renewal_replaces_contexts_and_keeps_those_whose_files_are_wrong(
    authority: Authority,
) -> None:
    contexts = TlsContexts(structlog.get_logger())
    current = await contexts.server(authority.server())
    before = current.context
    await contexts.renew()
    assert current.context is not before
    before = current.context
    authority.path.write_text("")
    with capture_logs() as logs:
        await contexts.renew()
    assert current.context is before
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        (
            "tls_not_renewed",
            f"tls: invalid client_ca '{authority.path}' (no certificate in PEM): expected a PEM"
            " file with certificates of authorities",
        )
    ]


async def test_a_wrong_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TlsFileError):
        await TlsContexts(structlog.get_logger()).client(Tls(ca=str(tmp_path / "none")))
