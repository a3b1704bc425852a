"""One client's conversation: RFC 2217 over telnet (`AccessServer`), or raw bytes (`RawPipe`).

Bytes from the client go in, requests in pyserial's terms come out, in stream order. The caller
carries a request out and hands it back to `answer` with the state of the port; the acknowledgement
of RFC 2217 is queued with the value in force.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypedDict

from gateway.protocol import rfc2217, telnet
from gateway.protocol.reset import Lines
from gateway.protocol.rfc2217 import Control, Linestate, Modemstate, PurgeBuffers
from gateway.protocol.serial_settings import (
    FLOW_CODES,
    FLOWS,
    PARITIES,
    PARITY_CODES,
    STOPSIZE_CODES,
    STOPSIZES,
    FlowControl,
    Parity,
    SerialSettings,
    StopBits,
)
from gateway.protocol.telnet_stream import ProtocolViolation

#: RFC 2217: no line state is reported until the client asks, all of the modem state is.
_DEFAULT_LINESTATE_MASK = 0
_DEFAULT_MODEMSTATE_MASK = 255

#: NOTIFY-LINESTATE bits that report what happened to data and do not depend on the moment.
LINESTATE_EVENTS = (
    Linestate.BREAK | Linestate.FRAMING_ERROR | Linestate.PARITY_ERROR | Linestate.OVERRUN
)


@dataclass(frozen=True, slots=True)
class PortStatus:
    """The state in force on the port, which acknowledgements report."""

    settings: SerialSettings
    lines: Lines
    break_on: bool = False


#: Bytes to write to the serial port, as telnet gives them: most of all events.
SerialData = telnet.Data


class SettingsChange(TypedDict, total=False):
    """The fields of `SerialSettings` to change."""

    baudrate: int
    bytesize: int
    parity: Parity
    stopbits: StopBits
    flow_control: FlowControl


@dataclass(frozen=True, slots=True)
class SettingsRequest:
    """Change a setting, or only report it: `change` is empty then."""

    command: rfc2217.Command
    change: SettingsChange

    def apply_to(self, settings: SerialSettings) -> SerialSettings:
        """Return the settings that the client wants, given those in force."""
        return replace(settings, **self.change)


@dataclass(frozen=True, slots=True)
class LinesRequest:
    """Set DTR or RTS, or only report one: both are None then."""

    command: rfc2217.Command
    dtr: bool | None = None
    rts: bool | None = None


@dataclass(frozen=True, slots=True)
class BreakRequest:
    """Start (True) or end (False) a break, or only report it (None)."""

    command: rfc2217.Command
    on: bool | None = None


@dataclass(frozen=True, slots=True)
class PurgeRequest:
    """Discard what was received from the board, what is to be sent to it, or both."""

    command: rfc2217.Command
    receive: bool
    transmit: bool


@dataclass(frozen=True, slots=True)
class StateRequest:
    """The client polls the modem state or the line state."""

    command: rfc2217.Command


@dataclass(frozen=True, slots=True)
class StatesWatched:
    """The bits of line and modem state that the client is notified of from now on."""

    linestate_mask: int
    modemstate_mask: int


@dataclass(frozen=True, slots=True)
class OutputSuspended:
    """FLOWCONTROL-SUSPEND (True) and -RESUME (False): hold the board's output back, or go on."""

    suspended: bool


@dataclass(frozen=True, slots=True)
class ClientIdentified:
    """The client has sent its SIGNATURE."""

    signature: str


class Console(Enum):
    """Requests of a person at a telnet client that are not data."""

    ARE_YOU_THERE = "are_you_there"
    SEND_BREAK = "send_break"
    ABORT_OUTPUT = "abort_output"


@dataclass(frozen=True, slots=True)
class ConsoleRequest:
    """A telnet control function that is neither data nor COM-PORT-OPTION."""

    request: Console


@dataclass(frozen=True, slots=True)
class Violation:
    """The client has broken RFC 2217; the session ends when it is `fatal`."""

    reason: str
    fatal: bool


PortRequest = SettingsRequest | LinesRequest | BreakRequest | PurgeRequest
Event = (
    SerialData
    | PortRequest
    | StateRequest
    | StatesWatched
    | OutputSuspended
    | ClientIdentified
    | ConsoleRequest
    | Violation
)

_FLOW_IN_OFFSET = Control.FLOW_IN_NONE - Control.FLOW_NONE

#: DTR and RTS of each SET-CONTROL. A Linux tty has one flow control for both directions, and none
#: by DCD, DTR or DSR: requests for one direction or for these only report what is in force.
_LINES = {
    Control.REQUEST_DTR: (None, None),
    Control.DTR_ON: (True, None),
    Control.DTR_OFF: (False, None),
    Control.REQUEST_RTS: (None, None),
    Control.RTS_ON: (None, True),
    Control.RTS_OFF: (None, False),
}
_BREAKS = {Control.REQUEST_BREAK: None, Control.BREAK_ON: True, Control.BREAK_OFF: False}

