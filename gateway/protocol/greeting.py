"""Recognise the first bytes of a connection that are another protocol's greeting.

Browsers, port scanners and proxies connect to every open port. What they send first must not
reach a board. A greeting is listed here only if it is almost certainly distinct from bytes
that are meant for a board: by four fixed bytes or more, or by lengths that agree with each other.
Not listed for that reason: words that a person may type (`PING`, `stats`, `EHLO`, an HTTP/0.9
`GET /`), JSON, and SOCKS (MicroPython's Ctrl-D and Ctrl-A are how a SOCKS4 request begins).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What the first bytes of a connection are."""

    BOARD = "board"  # data for the board, or telnet
    UNDECIDED = "undecided"  # the beginning of a greeting
    OTHER = "other"  # another protocol's greeting


@dataclass(frozen=True, slots=True)
class Greeting:
    """The verdict on some first bytes; `protocol` names the other protocol, else it is empty.

    `wants_http` is true when the client waits for an HTTP response.
    """

    verdict: Verdict
    protocol: str = ""
    wants_http: bool = False


_BOARD = Greeting(Verdict.BOARD)
_UNDECIDED = Greeting(Verdict.UNDECIDED)

#: A first line that is longer is for the board. Servers accept request lines of 8000 bytes
#: (RFC 9112 section 3).
MAX_UNDECIDED_BYTES = 8192

#: A standard method and so much of a target without a space is HTTP, though the line's end has not
#: come: a browser's target may be longer than all that is read at once.
LONG_TARGET_BYTES = 1024

#: Any method token (RFC 9110 section 5.6.2), a target without spaces, and a protocol that has
#: request lines like HTTP's. Servers ignore empty lines before it (RFC 9112 section 2.2).
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}+"
_TARGET = rb"[^\x00-\x20\x7f]++"
_REQUEST_LINE = re.compile(
    rb"(?:\r?\n){0,4}+" + _TOKEN + rb" " + _TARGET + rb" (HTTP|RTSP|SIP)/[0-9]"
)
_REQUEST_LINE_BEGIN = re.compile(
    _TOKEN + rb"(?: (?:" + _TARGET + rb"(?: (?:[HRS][A-Z]{0,3}/?)?)?)?)?"
)
_LONG_REQUEST_LINE = re.compile(
    rb"(?:GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH|PROPFIND|PROPPATCH|MKCOL|COPY|MOVE"
    rb"|LOCK|UNLOCK|REPORT|SEARCH) (?:/|\*|[a-z]{2,8}+://)[^\x00-\x20\x7f]{%d}" % LONG_TARGET_BYTES
)


@dataclass(frozen=True, slots=True)
class _Signature:
    """A greeting that begins with bytes in fixed places, each between two values.

    `decides_from` is how many of them must have come before the rest is waited for: fewer are
    keys that people press, Ctrl-C and Enter among them. `agrees` checks the lengths in it.
    """

    protocol: str
    ranges: tuple[tuple[int, int], ...]
    decides_from: int
    agrees: Callable[[bytes], bool]

    def verdict_on(self, data: bytes) -> Verdict:
        places = zip(data, self.ranges, strict=False)
        if any(not low <= byte <= high for byte, (low, high) in places):
            return Verdict.BOARD
        if len(data) >= len(self.ranges):
            return Verdict.OTHER if self.agrees(data) else Verdict.BOARD
        return Verdict.UNDECIDED if len(data) >= self.decides_from else Verdict.BOARD


def _signature(
    protocol: str,
    *pieces: bytes | str,
    decides_from: int = 1,
    agrees: Callable[[bytes], bool] = lambda _: True,
) -> _Signature:
    """Text as bytes, other bytes in hexadecimal: `16`, `00-04` for a range, `..` for any."""
    ranges: list[tuple[int, int]] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            ranges += [(byte, byte) for byte in piece]
            continue
        for place in piece.split():
            low, _, high = ("00-ff" if place == ".." else place).partition("-")
            ranges.append((int(low, 16), int(high or low, 16)))
    return _Signature(protocol, tuple(ranges), decides_from, agrees)


def _number(data: bytes, start: int, end: int) -> int:
    return int.from_bytes(data[start:end], "big")


def _is_client_hello(data: bytes) -> bool:
    """Whether the record's length (RFC 8446 section 5.1) is a ClientHello's."""
    return 40 <= _number(data, 3, 5) <= 16384


def _is_tpkt(data: bytes) -> bool:
    """Whether TPKT's length (RFC 1006) is that of the X.224 connection request in it."""
    return _number(data, 2, 4) == data[4] + 5


def _is_dns_query(data: bytes) -> bool:
    """Whether the length in front (RFC 1035 section 4.2.2) is a query's."""
    return 12 <= _number(data, 0, 2) <= 512


def _is_memcached(data: bytes) -> bool:
    """Whether key and extras fit into the body."""
    return _number(data, 2, 4) + data[4] <= _number(data, 8, 12) <= 2**20


_ONE_BYTE_LENGTH = "00-7f"
_TWO_BYTE_LENGTH = "80-ff 01-7f"

