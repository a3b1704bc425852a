"""Telnet for one connection: option negotiation and IAC framing (RFC 854, 856, 1143).

Bytes in, events and bytes out. Data is split from commands in bulk; the negotiations among them
are handed, whole, to telnetlib3's `TelnetWriter`, which decides what is agreed. What a
COM-PORT-OPTION subnegotiation means is `rfc2217`'s and `access_server`'s matter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, cast

from telnetlib3.stream_writer import TelnetWriter
from telnetlib3.telopt import (
    AO,
    AYT,
    BINARY,
    BRK,
    COM_PORT_OPTION,
    DO,
    DONT,
    EC,
    ECHO,
    EL,
    IP,
    SB,
    SE,
    SGA,
    TM,
    WILL,
    WONT,
)

from gateway.protocol.iac import DOUBLED, IAC, double, end_of_data, undouble

if TYPE_CHECKING:
    import asyncio

#: A COM-PORT-OPTION subnegotiation has 2 to 6 octets, a SIGNATURE a line of text. telnetlib3
#: would collect up to 1 MB.
MAX_SUBNEGOTIATION_BYTES = 256

#: What each side may enable. Every other option is refused.
_WE_MAY = frozenset({BINARY, SGA, ECHO, COM_PORT_OPTION})
_THEY_MAY = frozenset({BINARY, SGA, COM_PORT_OPTION})

_NEGOTIATIONS = frozenset({WILL[0], WONT[0], DO[0], DONT[0]})


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes for the serial port, IACs un-doubled, NVT line ends made CR."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ComPort:
    """A COM-PORT-OPTION subnegotiation: what stands between the option code and `IAC SE`."""

    payload: bytes


class Function(Enum):
    """Telnet control functions (RFC 854, "Standard representation of control functions")."""

    ARE_YOU_THERE = auto()
    BREAK = auto()
    INTERRUPT_PROCESS = auto()
    ABORT_OUTPUT = auto()
    ERASE_CHARACTER = auto()
    ERASE_LINE = auto()


@dataclass(frozen=True, slots=True)
class ControlFunction:
    """The client asks for a telnet control function."""

    function: Function


@dataclass(frozen=True, slots=True)
class ComPortEnabled:
    """The client has agreed to COM-PORT-OPTION: it is an RFC 2217 client."""


@dataclass(frozen=True, slots=True)
class ComPortDisabled:
    """The client has taken its agreement to COM-PORT-OPTION back."""


@dataclass(frozen=True, slots=True)
class ProtocolViolation:
    """The stream is no telnet that can be followed; `fatal` when it can't be resynchronised."""

    reason: str
    fatal: bool


Event = Data | ComPort | ControlFunction | ComPortEnabled | ComPortDisabled | ProtocolViolation

_FUNCTIONS: dict[bytes, Function] = {
    AYT: Function.ARE_YOU_THERE,
    BRK: Function.BREAK,
    IP: Function.INTERRUPT_PROCESS,
    AO: Function.ABORT_OUTPUT,
    EC: Function.ERASE_CHARACTER,
    EL: Function.ERASE_LINE,
}

#: No client negotiates more than some twenty times. One that goes on is in a loop (RFC 1143), or
#: keeps the event loop busy: telnetlib3 takes 10 us for a command.
MAX_NEGOTIATIONS = 1000


#: Commands that one call of `receive_data` takes from a stream: 0.3 to 1 ms of CPU. No client sends
#: as many at once.
COMMANDS_PER_CALL = 64


class _Outbox:
    """Stands in for the asyncio transport that TelnetWriter writes its answers to."""

    def __init__(self) -> None:
        self.unsent = bytearray()

    def write(self, data: bytes) -> None:
        self.unsent += data

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        return default