#: Telnet functions as the byte that a terminal would send for them.
_FUNCTION_BYTES = {
    telnet.Function.INTERRUPT_PROCESS: b"\x03",
    telnet.Function.ERASE_CHARACTER: b"\x7f",
    telnet.Function.ERASE_LINE: b"\x15",
}
_CONSOLE = {
    telnet.Function.ARE_YOU_THERE: Console.ARE_YOU_THERE,
    telnet.Function.BREAK: Console.SEND_BREAK,
    telnet.Function.ABORT_OUTPUT: Console.ABORT_OUTPUT,
}


class AccessServer:
    """One client's RFC 2217 conversation; never raises on what the client sends.

    `signature` is sent at the client's request. Every `PortRequest` that `receive_data` returns
    needs one call of `answer`.
    """

    is_telnet = True
    #: Input that waits for the next call of `receive_data`.
    unparsed_bytes = 0

    def __init__(self, signature: str) -> None:
        self._signature = signature
        self._telnet = telnet.Telnet()
        self._telnet.offer_console()
        self.escape = self._telnet.escape
        self._com_port = False
        self._linestate_mask = _DEFAULT_LINESTATE_MASK
        self._modemstate_mask = _DEFAULT_MODEMSTATE_MASK

    @property
    def is_amid_command(self) -> bool:
        """Whether the client has begun a telnet command and not ended it."""
        return self._telnet.is_amid_command

    @property
    def takes_text(self) -> bool:
        """Whether a person reads the board's output, so that text may be put into it.

        False while the client agrees to COM-PORT-OPTION: then a program reads it.
        """
        return not self._com_port

    def receive_data(self, data: bytes) -> list[Event]:
        """Return the client's requests that are complete with `data`, in stream order.

        `telnet_stream.COMMANDS_PER_CALL` bounds them; see `unparsed_bytes`.
        """
        events: list[Event] = []
        for event in self._telnet.receive_data(data):
            match event:
                case SerialData():
                    events.append(event)
                case telnet.ComPort(payload):
                    events += self._com_port_command(payload)
                case telnet.ComPortChanged(enabled):
                    self._com_port = enabled
                    events.append(self._states_watched())
                case telnet.Function():
                    events.append(_console_event(event))
                case ProtocolViolation(reason, fatal):
                    events.append(Violation(reason, fatal))
        self.unparsed_bytes = self._telnet.unparsed_bytes
        return events

    @property
    def unsent_bytes(self) -> int:
        """The length of what `data_to_send` would return."""
        return len(self._telnet.unsent)

    def data_to_send(self) -> bytes:
        """Return the answers that wait to be sent, framed for the wire."""
        return self._telnet.data_to_send()

    def say(self, text: bytes) -> None:
        """Queue text for a person, as if the board had sent it."""
        self._telnet.queue(self._telnet.escape(text))

    def answer(self, request: PortRequest, status: PortStatus) -> None:
        """Queue the acknowledgement of a request with what is in force now."""
        self._send(_acknowledgement(request.command, status))

    def notify_modemstate(self, state: Modemstate, *, requested: bool = False) -> None:
        """Queue the modem state, if the client's mask passes any bit of it or it was requested."""
        masked = state & self._modemstate_mask
        if self._com_port and (masked or requested):
            self._send(rfc2217.NotifyModemstate(state if requested else masked))

    def notify_linestate(self, state: Linestate, *, requested: bool = False) -> None:
        """Queue the line state, if the client's mask passes any bit of it or it was requested."""
        masked = state & self._linestate_mask
        if self._com_port and (masked or requested):
            self._send(rfc2217.NotifyLinestate(state if requested else masked))

    def _send(self, command: rfc2217.Command) -> None:
        self._telnet.queue(rfc2217.encode(command))

    def _states_watched(self) -> StatesWatched:
        if not self._com_port:
            return StatesWatched(0, 0)
        return StatesWatched(self._linestate_mask, self._modemstate_mask)

    def _com_port_command(self, payload: bytes) -> list[Event]:
        command = rfc2217.decode(payload, from_server=False)
        match command:
            case rfc2217.Malformed(reason):
                return [Violation(f"COM-PORT-OPTION: {reason}", fatal=False)]
            case rfc2217.Signature(b""):
                self._send(rfc2217.Signature(self._signature.encode("ascii", "replace")))
                return []
            case rfc2217.Signature(text):
                return [ClientIdentified(text.decode("ascii", "backslashreplace"))]
            case rfc2217.SetLinestateMask(mask):
                self._linestate_mask = mask
                self._send(command)
                return [self._states_watched()]
            case rfc2217.SetModemstateMask(mask):
                self._modemstate_mask = mask
                self._send(command)
                return [self._states_watched()]
        return [_request(command)]


