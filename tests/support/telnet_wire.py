"""Telnet as bytes, and the wire cases that every cut of the stream must leave as they are."""

from __future__ import annotations

from hypothesis import strategies as st

from gateway.protocol.telnet import (
    ComPort,
    ComPortChanged,
    Data,
    Event,
    Function,
)
from gateway.protocol.telnet_stream import MAX_SUBNEGOTIATION_BYTES, ProtocolViolation

BINARY, ECHO, SGA, STATUS, TM, NAWS, LOGOUT, LINEMODE, COM_PORT = 0, 1, 3, 5, 6, 31, 18, 34, 44
SE, NOP, DM, BRK, IP, AO, AYT, EC, EL, GA, SB = range(240, 251)
NEGOTIATIONS = range(251, 255)
KNOWN_COMMANDS = {NOP, DM, BRK, IP, AO, AYT, EC, EL, GA}


def command(*codes: int) -> bytes:
    return bytes([255, *codes])


def will(option: int) -> bytes:
    return command(251, option)


def wont(option: int) -> bytes:
    return command(252, option)


def do(option: int) -> bytes:
    return command(253, option)


def dont(option: int) -> bytes:
    return command(254, option)


def subnegotiation(body: bytes) -> bytes:
    return command(SB) + body.replace(b"\xff", b"\xff\xff") + command(SE)


#: What our engine sends when a client has agreed to COM-PORT-OPTION.
ACCEPTS_COM_PORT = do(COM_PORT) + will(BINARY) + do(BINARY)
RFC2217_CLIENT = will(COM_PORT)


def refused(option: int) -> ProtocolViolation:
    return ProtocolViolation(f"subnegotiation of refused option {option}", fatal=False)


UNENDED = ProtocolViolation("subnegotiation without its end", fatal=False)
TOO_LONG = ProtocolViolation("subnegotiation longer than 256 bytes", fatal=True)
ENABLED = ComPortChanged(enabled=True)
DISABLED = ComPortChanged(enabled=False)

#: Shows that a client speaks telnet.
_NOP = command(NOP)

