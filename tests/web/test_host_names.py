"""The names by which the gateway may be addressed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gateway.web.http_access import is_served, own_names, split_host

OWN = frozenset({"raspberrypi", "raspberrypi.local", "raspberrypi.lab.example", "lab.example"})


@pytest.mark.parametrize(
    ("host", "served"),
    [
        ("localhost", True),
        ("LOCALHOST.:8080", True),
        ("desk.localhost:8080", True),
        # A browser connects to an address itself, so that no DNS can point it elsewhere.
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("[fe80::1%25eth0]:8080", True),
        ("192.0.2.7", True),
        ("raspberrypi:8080", True),
        ("RaspberryPi.local.", True),
        ("raspberrypi-2.local", True),
        ("raspberrypi-esp.local:8080", True),
        ("raspberrypi.lab.example", True),
        ("lab.example", True),
        ("evil.example", False),
        ("raspberrypi.evil.example", False),
        ("raspberrypi-2.evil.example", False),
        ("raspberrypi-2", False),
        ("evil.local", False),
        ("lab-2.local", False),
        ("www.lab.example", False),
        ("localhost.evil.example:8080", False),
        ("127.0.0.1.evil.example", False),
        ("2130706433", False),
        ("[::1", False),
        ("a b", False),
        ("\udcff", False),
        ("user@localhost", True),
        ("localhost@evil.example", False),
    ],
)
def test_names_that_no_other_party_controls_are_served(host: str, served: bool) -> None:
    assert is_served(split_host(host)[0], OWN) is served


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "resolv.conf", tmp_path / "hosts"


def test_the_host_has_its_name_alone_and_in_each_domain(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Pi")
    resolv_conf, hosts = files
    resolv_conf.write_text(
        "# search no.example\nsearch lab.example. fritz.box\nnameserver 1.1.1.1\n"
    )
    hosts.write_text("127.0.0.1 localhost\n127.0.1.1 pi.hosts.example pi # comment pi.no.example\n")
    assert own_names(*files) == {
        "pi",
        "pi.local",
        "pi.lab.example",
        "pi.fritz.box",
        "pi.hosts.example",
    }


def test_a_full_host_name_counts_with_its_label(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "pi.lab.example")
    assert own_names(*files) == {"pi.lab.example", "pi", "pi.local"}


def test_a_host_without_a_name_has_none(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    files[0].write_text("search evil.example\n")
    files[1].write_text("127.0.0.1 localhost evil\n")
    assert own_names(*files) == frozenset()
