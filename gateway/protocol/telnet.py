"""The server's end of one telnet connection: option negotiation (RFC 854, 856, 1143).

Bytes in, events and bytes out. `telnet_stream` splits the stream; each negotiation is handed,
whole, to telnetlib3's `TelnetWriter`, which decides what is agreed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, cast

from telnetlib3.stream_writer import TelnetWriter
from telnetlib3.telopt import BINARY, COM_PORT_OPTION, DO, DONT, ECHO, SGA, TM, WILL, WONT

from gateway.protocol import telnet_stream
from gateway.protocol.telnet_stream import (
    IAC,
    Command,
    Negotiation,
    ProtocolViolation,
    Splitter,
    Subnegotiation,
    double,
)

if TYPE_CHECKING:
    import asyncio

#: What each side may enable. Every other option is refused.
_WE_MAY = frozenset({BINARY, SGA, ECHO, COM_PORT_OPTION})
_THEY_MAY = frozenset({BINARY, SGA, COM_PORT_OPTION})


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
class ComPortChanged:
    """The client has agreed to COM-PORT-OPTION (an RFC 2217 client does), or withdrawn that."""

    enabled: bool


Event = Data | ComPort | Function | ComPortChanged | ProtocolViolation

_FUNCTIONS = {
    telnet_stream.AYT: Function.ARE_YOU_THERE,
    telnet_stream.BRK: Function.BREAK,
    telnet_stream.IP: Function.INTERRUPT_PROCESS,
    telnet_stream.AO: Function.ABORT_OUTPUT,
    telnet_stream.EC: Function.ERASE_CHARACTER,
    telnet_stream.EL: Function.ERASE_LINE,
}


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
        self._refused_com_port = False  # the client has sent DONT COM-PORT-OPTION
        self._com_port = False
        self.always_will = {COM_PORT_OPTION}

    def refuse(self, verb: bytes, option: bytes) -> None:
        """Answer a negotiation of an option that is never enabled; DONT and WONT need no answer."""
        if (refusal := {WILL: DONT, DO: WONT}.get(verb)) is not None:
            self.send_iac(IAC + refusal + option)

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
            self._events.append(ComPortChanged(agreed))


class Telnet:
    """The access server's end of one telnet connection.

    `receive_data` never raises on what a client sends. Memory is bounded by that of
    `telnet_stream.Splitter`; all answers together are at most 6 bytes longer than what was received
    (the BINARY offers to an RFC 2217 client). After a fatal `ProtocolViolation` nothing more is
    returned.
    """

    def __init__(self) -> None:
        self._outbox = _Outbox()
        self.unsent = self._outbox.unsent  # what `data_to_send` returns
        self._events: list[Event] = []
        self._negotiator = _Negotiator(self._outbox, self._events)
        self._splitter = Splitter()
        #: Input that waits for the next call of `receive_data`.
        self.unparsed_bytes = 0
        self._is_telnet = False  # the client has sent a telnet command
        # Line ends are NVT's: those of a telnet client without BINARY.
        self._receives_nvt = self._sends_nvt = False
        self._received_cr = False
        self._sent_cr = False

    def offer_console(self) -> None:
        """Offer what a terminal needs to type at a board.

        WILL ECHO and WILL SGA put a plain `telnet` into character-at-a-time mode (RFC 857, 858):
        the board echoes. With DO BINARY (RFC 856) Enter is CR alone in PuTTY and `telnet`; in NVT
        it is CR LF or CR NUL.
        """
        self._negotiator.iac(WILL, ECHO)
        self._negotiator.iac(WILL, SGA)
        self._negotiator.iac(DO, BINARY)

    @property
    def is_amid_command(self) -> bool:
        """Whether the client has begun a command and not ended it."""
        return self._splitter.is_amid_command

    def data_to_send(self) -> bytes:
        """Return the telnet answers that wait to be sent, as they go on the wire."""
        data = bytes(self.unsent)
        self.unsent.clear()
        return data

    def queue(self, wire_bytes: bytes) -> None:
        """Put bytes that are already framed (a COM-PORT-OPTION answer, text) behind the answers."""
        self.unsent += wire_bytes

    def escape(self, data: bytes) -> bytes:
        """Frame data from the serial port for the wire: IACs doubled, NVT line ends if not BINARY.

        In NVT a CR that is not followed by LF is sent as CR NUL (RFC 854, "The NVT printer"). A
        client that has sent no telnet command yet may not speak telnet: its CRs are left as they
        are. Its IACs are doubled all the same, since a telnet client takes any other for a command.
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
        """Return the events that are complete with `data`, in stream order.

        At most `telnet_stream.COMMANDS_PER_CALL` commands are handled. While `unparsed_bytes` is
        not 0, call again; `data` may be empty then.
        """
        splitter = self._splitter
        if splitter.is_in_data and IAC not in data:
            return self._data_of(data)
        events = self._events
        for piece in splitter.split(data):
            if isinstance(piece, bytes):
                events += self._data_of(piece)
            else:
                self._handle_command(piece)
        self.unparsed_bytes = splitter.unsplit_bytes
        taken = events.copy()
        events.clear()
        return taken

    def _handle_command(
        self, command: Command | Negotiation | Subnegotiation | ProtocolViolation
    ) -> None:
        if isinstance(command, Subnegotiation):
            self._handle_subnegotiation(command)
        elif isinstance(command, Command):
            if (function := _FUNCTIONS.get(command.code)) is not None:
                self._events.append(function)
        elif isinstance(command, ProtocolViolation):
            self._events.append(command)
        else:
            self._negotiate(bytes((command.verb,)), bytes((command.option,)))
            self._choose_line_ends()
        if not self._is_telnet:
            self._is_telnet = True
            self._choose_line_ends()

    def _choose_line_ends(self) -> None:
        self._receives_nvt = not self._negotiator.inbinary
        self._sends_nvt = not self._negotiator.outbinary

    def _negotiate(self, verb: bytes, option: bytes) -> None:
        if option == IAC:
            # telnetlib3 would take this option code (255, RFC 861) for the start of a command.
            self._negotiator.refuse(verb, option)
        else:
            for byte in (IAC, verb, option):
                self._negotiator.feed_byte(byte)

    def _handle_subnegotiation(self, command: Subnegotiation) -> None:
        option = command.option
        if option == COM_PORT_OPTION:
            self._events.append(ComPort(command.parameters))
        elif option:
            reason = f"subnegotiation of refused option {option[0]}"
            self._events.append(ProtocolViolation(reason, fatal=False))

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
