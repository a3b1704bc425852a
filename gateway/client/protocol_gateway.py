"""pyserial's handler of gateway:// URLs; pyserial looks for a module of this name.

`packaging/esp_serial_gateway_client.py` lets it be found in programs that do not install it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from serial.serialutil import (
    LF,
    PortNotOpenError,
    SerialBase,
    SerialException,
    SerialTimeoutException,
)

from ..protocol import rfc2217
from ..protocol.rfc2217 import Control, Modemstate, PurgeBuffers
from . import address
from .connection import (
    Connection,
    ConnectionEndedError,
    NoAnswerError,
    RefusedError,
    WriteTimeoutError,
    kind_of,
)

_T = TypeVar("_T")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PARITIES = {"N": 1, "O": 2, "E": 3, "M": 4, "S": 5}
_STOPSIZES = {1: 1, 1.5: 3, 2: 2}

#: pyserial's fields of the settings that the server gets.
_SETTINGS = ("_baudrate", "_bytesize", "_parity", "_stopbits", "_xonxoff", "_rtscts", "_rs485_mode")

#: A server may report the rate that its UART really has; receivers tolerate no greater error.
_MOST_BAUD_ERROR = 0.03


class Serial(SerialBase):
    """A serial port on an RFC 2217 server, with all that pyserial's ports can do.

    `name` begins with `rfc2217:`, unlike `port`: esptool decides by it whether DTR and RTS can be
    set by ioctl(), and would leave the board without a reset.
    """

    # pyserial's own.
    _port: str | None
    _baudrate: int
    _bytesize: int
    _parity: str
    _stopbits: float
    _xonxoff: bool
    _rtscts: bool
    _dsrdtr: bool
    _rs485_mode: object | None
    _timeout: float | None
    _write_timeout: float | None
    _inter_byte_timeout: float | None
    _dtr_state: bool
    _rts_state: bool
    _break_state: bool

    _connection: Connection | None = None
    _where: address.Address
    _asked: dict[str, rfc2217.Command]  # and granted, by kind
    _accepted: dict[str, Any]  # pyserial's fields that say the same
    _shown_name: str | None = None
    _postponed = False
    _log: logging.Logger | None = None

    @property
    def name(self) -> str | None:
        """The URL in the words of pyserial's own client."""
        return self._shown_name

    @name.setter
    def name(self, url: str | None) -> None:
        self._shown_name = None if url is None else f"rfc2217{url[url.find(':') :]}"

    def open(self) -> None:
        """Connect, and set all settings and both lines in one segment."""
        if self._port is None:
            raise SerialException("Port must be configured before it can be used.")
        if self.is_open:
            raise SerialException("Port is already open.")
        try:
            where = self._where = address.parse(self._port)
        except ValueError as error:
            raise SerialException(str(error)) from error
        self._log = _logger(where.log_level)
        wanted = self._wanted()
        try:
            self._connection = Connection(where)
        except (OSError, RefusedError, NoAnswerError, ConnectionEndedError) as error:
            raise SerialException(f"could not open port {self._port}: {error}") from error
        self.is_open = True
        self._asked = {}
        try:
            self._set_all(wanted)
        except BaseException:
            self.close()
            raise

    def _set_all(self, wanted: dict[str, rfc2217.Command]) -> None:
        lines = []
        if not self._dsrdtr:
            lines.append(_dtr(self._dtr_state))
        if not self._rtscts:
            lines.append(_rts(self._rts_state))
        connection = self._connected()
        connection.received.purge(time.monotonic() + self._where.timeout_s)
        begin_s = time.monotonic()
        self._apply(wanted, [*lines, rfc2217.PurgeData(PurgeBuffers.BOTH)])
        connection.measure(begin_s)

    def close(self) -> None:
        """Close the port; it is free for the next client once this returns."""
        self.is_open = False
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _reconfigure_port(self) -> None:
        """Send what has changed: pyserial calls this at each change of a time-out, too."""
        if self._postponed:
            return
        try:
            wanted = self._wanted()
            self._apply({kind: each for kind, each in wanted.items() if self._asked[kind] != each})
        except ValueError:
            vars(self).update(self._accepted)
            raise

    def _wanted(self) -> dict[str, rfc2217.Command]:
        if not 0 < self._baudrate < 2**32:
            raise ValueError(f"invalid baudrate: {self._baudrate!r}")
        if self._rtscts and self._xonxoff:
            raise ValueError("xonxoff and rtscts together are not supported")
        if self._rs485_mode is not None:
            raise ValueError("rs485_mode can't be set over RFC 2217: configure the server's port")
        flow = Control.FLOW_NONE
        if self._rtscts:
            flow = Control.FLOW_HARDWARE
        elif self._xonxoff:
            flow = Control.FLOW_XONXOFF
        commands: list[rfc2217.Command] = [
            rfc2217.SetBaudrate(self._baudrate),
            rfc2217.SetDatasize(self._bytesize),
            rfc2217.SetParity(_PARITIES[self._parity]),
            rfc2217.SetStopsize(_STOPSIZES[self._stopbits]),
            rfc2217.SetControl(flow),
        ]
        return {kind_of(command): command for command in commands}

    def _apply(
        self, wanted: dict[str, rfc2217.Command], unasked: Iterable[rfc2217.Command] = ()
    ) -> None:
        """Send in one segment, wait for the answers to `wanted`; ValueError if one is refused."""
        asked, unasked = list(wanted.values()), list(unasked)
        if not self._where.checks_control:
            unasked = [each for each in asked if isinstance(each, rfc2217.SetControl)] + unasked
            asked = [each for each in asked if not isinstance(each, rfc2217.SetControl)]
        connection = self._connected()
        if wanted or unasked:
            self._log_commands((*wanted.values(), *unasked))
            self._do(lambda: connection.ask(asked, unasked))
        refused = [each for each in asked if not _is_in_force(each, connection)]
        if refused:
            in_force = ", ".join(str(connection.in_force[kind_of(each)]) for each in refused)
            raise ValueError(
                f"{self._port} refuses {', '.join(map(str, refused))}; in force: {in_force}"
            )
        self._asked |= wanted
        self._accepted = {name: vars(self)[name] for name in _SETTINGS}

    def apply_settings(self, d: dict[str, Any]) -> None:
        """Set all of these at once: one round trip."""
        self._postponed = True
        try:
            super().apply_settings(d)
        finally:
            self._postponed = False
        if self.is_open:
            self._reconfigure_port()

    def _update_dtr_state(self) -> None:
        self._send(_dtr(self._dtr_state))

    def _update_rts_state(self) -> None:
        self._send(_rts(self._rts_state))

    def _update_break_state(self) -> None:
        control = Control.BREAK_ON if self._break_state else Control.BREAK_OFF
        self._send(rfc2217.SetControl(control))

    def set_lines(self, *, dtr: bool, rts: bool) -> None:
        """Set both lines in one segment, which pyserial itself has no method for."""
        self._dtr_state, self._rts_state = dtr, rts
        if self.is_open:
            self._send(_dtr(dtr), _rts(rts))

    cts = property(lambda self: bool(self._modem_state() & Modemstate.CTS))
    dsr = property(lambda self: bool(self._modem_state() & Modemstate.DSR))
    ri = property(lambda self: bool(self._modem_state() & Modemstate.RI))
    cd = property(lambda self: bool(self._modem_state() & Modemstate.CD))

    def _modem_state(self) -> Modemstate:
        connection, polls = self._connected(), self._where.polls_modem
        return self._do(lambda: connection.modem_state(poll=polls))

    @property
    def in_waiting(self) -> int:
        """How many bytes can be read without waiting."""
        received = self._connected().received
        waiting = len(received)
        if not waiting and received.ended is not None:
            self._fail(received.ended)
        return waiting

    def read(self, size: int = 1) -> bytes:
        """`size` bytes, or those that came before a time-out or cancel_read()."""
        connection = self._connected()
        try:
            return connection.received.take(
                size, self._timeout, self._inter_byte_timeout, connection.reply_due_s
            )
        except ConnectionEndedError as error:
            self._fail(error)

    def read_until(self, expected: bytes = LF, size: int | None = None) -> bytes:
        """All up to and with `expected`, or `size` bytes, or what came before the time-out."""
        return self._read_until(expected, size, restart=False)

    def readline(self, size: int | None = -1, /) -> bytes:
        """A line with its end; as at any port, the time-out starts again with each byte."""
        return self._read_until(LF, size if size is not None and size >= 0 else None, restart=True)

    def _read_until(self, expected: bytes, size: int | None, *, restart: bool) -> bytes:
        connection = self._connected()
        try:
            return connection.received.take_until(
                expected, size, self._timeout, connection.reply_due_s, restart=restart
            )
        except ConnectionEndedError as error:
            self._fail(error)

    def write(self, b: Any, /) -> int:
        """Hand all of it to the network; how much that was."""
        connection = self._connected()
        if isinstance(b, str):
            raise TypeError("a port takes bytes, not text: encode it first")
        data = bytes(b)
        try:
            return connection.write(data, self._write_timeout)
        except WriteTimeoutError:
            raise SerialTimeoutException("Write timeout") from None
        except ConnectionEndedError as error:
            self._fail(error)

    def flush(self) -> None:
        """Wait until the server has passed on all that was written."""
        connection = self._connected()
        more_s = connection.unsent_s
        self._do(lambda: connection.ask([rfc2217.SetBaudrate(0)], more_s=more_s))

    def reset_input_buffer(self) -> None:
        """Discard what was received, what is on its way and what the server holds."""
        connection = self._connected()
        self._do(lambda: connection.purge(PurgeBuffers.RECEIVE))

    def reset_output_buffer(self) -> None:
        """Discard what was written and has not left the server."""
        connection = self._connected()
        self._do(lambda: connection.purge(PurgeBuffers.TRANSMIT))

    def cancel_read(self) -> None:
        """Let a read that waits in another thread return, or the next one that would wait."""
        if self._connection is not None:
            self._connection.received.cancel()

    def cancel_write(self) -> None:
        """Let a write that waits in another thread return, or the next one."""
        if self._connection is not None:
            self._connection.cancel_write()

    def fileno(self) -> int:
        """A descriptor for select(): readable while there is something to read. Not a tty's."""
        return self._connected().received.fileno()

    @property
    def fd(self) -> int:
        """The same, by the name that mpremote uses."""
        return self.fileno()

    def _connected(self) -> Connection:
        connection = self._connection
        if connection is None:
            raise PortNotOpenError
        return connection

    def _send(self, *commands: rfc2217.Command) -> None:
        connection = self._connected()
        self._log_commands(commands)
        self._do(lambda: connection.send(commands))

    def _do(self, action: Callable[[], _T]) -> _T:
        try:
            return action()
        except (ConnectionEndedError, NoAnswerError) as error:
            self._fail(error)

    def _fail(self, reason: object) -> NoReturn:
        if not self.is_open:
            raise PortNotOpenError
        raise SerialException(f"{self._port}: {reason}")

    def _log_commands(self, commands: tuple[rfc2217.Command, ...]) -> None:
        if self._log is not None:
            self._log.debug("%s", commands)


def _logger(level: int | None) -> logging.Logger | None:
    if level is None:
        return None
    logging.basicConfig()
    log = logging.getLogger("pySerial.gateway")
    log.setLevel(level)
    return log


def _dtr(on: bool) -> rfc2217.Command:
    return rfc2217.SetControl(Control.DTR_ON if on else Control.DTR_OFF)


def _rts(on: bool) -> rfc2217.Command:
    return rfc2217.SetControl(Control.RTS_ON if on else Control.RTS_OFF)


def _is_in_force(asked: rfc2217.Command, connection: Connection) -> bool:
    answer = connection.in_force.get(kind_of(asked))
    if isinstance(asked, rfc2217.SetBaudrate) and isinstance(answer, rfc2217.SetBaudrate):
        return abs(answer.baudrate - asked.baudrate) <= asked.baudrate * _MOST_BAUD_ERROR
    return answer == asked
