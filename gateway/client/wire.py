"""The client's end of a telnet connection with COM-PORT-OPTION: bytes in, events and answers out.

A table is enough for what a client negotiates: telnetlib3, which the server uses, takes 0.2 s to
import, as long as the rest of a short esptool run on a fast machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto

from ..protocol import rfc2217
from ..protocol.telnet_stream import (
    DO,
    DONT,
    WILL,
    WONT,
    Negotiation,
    ProtocolViolation,
    Splitter,
    Subnegotiation,
)

_BINARY = 0
_SGA = 3

#: What both sides may enable, and are asked to; every other option is refused.
_WANTED = (rfc2217.COM_PORT_OPTION, _BINARY, _SGA)


class WireError(Exception):
    """The stream can't be followed any further."""


class _Option(Enum):
    """One side of one telnet option (RFC 1143 without its queue: no request is taken back)."""

    OFF = auto()  # not enabled, not asked for
    ASKED = auto()  # asked for, not answered yet
    ON = auto()  # both agree


#: Data of the port, or an answer or notification of the server.
Event = bytes | rfc2217.Command


class Wire:
    """One connection, from its first byte on.

    Memory is bounded by that of `telnet_stream.Splitter`; answers are no longer than what was
    received.
    """

    def __init__(self) -> None:
        self._splitter = Splitter()
        self._we = dict.fromkeys(_WANTED, _Option.ASKED)
        self._they = dict.fromkeys(_WANTED, _Option.ASKED)
        self._unsent = bytearray()
        for option in _WANTED:
            self._unsent += bytes((0xFF, WILL, option, 0xFF, DO, option))
        #: Whether the server has refused COM-PORT-OPTION: it does not speak RFC 2217.
        self.refuses_commands = False

    @property
    def takes_commands(self) -> bool:
        """Whether the server has agreed to COM-PORT-OPTION commands."""
        return self._we[rfc2217.COM_PORT_OPTION] is _Option.ON

    def data_to_send(self) -> bytes:
        """Return requests and answers of the negotiation, as they go on the wire."""
        data = bytes(self._unsent)
        self._unsent.clear()
        return data

    def receive(self, data: bytes) -> Iterator[Event]:
        """Yield the events that are complete with `data`, in stream order.

        Raises WireError, behind the events before it, if the stream can't be followed.
        """
        pieces = self._splitter.split(data)
        while pieces:
            for piece in pieces:
                match piece:
                    case bytes():
                        yield piece
                    case Negotiation(verb, option):
                        self._negotiate(verb, option)
                    case Subnegotiation(b"\x2c", payload):  # COM-PORT-OPTION
                        command = rfc2217.decode(payload, from_server=True)
                        if not isinstance(command, rfc2217.Malformed):
                            yield command
                    case ProtocolViolation(reason, fatal=True):
                        raise WireError(reason)
            pieces = self._splitter.split(b"") if self._splitter.unsplit_bytes else []

    def _negotiate(self, verb: int, option: int) -> None:
        side, agree, refuse = (
            (self._they, DO, DONT) if verb in {WILL, WONT} else (self._we, WILL, WONT)
        )
        state = side.get(option)
        if verb in {WILL, DO}:
            if state is None:
                self._unsent += bytes((0xFF, refuse, option))
                return
            side[option] = _Option.ON
            if state is _Option.OFF:
                self._unsent += bytes((0xFF, agree, option))
        elif state is not None:
            side[option] = _Option.OFF
            if state is _Option.ON:
                self._unsent += bytes((0xFF, refuse, option))
            if verb == DONT and option == rfc2217.COM_PORT_OPTION:
                self.refuses_commands = True