_SIGNATURES = (
    _signature("TLS", "16 03 00-04 .. .. 01 00 .. .. 03 00-04", agrees=_is_client_hello),
    _signature("SSH", b"SSH-", "31-32", b"."),
    _signature("HTTP response", b"HTTP/1.", "30-31", b" "),
    # A browser sends these for a page's RTCPeerConnection, over TURN and over ICE, with text of
    # the page in them (RFC 8489 section 5, RFC 4571).
    _signature("STUN", "00-01 .. .. .. 21 12 a4 42", decides_from=8),
    _signature("STUN", ".. .. 00-01 .. .. .. 21 12 a4 42", decides_from=10),
    _signature("PROXY protocol", b"PROXY TCP", "34-36", b" "),
    _signature("PROXY protocol", b"PROXY UNKNOWN"),
    _signature("PROXY protocol", b"\r\n\r\n\0\r\nQUIT\n", decides_from=5),
    _signature("SMB", "00 00-01 .. .. fe-ff", b"SMB"),
    _signature("NetBIOS", "81 00 00 44 20", "41-50 " * 32),
    _signature(
        "RDP or ISO-TSAP", "03 00 .. .. .. e0 00 00 .. .. 00", agrees=_is_tpkt, decides_from=2
    ),
    _signature("Redis", b"*", "31-39", b"\r\n$", "31-39"),
    _signature(
        "memcached",
        "80 00-3d .. .. 00-18 00 00 00 .. .. .. .. .. .. .. .. 00 00 00 00 00 00 00 00",
        agrees=_is_memcached,
    ),
    _signature("PostgreSQL", "00 00 00 08 04 d2 16 2e-30"),
    _signature("PostgreSQL", "00 00 .. .. 00 03 00 00-02 61-7a"),
    _signature("SQL Server", "12 01 00 .. 00 00 00-01 00 00 00", decides_from=2),
    _signature("Oracle", "00 .. 00 00 01 00 00 00 01 2c-3f 01 2c-3f", decides_from=5),
    _signature("MongoDB", ".. .. 00 00 .. .. .. .. 00 00 00 00 d4 07 00 00", decides_from=16),
    _signature("MongoDB", ".. .. 00 00 .. .. .. .. 00 00 00 00 dd 07 00 00", decides_from=16),
    _signature("MQTT", "10", _ONE_BYTE_LENGTH, b"\0\4MQTT", "03-05"),
    _signature("MQTT", "10", _TWO_BYTE_LENGTH, b"\0\4MQTT", "03-05"),
    _signature("MQTT", "10", _ONE_BYTE_LENGTH, b"\0\6MQIsdp"),
    _signature("MQTT", "10", _TWO_BYTE_LENGTH, b"\0\6MQIsdp"),
    _signature("AMQP", b"AMQP", "00-03 00-01"),
    _signature("LDAP", "30 0c-7f 02 01 01-7f 60 07-7f 02 01 02-03 04", decides_from=3),
    _signature("LDAP", "30 84 00 00 .. .. 02 01 01-7f 60-77 84 00 00", decides_from=2),
    _signature("Kerberos", "00 00 00 .. 6a 81 .. 30 81 .. a1 03 02 01 05"),
    _signature("Kerberos", "00 00 .. .. 6a 82 .. .. 30 82 .. .. a1 03 02 01 05"),
    _signature(
        "DNS",
        "00-01 .. .. .. 00-01 00-30 00 01 00 00 00 00 00 00-02",
        agrees=_is_dns_query,
        decides_from=8,
    ),
    _signature("DNS", "00 0c .. .. 10 00 00 00 00 00 00 00 00 00", decides_from=6),
    _signature("ONC RPC", "80 00 .. .. .. .. .. .. 00 00 00 00 00 00 00 02 00 01"),
    _signature("X11", "6c 00 0b 00 00-02 00", decides_from=2),
    _signature("X11", "42 00 00 0b 00 00-02", decides_from=2),
    _signature("BitTorrent", b"\x13BitTorrent protocol", decides_from=2),
    _signature("Bitcoin", b"\xf9\xbe\xb4\xd9version"),
    _signature("Android Debug Bridge", b"CNXN", "00-01 00 00 01"),
    _signature("Java RMI", b"JRMI", "00 01-02 4b-4d"),
    _signature("Java debugger", b"JDWP-Handshake"),
    _signature("CORBA", b"GIOP", "01 00-03"),
)


def http_response(request: bytes, text: str, date: str) -> bytes:
    """Return the response to any HTTP request that a port gets, with one line of text.

    `request` is as much of it as has come, `date` the Date header's value (RFC 9110 section 6.6.1).
    Caches do not store a 400 without an explicit lifetime; without CORS headers no page reads it.
    """
    body = f"{text}\n".encode()
    head = (
        "HTTP/1.1 400 Bad Request\r\n"
        f"Date: {date}\r\n"
        "Content-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if request.lstrip(b"\r\n").startswith(b"HEAD ") else body)


def recognise(data: bytes) -> Greeting:
    """Judge all bytes that a client has sent so far, at least one."""
    if (line := _REQUEST_LINE.match(data)) is not None:
        name = line[1].decode()
        return Greeting(Verdict.OTHER, name, wants_http=name == "HTTP")
    if _LONG_REQUEST_LINE.match(data) is not None:
        return Greeting(Verdict.OTHER, "HTTP", wants_http=True)
    verdicts = [(signature.verdict_on(data), signature) for signature in _SIGNATURES]
    for verdict, signature in verdicts:
        if verdict is Verdict.OTHER:
            return Greeting(Verdict.OTHER, signature.protocol)
    if len(data) > MAX_UNDECIDED_BYTES:
        return _BOARD
    if any(verdict is Verdict.UNDECIDED for verdict, _ in verdicts):
        return _UNDECIDED
    return _BOARD if _REQUEST_LINE_BEGIN.fullmatch(data) is None else _UNDECIDED
