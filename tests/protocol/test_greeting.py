"""Which first bytes of a connection are another protocol's greeting, and which are a board's."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.greeting import (
    LONG_TARGET_BYTES,
    MAX_UNDECIDED_BYTES,
    Greeting,
    Verdict,
    recognise,
)

#: Greetings as programs send them, many as nmap's nmap-service-probes has them.
OTHERS = {
    "get": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:4001\r\n\r\n", "HTTP"),
    "post": (b"POST /reset?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", "HTTP"),
    "any method": (b"m-search! * HTTP/1.1\r\n", "HTTP"),
    "empty lines first": (b"\r\n\r\nGET / HTTP/1.0\r\n\r\n", "HTTP"),
    "connect": (b"CONNECT 127.0.0.1:25 HTTP/1.0\r\n\r\n", "HTTP"),
    "proxy": (b"GET http://example.com/ HTTP/1.1\r\n", "HTTP"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP"),
    "long target": (b"POST /" + b"a" * LONG_TARGET_BYTES, "HTTP"),
    "long absolute target": (b"GET https://h/" + b"%20" * LONG_TARGET_BYTES, "HTTP"),
    "not ASCII": ("GET /ä HTTP/1.1\r\n".encode(), "HTTP"),
    "RTSP": (b"OPTIONS / RTSP/1.0\r\n\r\n", "RTSP"),
    "SIP": (b"OPTIONS sip:nm SIP/2.0\r\nVia: SIP/2.0/TCP nm\r\n", "SIP"),
    "HTTP response": (b"HTTP/1.1 400 Bad Request\r\n", "HTTP response"),
    "TLS 1.3": (bytes.fromhex("1603010200010001fc0303") + bytes(32), "TLS"),
    "SSL 3": (bytes.fromhex("16030000530100004f0300")[:9] + b"\3\0" + bytes(20), "TLS"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH"),
    "SSH 1": (b"SSH-1.5-NmapNSE_1.0\n", "SSH"),
    "STUN": (bytes.fromhex("000300082112a442") + bytes(12), "STUN"),
    "STUN over ICE": (bytes.fromhex("005c0001004c2112a442") + bytes(12), "STUN"),
    "PROXY v1": (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", "PROXY protocol"),
    "PROXY v1 of nothing": (b"PROXY UNKNOWN\r\n", "PROXY protocol"),
    "PROXY v2": (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c", "PROXY protocol"),
    "SMB": (bytes.fromhex("000000a4ff534d4272000000"), "SMB"),
    "SMB 2": (bytes.fromhex("000000b2fe534d4240000100"), "SMB"),
    "NetBIOS": (b"\x81\0\0\x44\x20" + b"CK" * 16 + b"\0\x20" + b"EK" * 16 + b"\0", "NetBIOS"),
    "RDP": (bytes.fromhex("0300002a25e00000000000") + b"Cookie: mstshash=n\r\n", "RDP or ISO-TSAP"),
    "S7": (bytes.fromhex("0300001611e00000001400c1020100"), "RDP or ISO-TSAP"),
    "Redis": (b"*1\r\n$4\r\nPING\r\n", "Redis"),
    "memcached": (b"\x80\x0b" + bytes(22), "memcached"),
    "memcached get": (b"\x80\0\0\3\0\0\0\0\0\0\0\3\1\2\3\4" + bytes(8) + b"key", "memcached"),
    "PostgreSQL over TLS": (bytes.fromhex("0000000804d2162f"), "PostgreSQL"),
    "PostgreSQL": (b"\0\0\0\x54\0\3\0\0user\0postgres\0\0", "PostgreSQL"),
    "SQL Server": (bytes.fromhex("1201003400000000000015000601001b"), "SQL Server"),
    "Oracle": (bytes.fromhex("005a0000010000000136012c00000800"), "Oracle"),
    "MongoDB": (
        bytes.fromhex("3a0000000100000000000000d407000000000000") + b"admin.$cmd\0",
        "MongoDB",
    ),
    "MongoDB message": (bytes.fromhex("3a0000000100000000000000dd07000000000000"), "MongoDB"),
    "MQTT": (bytes.fromhex("101e00044d5154540402003c0012"), "MQTT"),
    "MQTT, long": (bytes.fromhex("10ac0200044d5154540402003c"), "MQTT"),
    "MQTT 3.1": (bytes.fromhex("102000064d514973647003"), "MQTT"),
    "AMQP": (b"AMQP\0\0\x09\1", "AMQP"),
    "LDAP bind": (bytes.fromhex("300c020101600702010304008000"), "LDAP"),
    "LDAP search": (bytes.fromhex("30840000002d02010763840000002404000a0100"), "LDAP"),
    "Kerberos": (bytes.fromhex("000000716a816e30816ba103020105a20302010a"), "Kerberos"),
    "DNS version": (
        bytes.fromhex("001e0006010000010000000000000776657273696f6e0462696e640000100003"),
        "DNS",
    ),
    "DNS status": (bytes.fromhex("000c000010000000000000000000"), "DNS"),
    "RPC": (bytes.fromhex("8000002872fe1d130000000000000002000186a00001977c"), "ONC RPC"),
    "X11": (bytes.fromhex("6c000b000000000000000000"), "X11"),
    "X11, big endian": (bytes.fromhex("4200000b0000000000000000"), "X11"),
    "BitTorrent": (b"\x13BitTorrent protocol" + bytes(8), "BitTorrent"),
    "Bitcoin": (b"\xf9\xbe\xb4\xd9version\0\0\0\0\0", "Bitcoin"),
    "adb": (b"CNXN\0\0\0\1\0\x10\0\0", "Android Debug Bridge"),
    "RMI": (b"JRMI\0\2K", "Java RMI"),
    "JDWP": (b"JDWP-Handshake", "Java debugger"),
    "GIOP": (b"GIOP\1\0\1\0\x24\0\0\0", "CORBA"),
}

#: What tools and people send to boards first.
FOR_BOARDS = {
    "telnet": b"\xff\xfd\x03\xff\xfb\x18",
    "pyserial": b"\xff\xfb\x00\xff\xfd\x00\xff\xfb\x03\xff\xfd\x03\xff\xfd\x2c\xff\xfb\x2c",
    "esptool's sync": b"\xc0\x00\x08\x24\x00\x00\x00\x00\x00\x07\x07\x12\x20" + b"U" * 32 + b"\xc0",
    "mpremote": b"\r\x03",
    "MicroPython's soft reset": b"\x03\x03\x04",
    "raw REPL": b"\r\x01",
    "soft reset into the raw REPL": b"\x04\x01",
    "paste mode": b"\x05\x01\x00",
    "Enter": b"\r",
    "Enter twice": b"\r\n\r\n",
    "a modem": b"AT+CGMI\r\n",
    "a modem's HTTP": b'AT+HTTPPARA="URL","http://example.com/"\r\n',
    "a modem's request": b"AT+QHTTPGET=80 HTTP\r\n",
    "HTTP/0.9": b"GET /\r\n",
    "Redis's inline command": b"PING\r\n",
    "memcached's text": b"stats\r\n",
    "HELP": b"HELP\r\n",
    "JSON": b'{"jsonrpc": "2.0", "method": "reset", "id": 1}\n',
    "a sentence on HTTP": b"echo GET / HTTP/1.1\r\n",
    "a picture as base64": b"IMG /9j/" + base64.b64encode(bytes(9000)),
    "Modbus RTU": bytes.fromhex("010300000001840a"),
    "Modbus TCP": bytes.fromhex("000100000006010300000001"),
    "XMODEM": b"\x01\x01\xfe" + b"\x1a" * 128 + b"\x00",
    "SysRq": b"\x00h",
    "zeros": bytes(64),
    "a long word": b"a" * 33,
    "erased flash": b"\xff\xff" * 100,
    "an image": b"\xe9\x04\x02\x20" + bytes(60),
    "stopped in a URL": b"GET /firmware/v2\r\n",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_greeting_is_recognised(name: str) -> None:
    data, protocol = OTHERS[name]
    assert recognise(data) == Greeting(Verdict.OTHER, protocol, wants_http=protocol == "HTTP")


@pytest.mark.parametrize("name", OTHERS)
def test_a_greeting_is_recognised_with_whatever_follows(name: str) -> None:
    data, protocol = OTHERS[name]
    assert recognise(data + bytes(range(256)) * 16).protocol == protocol


@pytest.mark.parametrize("name", FOR_BOARDS)
def test_what_boards_are_sent_is_for_the_board_at_once(name: str) -> None:
    assert recognise(FOR_BOARDS[name]).verdict is Verdict.BOARD


@pytest.mark.parametrize("name", OTHERS)
def test_each_beginning_of_a_greeting_is_judged_like_the_rest_of_it_or_left_open(name: str) -> None:
    """Where a beginning counts as a board's, it is one that people type, and short."""
    data, protocol = OTHERS[name]
    for end in range(1, len(data)):
        greeting = recognise(data[:end])
        if greeting.verdict is Verdict.OTHER:
            assert greeting.protocol == protocol
        elif greeting.verdict is Verdict.BOARD:
            assert end < 16


