"""The client's end of a telnet connection with COM-PORT-OPTION: bytes in, events and answers out.

The server's end (`protocol.telnet`) leaves negotiation to telnetlib3, which takes 0.2 s to import:
as long as all else of a short esptool run on a fast machine. What a client agrees to fits into a
table. When what is sent, and who waits for which answer, is `connection`'s matter.
"""

from __future__ import annotations

from enum import Enum, auto

from ..protocol import rfc2217
from ..protocol.iac import DOUBLED, IAC, end_of_data, undouble

_SE = 0xF0
_SB = 0xFA
_WILL, _WONT, _DO, _DONT = 0xFB, 0xFC, 0xFD, 0xFE
_NEGOTIATIONS = (_WILL, _WONT, _DO, _DONT)

_BINARY = 0
_SGA = 3

#: What both sides may enable, and are asked to; every other option is refused.
_WANTED = (rfc2217.COM_PORT_OPTION, _BINARY, _SGA)

#: As the server's end has it; the longest is a SIGNATURE of a line.
MAX_SUBNEGOTIATION_BYTES = 256

#: No server negotiates more than some twenty times; one that goes on is in a loop (RFC 1143).
MAX_NEGOTIATIONS = 1000


class WireError(Exception):
    """The stream can't be followed any further."""


class _Option(Enum):
    """One side of one telnet option (RFC 1143 without its queue: nothing is taken back)."""

    OFF = auto()  # not enabled, nobody has asked
    ASKED = auto()  # we have asked, the answer is to come
    ON = auto()  # both agree


#: What is to be told of the stream, in its order: data of the port, answers of the server.
Event = bytes | rfc2217.Command


class Wire:
    """One connection, from its first byte on.

    Memory is bounded: at most one command of MAX_SUBNEGOTIATION_BYTES is kept between calls,
    answers are no longer than what was received.
    """

    def __init__(self) -> None:
        self._we = dict.fromkeys(_WANTED, _Option.ASKED)
        self._they = dict.fromkeys(_WANTED, _Option.ASKED)
        self._unsent = bytearray()
        for option in _WANTED:
            self._unsent += bytes((0xFF, _WILL, option, 0xFF, _DO, option))
        self._partial = b""
        self._negotiations = 0
        self._refused = False

    @property
    def takes_commands(self) -> bool:
        """Whether the server has agreed to get COM-PORT-OPTION commands."""
        return self._we[rfc2217.COM_PORT_OPTION] is _Option.ON

    @property
    def refuses_commands(self) -> bool:
        """Whether the server has said that it is no RFC 2217 server."""
        return self._refused

    def data_to_send(self) -> bytes:
        """Requests and answers of the negotiation, as they go on the wire."""
        data = bytes(self._unsent)
        self._unsent.clear()
        return data

    def receive(self, stream: bytes) -> list[Event]:
        """Take what came from the server; raises WireError when it makes no sense."""
        if not self._partial:
            if IAC not in stream:
                return [stream]
        else:
            stream = self._partial + stream
        if (only_data := undouble(stream)) is not None:
            data, self._partial = only_data
            return [data] if data else []
        self._partial = b""
        return self._split(stream)

    def _split(self, stream: bytes) -> list[Event]:
        events: list[Event] = []
        position = 0
        while position < len(stream):
            end = end_of_data(stream, position)
            if end > position:
                events.append(stream[position:end].replace(DOUBLED, IAC))
            if end == len(stream):
                break
            position = self._take_command(stream, end, events)
        return events

    def _take_command(self, stream: bytes, start: int, events: list[Event]) -> int:
        """Handle the command whose IAC stands at `start`; return where the data goes on."""
        if start + 1 == len(stream):
            return self._keep(stream, start)
        code = stream[start + 1]
        if code == _SB:
            return self._take_subnegotiation(stream, start, events)
        if code not in _NEGOTIATIONS:
            return start + 2
        if start + 2 == len(stream):
            return self._keep(stream, start)
        self._negotiate(code, stream[start + 2])
        return start + 3

    def _keep(self, stream: bytes, start: int) -> int:
        self._partial = stream[start:]
        return len(stream)

    def _negotiate(self, code: int, option: int) -> None:
        self._negotiations += 1
        if self._negotiations > MAX_NEGOTIATIONS:
            raise WireError(f"more than {MAX_NEGOTIATIONS} option negotiations")
        side, agree, refuse = (
            (self._they, _DO, _DONT) if code in {_WILL, _WONT} else (self._we, _WILL, _WONT)
        )
        state = side.get(option)
        if code in {_WILL, _DO}:
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
            if code == _DONT and option == rfc2217.COM_PORT_OPTION:
                self._refused = True

    def _take_subnegotiation(self, stream: bytes, start: int, events: list[Event]) -> int:
        body = start + 2
        end = end_of_data(stream, body)
        if end - body > MAX_SUBNEGOTIATION_BYTES:
            raise WireError(f"subnegotiation longer than {MAX_SUBNEGOTIATION_BYTES} bytes")
        if end + 1 >= len(stream):
            return self._keep(stream, start)
        if stream[end + 1] != _SE:
            return end  # RFC 855 leaves it open; the command that broke in is the better guess
        if stream[body : body + 1] == bytes([rfc2217.COM_PORT_OPTION]):
            payload = stream[body + 1 : end].replace(DOUBLED, IAC)
            command = rfc2217.decode(payload, from_server=True)
            if not isinstance(command, rfc2217.Malformed):
                events.append(command)
        return end + 2