class RawPipe:
    """The conversation of a raw TCP port: every byte is data, there are no requests or answers.

    For socket:// clients, nc and socat. The members are those of `AccessServer`.
    """

    is_telnet = False
    unparsed_bytes = 0
    takes_text = False  # a program may read the board's output
    unsent_bytes = 0
    is_amid_command = False

    def receive_data(self, data: bytes) -> list[Event]:
        """Return all bytes as data."""
        return [SerialData(data)] if data else []

    def data_to_send(self) -> bytes:
        """Return nothing."""
        return b""

    def say(self, text: bytes) -> None:
        """Do nothing: text can't be told from data."""

    def escape(self, data: bytes) -> bytes:
        """Return data from the board as it is."""
        return data

    def answer(self, request: PortRequest, status: PortStatus) -> None:
        """Do nothing."""

    def notify_modemstate(self, state: Modemstate, *, requested: bool = False) -> None:
        """Do nothing."""

    def notify_linestate(self, state: Linestate, *, requested: bool = False) -> None:
        """Do nothing."""


def _console_event(function: telnet.Function) -> Event:
    if (byte := _FUNCTION_BYTES.get(function)) is not None:
        return SerialData(byte)
    return ConsoleRequest(_CONSOLE[function])


def _request(command: rfc2217.Command) -> Event:
    """Return a command's request to the port. Values that no RFC defines only report."""
    match command:
        case rfc2217.SetBaudrate(baudrate):
            return SettingsRequest(command, {"baudrate": baudrate} if baudrate else {})
        case rfc2217.SetDatasize(bytesize):
            known_size = bytesize in {5, 6, 7, 8}
            return SettingsRequest(command, {"bytesize": bytesize} if known_size else {})
        case rfc2217.SetParity(code):
            parity = PARITIES.get(code)
            return SettingsRequest(command, {"parity": parity} if parity else {})
        case rfc2217.SetStopsize(stopsize):
            stopbits = STOPSIZES.get(stopsize)
            return SettingsRequest(command, {"stopbits": stopbits} if stopbits else {})
        case rfc2217.SetControl(control):
            return _control_request(command, control)
        case rfc2217.PurgeData(buffers):
            return _purge_request(command, buffers)
        case rfc2217.FlowcontrolSuspend():
            return OutputSuspended(suspended=True)
        case rfc2217.FlowcontrolResume():
            return OutputSuspended(suspended=False)
    return StateRequest(command)


def _control_request(command: rfc2217.Command, control: int) -> Event:
    try:
        control = Control(control)
    except ValueError:
        return Violation(f"SET-CONTROL with undefined value {control}", fatal=False)
    if control in _LINES:
        dtr, rts = _LINES[control]
        return LinesRequest(command, dtr=dtr, rts=rts)
    if control in _BREAKS:
        return BreakRequest(command, on=_BREAKS[control])
    flow = FLOWS.get(control)
    return SettingsRequest(command, {"flow_control": flow} if flow else {})


def _purge_request(command: rfc2217.Command, buffers: int) -> Event:
    if buffers not in {*PurgeBuffers}:
        return Violation(f"PURGE-DATA with undefined value {buffers}", fatal=False)
    return PurgeRequest(
        command,
        receive=buffers in {PurgeBuffers.RECEIVE, PurgeBuffers.BOTH},
        transmit=buffers in {PurgeBuffers.TRANSMIT, PurgeBuffers.BOTH},
    )


def _acknowledgement(command: rfc2217.Command, status: PortStatus) -> rfc2217.Command:
    settings = status.settings
    match command:
        case rfc2217.SetBaudrate():
            return rfc2217.SetBaudrate(settings.baudrate)
        case rfc2217.SetDatasize():
            return rfc2217.SetDatasize(settings.bytesize)
        case rfc2217.SetParity():
            return rfc2217.SetParity(PARITY_CODES[settings.parity])
        case rfc2217.SetStopsize():
            return rfc2217.SetStopsize(STOPSIZE_CODES[settings.stopbits])
        case rfc2217.SetControl(control):
            return rfc2217.SetControl(_control_in_force(Control(control), status))
    return command


def _control_in_force(control: Control, status: PortStatus) -> Control:
    if control in {Control.REQUEST_DTR, Control.DTR_ON, Control.DTR_OFF}:
        return Control.DTR_ON if status.lines.dtr else Control.DTR_OFF
    if control in {Control.REQUEST_RTS, Control.RTS_ON, Control.RTS_OFF}:
        return Control.RTS_ON if status.lines.rts else Control.RTS_OFF
    if control in _BREAKS:
        return Control.BREAK_ON if status.break_on else Control.BREAK_OFF
    flow = FLOW_CODES[status.settings.flow_control]
    is_inbound = Control.REQUEST_FLOW_IN <= control <= Control.FLOW_IN_HARDWARE
    if is_inbound or control == Control.FLOW_IN_DTR:
        return Control(flow + _FLOW_IN_OFFSET)
    return Control(flow)