class _Negotiator(TelnetWriter):
    """TelnetWriter, server side, with the few cases mended that RFC 854 and 1143 ask for.

    telnetlib3 5.0.1 does not confirm DONT and WONT of an enabled option, answers only the first
    refused WILL, and raises ValueError without an answer on WILL ECHO and on WILL TM.
    """

    slc_simulated = False

    def __init__(self, outbox: _Outbox, events: list[Event]) -> None:
        super().__init__(cast("asyncio.Transport", outbox), None, server=True)
        self._events = events
        self._refused_binary: set[bytes] = set()
        self._refused_com_port = False  # the client wants no COM-PORT-OPTION from us any more
        self._com_port = False
        self.always_will = {COM_PORT_OPTION}

    def offer(self, verb: bytes, option: bytes) -> None:
        self.iac(verb, option)

    def refuse(self, command: bytes) -> None:
        """Answer a negotiation of an option that is never enabled; DONT and WONT need none."""
        refusals = {WILL: DONT, DO: WONT}
        if (refusal := refusals.get(command[1:2])) is not None:
            self.send_iac(IAC + refusal + command[2:])

    def handle_do(self, opt: bytes) -> bool:
        if opt == COM_PORT_OPTION:
            self._refused_com_port = False
            self._report_com_port()
        if opt in _WE_MAY or opt == TM:
            return super().handle_do(opt)
        self.send_iac(IAC + WONT + opt)
        return False

    def _is_binary(self, verb: bytes, agreed: bool) -> bool:
        """Whether a direction is 8-bit clean.

        An RFC 2217 client that has not answered our BINARY offer yet is taken to agree:
        pyserial never asks for BINARY by itself and sends binary data at once. One that
        refused gets NVT.
        """
        return agreed or (
            self.remote_option.enabled(COM_PORT_OPTION) and verb not in self._refused_binary
        )

    @property
    def inbinary(self) -> bool:
        return self._is_binary(WONT, super().inbinary)

    @property
    def outbinary(self) -> bool:
        return self._is_binary(DONT, super().outbinary)

    def handle_dont(self, opt: bytes) -> None:
        if opt == BINARY:
            self._refused_binary.add(DONT)
        # RFC 1143: a change to "no" is confirmed, a repeated one is not, so there is no loop.
        if self.local_option.enabled(opt):
            self.send_iac(IAC + WONT + opt)
            if opt == COM_PORT_OPTION:
                self._refused_com_port = True
                self._report_com_port()

    def handle_will(self, opt: bytes) -> None:
        if opt not in _THEY_MAY:
            self.send_iac(IAC + DONT + opt)
            return
        is_new = not self.remote_option.enabled(opt)
        super().handle_will(opt)
        if opt == COM_PORT_OPTION and is_new:
            self.iac(WILL, BINARY)
            self.iac(DO, BINARY)
            self._report_com_port()

    def handle_wont(self, opt: bytes) -> None:
        if opt == BINARY:
            self._refused_binary.add(WONT)
        if self.remote_option.enabled(opt):
            self.send_iac(IAC + DONT + opt)
        self.remote_option[opt] = False
        if opt == COM_PORT_OPTION:
            self._report_com_port()

    def _report_com_port(self) -> None:
        agreed = self.remote_option.enabled(COM_PORT_OPTION) and not self._refused_com_port
        if agreed != self._com_port:
            self._com_port = agreed
            self._events.append(ComPortEnabled() if agreed else ComPortDisabled())


