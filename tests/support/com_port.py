"""COM-PORT-OPTION commands and answers as bytes (RFC 2217), beside those of `world`."""

from __future__ import annotations

from gateway.protocol.rfc2217 import Linestate, Modemstate
from tests.support.tcp_client import com_port

#: What the gateway adds to the code of a command that it answers.
_ANSWER = 100

SIGNATURE, SET_BAUDRATE, SET_PARITY, SET_STOPSIZE = 0, 1, 3, 4
NOTIFY_LINESTATE, NOTIFY_MODEMSTATE = 6, 7
SET_LINESTATE_MASK, SET_MODEMSTATE_MASK, PURGE_DATA = 10, 11, 12

SUSPEND, RESUME = com_port(8), com_port(9)
GET_LINESTATE, GET_MODEMSTATE = (
    com_port(NOTIFY_LINESTATE, b"\0"),
    com_port(NOTIFY_MODEMSTATE, b"\0"),
)


def baudrate_answer(bps: int) -> bytes:
    return com_port(SET_BAUDRATE + _ANSWER, bps.to_bytes(4, "big"))


def stopsize(code: int) -> bytes:
    """1: one stop bit, 2: two, 3: one and a half."""
    return com_port(SET_STOPSIZE, bytes([code]))


def stopsize_answer(code: int) -> bytes:
    return com_port(SET_STOPSIZE + _ANSWER, bytes([code]))


def purge(buffers: int) -> bytes:
    """1: what the board has sent, 2: what is to be sent to it, 3: both."""
    return com_port(PURGE_DATA, bytes([buffers]))


def purge_answer(buffers: int) -> bytes:
    return com_port(PURGE_DATA + _ANSWER, bytes([buffers]))


def linestate_mask(bits: int) -> bytes:
    return com_port(SET_LINESTATE_MASK, bytes([bits]))


def modemstate_mask(bits: int) -> bytes:
    return com_port(SET_MODEMSTATE_MASK, bytes([bits]))


def linestate(bits: Linestate) -> bytes:
    return com_port(NOTIFY_LINESTATE + _ANSWER, bytes([bits]))


def modemstate(bits: Modemstate) -> bytes:
    return com_port(NOTIFY_MODEMSTATE + _ANSWER, bytes([bits]))


#: The first that a client is told of the board's lines, unasked: none is on.
FIRST_STATE = modemstate(Modemstate(0))