@pytest.mark.parametrize("data", [b"G", b"GET ", b"POST /x", b"FOO /x HT", b"\x16\x03\x01", b"SSH"])
def test_the_beginning_of_a_greeting_is_undecided(data: bytes) -> None:
    assert recognise(data).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("data", [b"\r", b"\x03", b"\n", b"\x1b", b"\x04", b"\r\n", b"\x01"])
def test_a_key_that_people_press_is_for_the_board_at_once(data: bytes) -> None:
    assert recognise(data).verdict is Verdict.BOARD


def test_no_first_line_is_undecided_without_end() -> None:
    line = b"FOO /" + b"a" * MAX_UNDECIDED_BYTES
    assert recognise(line[:MAX_UNDECIDED_BYTES]).verdict is Verdict.UNDECIDED
    assert recognise(line).verdict is Verdict.BOARD


def test_random_bytes_are_for_the_board_or_undecided() -> None:
    generator = random.Random(1)
    for _ in range(20_000):
        data = generator.randbytes(generator.randrange(1, 64))
        assert recognise(data).verdict is not Verdict.OTHER


@given(st.lists(st.text("abcdefgh /?+=,;:\"'()0123", min_size=1), min_size=1))
def test_lines_that_people_type_are_for_the_board(lines: list[str]) -> None:
    assert recognise("".join(f"{line}\r\n" for line in lines).encode()).verdict is Verdict.BOARD


@given(st.text("ABCDEFabcdef-!", min_size=1, max_size=32), st.text("/%.?a0", min_size=1))
def test_a_request_line_of_any_method_is_recognised(method: str, target: str) -> None:
    assert recognise(f"{method} {target} HTTP/1.1\r\n".encode()).wants_http