class Telnet:
    """The access server's end of one telnet connection.

    `receive_data` never raises on what a client sends. Memory is bounded: at most one
    command of MAX_SUBNEGOTIATION_BYTES is kept between calls besides what has had no turn
    (`unparsed_bytes`), and all answers together are at most 6 bytes longer than what was received
    (the BINARY offers to an RFC 2217 client). After a fatal `ProtocolViolation` nothing more is
    taken.
    """

    def __init__(self) -> None:
        self._outbox = _Outbox()
        self.unsent = self._outbox.unsent  # what `data_to_send` returns
        self._events: list[Event] = []
        self._negotiator = _Negotiator(self._outbox, self._events)
        self._is_telnet = False  # the client has sent a telnet command
        self._receives_nvt = self._sends_nvt = False  # of a telnet client without BINARY
        #: What has been received and had no turn: if there is any, call `receive_data` again.
        self.unparsed_bytes = 0
        self._stream = b""  # what has had no turn, from `_position` on
        self._position = 0
        self._partial = b""  # an unfinished command, from its IAC on
        self._received_cr = False
        self._sent_cr = False
        self._negotiations = 0
        self._failed = False

    def offer_console(self) -> None:
        """Offer what a terminal needs to type at a board.

        WILL ECHO and WILL SGA put a plain `telnet` into character-at-a-time mode (RFC 857, 858):
        the board echoes. With DO BINARY (RFC 856) Enter is CR alone in PuTTY and `telnet`; in NVT
        it is CR LF or CR NUL.
        """
        self._negotiator.offer(WILL, ECHO)
        self._negotiator.offer(WILL, SGA)
        self._negotiator.offer(DO, BINARY)

    @property
    def is_amid_command(self) -> bool:
        """Whether the client has begun a command and not ended it."""
        return bool(self._partial)

    def data_to_send(self) -> bytes:
        """Telnet answers that wait to be sent, as they go on the wire."""
        data = bytes(self.unsent)
        self.unsent.clear()
        return data

    def queue(self, wire_bytes: bytes) -> None:
        """Put bytes that are already framed (a COM-PORT-OPTION answer, text) behind the answers."""
        self.unsent += wire_bytes

    def escape(self, data: bytes) -> bytes:
        """Frame data from the serial port for the wire: IACs doubled, NVT line ends if not BINARY.

        In NVT a CR that is not followed by LF is sent as CR NUL (RFC 854, "The NVT printer"). A
        client that has sent no telnet command yet may be none: its CRs are left as they are. Its
        IACs are doubled all the same, for a telnet client takes any other for a command.
        """
        escaped = double(data)
        if not self._sends_nvt:
            self._sent_cr = False
            return escaped
        if not escaped:
            return escaped
        # The NUL of a CR at the end of a chunk waits until it is known what follows.
        prefix = b"\0" if self._sent_cr and escaped[:1] != b"\n" else b""
        self._sent_cr = escaped.endswith(b"\r")
        if b"\r" in escaped:
            escaped = _BARE_CR.sub(b"\r\0", escaped)
        return prefix + escaped

    def receive_data(self, data: bytes) -> list[Event]:
        """Take what came from the client, return what it means, in stream order.

        At most COMMANDS_PER_CALL commands are taken; the rest waits for the next call, whose `data`
        may be empty.
        """
        if self._failed:
            return []
        if self.unparsed_bytes:
            self._stream, self._position = self._stream[self._position :] + data, 0
            self._take_commands()
        elif not self._partial and IAC not in data:
            return self._data_of(data)
        else:
            self._split(self._partial + data if self._partial else data)
        events = self._events.copy()
        self._events.clear()
        return events

    def _split(self, stream: bytes) -> None:
        if (only_data := undouble(stream)) is not None:
            data, self._partial = only_data
            self._events += self._data_of(data)
            return
        self._partial = b""
        self._stream, self._position = stream, 0
        self._take_commands()

    def _take_commands(self) -> None:
        """Take commands from the stream, and the data before and between them."""
        stream, position = self._stream, self._position
        for _ in range(COMMANDS_PER_CALL):
            end = end_of_data(stream, position)
            if end > position:
                self._events += self._data_of(stream[position:end].replace(DOUBLED, IAC))
            position = self._take_command(stream, end) if end < len(stream) else end
            if position == len(stream):
                break
        self.unparsed_bytes = len(stream) - position
        self._stream, self._position = (stream, position) if self.unparsed_bytes else (b"", 0)

    def _take_command(self, stream: bytes, start: int) -> int:
        """Handle the command whose IAC stands at `start`; return where the data goes on."""
        code = stream[start + 1 : start + 2]
        if not code:
            self._partial = stream[start:]
            return len(stream)
        if not self._is_telnet:
            self._is_telnet = True
            self._choose_line_ends()
        if code == SB:
            return self._take_subnegotiation(stream, start)
        length = 3 if code[0] in _NEGOTIATIONS else 2
        command = stream[start : start + length]
        if len(command) < length:
            self._partial = command
            return len(stream)
        if length == 3:
            return len(stream) if self._is_loop() else self._negotiate(command, start)
        if (function := _FUNCTIONS.get(code)) is not None:
            self._events.append(ControlFunction(function))
        return start + length

    def _negotiate(self, command: bytes, start: int) -> int:
        if command[2:] == IAC:
            # telnetlib3 would take this option code (255, RFC 861) for the start of a command.
            self._negotiator.refuse(command)
        else:
            for index in range(3):
                self._negotiator.feed_byte(command[index : index + 1])
            self._choose_line_ends()
        return start + 3

    def _choose_line_ends(self) -> None:
        self._receives_nvt = not self._negotiator.inbinary
        self._sends_nvt = not self._negotiator.outbinary

    def _is_loop(self) -> bool:
        """Whether the client negotiates without end; there is no following it then."""
        self._negotiations += 1
        if self._negotiations > MAX_NEGOTIATIONS:
            self._fail(f"more than {MAX_NEGOTIATIONS} option negotiations")
        return self._failed

    def _fail(self, reason: str) -> None:
        self._failed = True
        self._events.append(ProtocolViolation(reason, fatal=True))

    def _take_subnegotiation(self, stream: bytes, start: int) -> int:
        body = start + 2
        end = end_of_data(stream, body)
        if end - body > MAX_SUBNEGOTIATION_BYTES:
            self._fail(f"subnegotiation longer than {MAX_SUBNEGOTIATION_BYTES} bytes")
            return len(stream)
        if end + 1 >= len(stream):
            self._partial = stream[start:]
            return len(stream)
        if stream[end + 1 : end + 2] != SE:
            # RFC 855 leaves it open; the command that broke in is the better guess.
            self._events.append(ProtocolViolation("subnegotiation without its end", fatal=False))
            return end
        if end > body:
            self._take_option(stream[body : body + 1], stream[body + 1 : end])
        return end + 2

    def _take_option(self, option: bytes, parameters: bytes) -> None:
        if option == COM_PORT_OPTION:
            self._events.append(ComPort(parameters.replace(DOUBLED, IAC)))
        else:
            self._events.append(
                ProtocolViolation(f"subnegotiation of refused option {option[0]}", fatal=False)
            )

    def _data_of(self, data: bytes) -> list[Event]:
        if self._receives_nvt:
            data = self._undo_nvt(data)
        else:
            self._received_cr = False
        return [Data(data)] if data else []

    def _undo_nvt(self, data: bytes) -> bytes:
        """Make CR NUL and CR LF a CR, which is what the Enter key means (as BSD's telnetd does)."""
        if self._received_cr and data[:1] in {b"\0", b"\n"}:
            data = data[1:]
            self._received_cr = False
        if data:
            self._received_cr = data.endswith(b"\r")
        return _NVT_LINE_END.sub(b"\r", data) if b"\r" in data else data


#: What a client in NVT may send for Enter (RFC 854, RFC 1123 section 3.3.1).
_NVT_LINE_END = re.compile(rb"\r[\0\n]")

#: A CR inside a chunk that no LF follows; one at the chunk's end is decided later.
_BARE_CR = re.compile(rb"\r(?=[^\n])", re.DOTALL)