#: name: (what the client sends, the events, what is answered)
WIRE_CASES: dict[str, tuple[bytes, list[Event], bytes]] = {
    "data": (b"hello", [Data(b"hello")], b""),
    "doubled IAC": (b"a\xff\xffb", [Data(b"a\xffb")], b""),
    "only IACs": (b"\xff" * 12, [Data(b"\xff" * 6)], b""),
    "doubled IAC before a command": (
        b"\xff\xff" + command(AYT),
        [Data(b"\xff"), Function.ARE_YOU_THERE],
        b"",
    ),
    "command before doubled IAC": (command(NOP) + b"\xff\xff\xff\xff", [Data(b"\xff\xff")], b""),
    "AYT": (command(AYT), [Function.ARE_YOU_THERE], b""),
    "BRK": (command(BRK), [Function.BREAK], b""),
    "IP": (command(IP), [Function.INTERRUPT_PROCESS], b""),
    "AO": (command(AO), [Function.ABORT_OUTPUT], b""),
    "EC": (command(EC), [Function.ERASE_CHARACTER], b""),
    "EL": (command(EL), [Function.ERASE_LINE], b""),
    "NOP, DM and GA": (b"a" + command(NOP) + command(DM) + command(GA) + b"b", [Data(b"ab")], b""),
    "synch": (
        command(IP) + command(DM) + b"x",
        [Function.INTERRUPT_PROCESS, Data(b"x")],
        b"",
    ),
    "stray IAC SE": (b"a" + command(SE) + b"b", [Data(b"ab")], b""),
    "WILL ECHO": (will(ECHO) + will(ECHO), [], dont(ECHO) + dont(ECHO)),
    "DO ECHO": (do(ECHO) + do(ECHO), [], will(ECHO)),
    "WILL TM": (will(TM) + will(TM), [], dont(TM) + dont(TM)),
    "WONT TM": (wont(TM), [], b""),
    "DO TM": (do(TM) + b"x" + do(TM), [Data(b"x")], will(TM) + will(TM)),
    "DO LOGOUT": (do(LOGOUT) + b"x", [Data(b"x")], wont(LOGOUT)),
    "option 255": (will(255) + do(255) + b"\xff\xff", [Data(b"\xff")], dont(255) + wont(255)),
    "RFC 2217 client": (RFC2217_CLIENT, [ENABLED], ACCEPTS_COM_PORT),
    "COM-PORT-OPTION twice": (RFC2217_CLIENT * 2, [ENABLED], ACCEPTS_COM_PORT),
    "COM-PORT-OPTION ended and begun again": (
        RFC2217_CLIENT + wont(COM_PORT) * 2 + b"\r\0" + will(COM_PORT) + b"\r\0",
        [ENABLED, DISABLED, Data(b"\r"), ENABLED, Data(b"\r\0")],
        ACCEPTS_COM_PORT + dont(COM_PORT) + do(COM_PORT),
    ),
    "COM-PORT-OPTION ended for our side": (
        RFC2217_CLIENT + (do(COM_PORT) + dont(COM_PORT) * 2) * 2 + do(COM_PORT),
        [ENABLED, DISABLED, ENABLED, DISABLED, ENABLED],
        ACCEPTS_COM_PORT + (will(COM_PORT) + wont(COM_PORT)) * 2 + will(COM_PORT),
    ),
    "COM-PORT-OPTION never wanted from our side": (
        dont(COM_PORT) + RFC2217_CLIENT + dont(COM_PORT),
        [ENABLED],
        ACCEPTS_COM_PORT,
    ),
    "COM-PORT-OPTION from our side": (do(COM_PORT) * 2, [], will(COM_PORT)),
    "BINARY before COM-PORT-OPTION": (
        will(BINARY) + do(BINARY) + RFC2217_CLIENT,
        [ENABLED],
        do(BINARY) + will(BINARY) + do(COM_PORT),
    ),
    "answers to our BINARY offers": (
        RFC2217_CLIENT + will(BINARY) + do(BINARY),
        [ENABLED],
        ACCEPTS_COM_PORT,
    ),
    "refused BINARY offers": (
        RFC2217_CLIENT + wont(BINARY) + dont(BINARY) + b"a\r\0b",
        [ENABLED, Data(b"a\rb")],
        ACCEPTS_COM_PORT,
    ),
    "BINARY after a refusal": (
        RFC2217_CLIENT + wont(BINARY) + will(BINARY) + b"a\r\0b",
        [ENABLED, Data(b"a\r\0b")],
        ACCEPTS_COM_PORT + do(BINARY),
    ),
    "subnegotiation": (
        b"a" + subnegotiation(b"\x2c\x01\0\0\x25\x80") + b"b",
        [Data(b"a"), ComPort(b"\x01\0\0\x25\x80"), Data(b"b")],
        b"",
    ),
    "doubled IACs in a subnegotiation": (
        subnegotiation(b"\x2c\x01\xff\xff\xff\xff"),
        [ComPort(b"\x01\xff\xff\xff\xff")],
        b"",
    ),
    "IAC IAC SE is no end": (
        subnegotiation(b"\x2c\x01\xff\xf0"),
        [ComPort(b"\x01\xff\xf0")],
        b"",
    ),
    "longest subnegotiation": (
        subnegotiation(b"\x2c" + b"x" * (MAX_SUBNEGOTIATION_BYTES - 1)),
        [ComPort(b"x" * (MAX_SUBNEGOTIATION_BYTES - 1))],
        b"",
    ),
    "too long subnegotiation": (
        subnegotiation(b"\x2c" + b"x" * MAX_SUBNEGOTIATION_BYTES) + b"data" + do(ECHO),
        [TOO_LONG],
        b"",
    ),
    "never-ending subnegotiation": (command(SB) + b"x" * 2000, [TOO_LONG], b""),
    "never-ending IACs": (command(SB) + b"\xff" * 2000, [TOO_LONG], b""),
    "subnegotiation without value": (subnegotiation(b"\x2c"), [ComPort(b"")], b""),
    "empty subnegotiation": (b"a" + subnegotiation(b"") + b"b", [Data(b"ab")], b""),
    "subnegotiation of a refused option": (subnegotiation(b"\x1f\0\1"), [refused(NAWS)], b""),
    "subnegotiation of option 255": (subnegotiation(b"\xffx"), [refused(255)], b""),
    "subnegotiation broken in by a negotiation": (
        command(SB) + b"\x2c\x01\0" + do(ECHO) + b"b",
        [UNENDED, Data(b"b")],
        will(ECHO),
    ),
    "subnegotiation broken in by another": (
        command(SB) + b"\x2c\x01\0" + subnegotiation(b"\x2c\x05\x08"),
        [UNENDED, ComPort(b"\x05\x08")],
        b"",
    ),
    "subnegotiation broken in at once": (
        command(SB) + command(NOP) + b"b",
        [UNENDED, Data(b"b")],
        b"",
    ),
    "line ends of a client that is no telnet": (
        b"a\r\0b\r\nc\rd\0",
        [Data(b"a\r\0b\r\nc\rd\0")],
        b"",
    ),
    "NVT line ends": (_NOP + b"a\r\0b\r\nc\rd\0\n", [Data(b"a\rb\rc\rd\0\n")], b""),
    "NVT CR NUL NUL": (_NOP + b"\r\0\0", [Data(b"\r\0")], b""),
    "NVT CR NUL LF": (_NOP + b"\r\0\n", [Data(b"\r\n")], b""),
    "NVT CR LF NUL": (_NOP + b"\r\n\0", [Data(b"\r\0")], b""),
    "NVT CR LF LF": (_NOP + b"\r\n\n", [Data(b"\r\n")], b""),
    "NVT CR CR NUL": (_NOP + b"\r\r\0", [Data(b"\r\r")], b""),
    "NVT CR LF around a command": (_NOP + b"\r" + command(NOP) + b"\na", [Data(b"\ra")], b""),
    "CR LF around the first command": (b"\r" + command(NOP) + b"\na", [Data(b"\r\na")], b""),
    "NVT CR NUL around a command": (_NOP + b"\r" + command(NOP) + b"\0a", [Data(b"\ra")], b""),
    "BINARY is 8-bit clean": (
        will(BINARY) + b"a\r\0b\r\n\xff\xff\0",
        [Data(b"a\r\0b\r\n\xff\0")],
        do(BINARY),
    ),
    "pyserial sends binary data at once": (
        RFC2217_CLIENT + b"\r\0\xff\xff",
        [ENABLED, Data(b"\r\0\xff")],
        ACCEPTS_COM_PORT,
    ),
    "CR before BINARY, NUL behind it": (
        b"\r" + will(BINARY) + b"\0" + wont(BINARY) + b"\0",
        [Data(b"\r\0\0")],
        do(BINARY) + dont(BINARY),
    ),
    "CR in BINARY, NUL behind it": (
        will(BINARY) + b"\r" + wont(BINARY) + b"\0",
        [Data(b"\r\0")],
        do(BINARY) + dont(BINARY),
    ),
}

#: Options and tokens of which streams for property tests are made.
OPTIONS = st.sampled_from([BINARY, ECHO, SGA, STATUS, TM, NAWS, LINEMODE, COM_PORT, 255])
_TOKENS = st.one_of(
    st.binary(max_size=8),
    st.sampled_from([b"\xff", b"\xff\xff", b"\r", b"\0", b"\n", command(SB), command(SE), b"\x2c"]),
    st.builds(command, st.sampled_from(NEGOTIATIONS), OPTIONS),
    st.builds(command, st.integers(0, 255)),
    st.binary(max_size=8).map(subnegotiation),
    st.just(b"x" * (MAX_SUBNEGOTIATION_BYTES - 2)),
)
STREAMS = st.lists(_TOKENS, max_size=40).map(b"".join)


@st.composite
def cut(draw: st.DrawFn, streams: st.SearchStrategy[bytes] = STREAMS) -> list[bytes]:
    """A stream in pieces."""
    stream = draw(streams)
    cuts = sorted(draw(st.sets(st.integers(0, len(stream)), max_size=20)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
