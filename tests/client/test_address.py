from __future__ import annotations

import logging
import re

import pytest

from gateway.client.address import DEFAULT_TIMEOUT_S, Address, parse


def test_host_and_port_are_enough() -> None:
    assert parse("gateway://lab.example:4001") == Address("lab.example", 4001)
    assert Address("lab.example", 4001).timeout_s == DEFAULT_TIMEOUT_S


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("gateway://[::1]:4001", Address("::1", 4001)),
        ("GATEWAY://lab:4001/", Address("lab", 4001)),
        ("gateway://lab:1?timeout=0.5", Address("lab", 1, timeout_s=0.5)),
        (
            "gateway://lab:1?ign_set_control&poll_modem",
            Address("lab", 1, checks_control=False, polls_modem=True),
        ),
        ("gateway://lab:1?logging=debug", Address("lab", 1, log_level=logging.DEBUG)),
        ("gateway://lab:1?tls", Address("lab", 1, tls=True)),
        ("gateway://lab:1?ca=a%20b.pem", Address("lab", 1, tls=True, ca="a b.pem")),
        (
            "gateway://lab:1?cert=/c.pem&key=/k.pem",
            Address("lab", 1, tls=True, cert="/c.pem", key="/k.pem"),
        ),
    ],
)
def test_options_are_those_of_rfc2217_urls_and_tls(url: str, expected: Address) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rfc2217://lab:1", "invalid URL 'rfc2217://lab:1': expected gateway://HOST:PORT"),
        ("gateway://lab", "with a port of 1 to 65535"),
        ("gateway://:4001", "with a port of 1 to 65535"),
        ("gateway://lab:0", "with a port of 1 to 65535"),
        ("gateway://lab:70000", "with a port of 1 to 65535"),
        ("gateway://lab:http", "with a port of 1 to 65535"),
        ("gateway://lab:1?baud=3", "unknown option 'baud': expected ca, cert, key, tls"),
        ("gateway://lab:1?timeout=", "expected a number of seconds above 0"),
        ("gateway://lab:1?timeout=inf", "expected a number of seconds above 0"),
        ("gateway://lab:1?timeout=-1", "expected a number of seconds above 0"),
        ("gateway://lab:1?logging=loud", "expected debug, info, warning, error"),
        ("gateway://lab:1?ca=", "invalid ca '': expected the name of a PEM file"),
        ("gateway://lab:1?key=k.pem", "key without cert"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(url)
