"""Files of certificates and keys: what can be used, and a name for each mistake."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from gateway.inputs import OPEN_TO_OTHERS
from gateway.net.tls_context import (
    MAX_FILE_BYTES,
    Tls,
    TlsFileError,
    client_context,
    doubtful_files,
    server_context,
    wrong_files,
)
from tests.support.certificates import Authority

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def found(tls: Tls) -> list[tuple[str, str]]:
    """The key and what was found of each wrong file; the contexts agree that it is wrong."""
    errors = [(error.key, error.reason) for error in wrong_files(tls)]
    if errors and errors[0][0] != "ca":
        with pytest.raises(TlsFileError) as caught:
            server_context(tls)
        assert (caught.value.key, caught.value.reason) == errors[0]
    return errors


def test_a_server_shows_its_certificate_and_wants_one_of_its_clients_authority(
    tmp_path: Path,
) -> None:
    tls = Authority(tmp_path).server()
    assert found(tls) == []
    context = server_context(tls)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.num_tickets == 0
    assert server_context(replace(tls, client_ca=None)).verify_mode is ssl.CERT_NONE


def test_a_client_checks_the_far_end_and_its_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for tls in (Tls(), Tls(ca=str(authority.path)), authority.server()):
        context = client_context(tls)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert len(client_context(Tls(ca=str(authority.path))).get_ca_certs()) == 1


def test_certificate_and_key_may_be_in_one_file(tmp_path: Path) -> None:
    tls = Authority(tmp_path).server()
    both = tmp_path / "both.pem"
    both.touch(mode=0o600)
    both.write_text(Path(tls.key or "").read_text() + Path(tls.cert or "").read_text())
    server_context(Tls(str(both), str(both)))


def rewrite(path: str | None, change: Callable[[bytes], bytes]) -> None:
    assert path is not None
    Path(path).write_bytes(change(Path(path).read_bytes()))


@pytest.mark.parametrize("key", ["cert", "key", "client_ca"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", None),
        (b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", None),
        (b"\xff" * (MAX_FILE_BYTES + 1), "larger than 1 MB"),
    ],
)
def test_a_file_that_is_missing_empty_damaged_or_huge_is_named(
    tmp_path: Path, key: str, content: bytes | None, said: str | None
) -> None:
    tls = Authority(tmp_path).server()
    path = Path(getattr(tls, key))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    (error,) = wrong_files(tls)
    assert (error.key, error.path) == (key, str(path))
    assert said is None or said == error.reason


def test_a_certificate_that_is_cut_off_is_named(tmp_path: Path) -> None:
    tls = Authority(tmp_path).server()
    lines = Path(tls.cert or "").read_text().splitlines()
    del lines[3]
    Path(tls.cert or "").write_text("\n".join(lines))
    assert found(tls) == [("cert", "damaged certificate")]


def test_nothing_is_waited_for_where_no_file_is(tmp_path: Path) -> None:
    tls = Authority(tmp_path).server()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    kinds = {str(fifo): "a FIFO", "/dev/zero": "a character device", str(tmp_path): "a directory"}
    for path, kind in kinds.items():
        assert found(replace(tls, client_ca=path)) == [
            ("client_ca", f"cannot be read: it is {kind}")
        ]


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602])
def test_a_key_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    tls = Authority(tmp_path).server()
    Path(tls.key or "").chmod(mode)
    assert found(tls) == [("key", OPEN_TO_OTHERS)]
    Path(tls.key or "").chmod(0o640)
    assert found(tls) == []


def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    _, other_key = authority.issue("other", "localhost")
    tls = replace(authority.server(), key=str(other_key))
    assert found(tls) == [("key", "key of another certificate")]


def test_a_key_with_a_passphrase_is_named_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    tls = Authority(tmp_path).server()

    def encrypted(pem: bytes) -> bytes:
        key = serialization.load_pem_private_key(pem, None)
        return key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )

    rewrite(tls.key, encrypted)
    assert found(tls) == [("key", "it has a passphrase")]


def test_a_certificate_in_the_place_of_an_authority_s_is_named(tmp_path: Path) -> None:
    tls = Authority(tmp_path).server()
    assert found(replace(tls, client_ca=tls.cert)) == [
        ("client_ca", "no certificate of an authority (CA:TRUE) in it")
    ]


def test_each_wrong_file_is_named(tmp_path: Path) -> None:
    tls = Tls("/no/cert", "/no/key", "/no/client_ca", "/no/ca")
    assert [key for key, _ in found(tls)] == ["cert", "client_ca", "ca"]


def test_a_certificate_out_of_its_time_is_doubtful(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    def doubts(not_before: datetime, not_after: datetime) -> list[str]:
        cert, key = authority.issue(
            "gateway", "localhost", not_before=not_before, not_after=not_after
        )
        tls = Tls(str(cert), str(key), client_ca=str(authority.path))
        assert found(tls) == []
        errors = list(doubtful_files(tls, NOW))
        assert all(error.key == "cert" for error in errors)
        return [error.reason for error in errors]

    assert doubts(NOW - DAY, NOW + DAY) == []
    ended = NOW - DAY
    assert doubts(NOW - 2 * DAY, ended) == [
        f"a certificate in it expired on {ended:%Y-%m-%d %H:%M} UTC"
    ]
    begins = NOW + DAY
    # From 2050 on, certificates write their years in another way.
    assert doubts(begins, NOW + 20_000 * DAY) == [
        f"a certificate in it is not valid before {begins:%Y-%m-%d %H:%M} UTC"
    ]


def test_an_authority_out_of_its_time_is_doubtful(tmp_path: Path) -> None:
    tls = Authority(tmp_path).server()
    long_ago = NOW - 20_000 * DAY
    assert {error.key for error in doubtful_files(tls, long_ago)} == {"cert", "client_ca"}
