"""One open serial port: bytes, settings, lines, break and purge, in the order they are asked for.

Bytes go over pyserial-asyncio's transport with its read, write and close paths replaced;
everything else goes to the port's control thread, behind the bytes that were written
before. Which client may use the port, and when it is opened again, is `device`'s matter.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import serial_asyncio

from gateway.control_thread import ControlThread
from gateway.errors import DeviceError
from gateway.protocol.reset import Lines
from gateway.protocol.rfc2217 import Modemstate
from gateway.protocol.serial_settings import SerialSettings
from gateway.serial_tty import Tty

T = TypeVar("T")

#: One read takes what the tty has: its buffers hold 4 KiB on most drivers, 64 KiB at most.
_READ_BYTES = 65536

#: Above HIGH unsent bytes the owner is asked to stop writing, at LOW to go on: the client's
#: socket is not read meanwhile. 64 KiB are 0.7 s at 921600 baud, enough to keep the wire busy.
UNSENT_HIGH_BYTES = 65536
UNSENT_LOW_BYTES = 16384

#: How long a call on the tty may take before the port is given up as broken. An ioctl on a
#: vanished cdc_acm device takes 5 s to fail.
_CALL_LIMIT_S = 8.0
#: Opening may wait for a previous owner's close, which waits for its output (30 s by default).
_OPEN_LIMIT_S = 35.0

#: Added to the time that unsent bytes need on the wire, before a change that waits for them goes
#: ahead without: USB bridges send a frame each 1 ms and have FIFOs of up to 4 KiB.
_DRAIN_SLACK_S = 0.5
_BITS_PER_BYTE = 12  # the longest frame: start, 8 data, parity, 2 stop


class PortOwner(Protocol):
    """Whom an open port reports to; every call is made on the loop."""

    def data_received(self, data: bytes) -> None:
        """The board has sent bytes."""

    def pause_writing(self) -> None:
        """More than UNSENT_HIGH_BYTES wait to be sent."""

    def resume_writing(self) -> None:
        """No more than UNSENT_LOW_BYTES wait."""

    def port_lost(self, error: DeviceError) -> None:
        """The port can't be used any more; the last call."""


@dataclass
class _Descriptor:
    """All that the transport asks of its serial instance.

    Handed a pyserial port, it would set its timeouts, and each of these setters
    reconfigures the tty, on the loop.
    """

    fd: int
    timeout: float | None = None
    write_timeout: float | None = None

    def fileno(self) -> int:
        return self.fd


class _Transport(serial_asyncio.SerialTransport):  # type: ignore[misc]
    """pyserial-asyncio's transport on the descriptor itself.

    Its own read and write go through select() and cost 34 ms of CPU a MB where os.read costs 8;
    its write waits for the next turn of the loop, and its close calls a flush that blocks.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: _Link, fd: int) -> None:
        self._fd = fd
        self._unsent = bytearray()
        self.on_sent: Callable[[], None] | None = None
        super().__init__(loop, owner, _Descriptor(fd))
        self._set_write_buffer_limits(high=UNSENT_HIGH_BYTES, low=UNSENT_LOW_BYTES)

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: bytes) -> None:
        if self._closing:
            return
        if not self._unsent:
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._abort(error)
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._unsent += data
        self._ensure_writer()
        self._maybe_pause_protocol()

    def flush(self) -> None:
        self._unsent.clear()
        super().flush()
        self._report_sent()

    def _read_ready(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._abort(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self._abort(OSError("hung up"))

    def _write_ready(self) -> None:
        try:
            sent = os.write(self._fd, self._unsent)
        except BlockingIOError:
            return
        except OSError as error:
            self._abort(error)
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._remove_writer()
        self._maybe_resume_protocol()
        if not self._unsent:
            self._report_sent()

    def _report_sent(self) -> None:
        if self.on_sent is not None:
            on_sent, self.on_sent = self.on_sent, None
            on_sent()

    def _call_connection_lost(self, exc: Exception | None) -> None:
        """Leave the descriptor open: the control thread closes it, for close may block."""
        self._unsent.clear()
        self._protocol.connection_lost(exc)


class _Link(asyncio.Protocol):
    """Passes the transport's calls on to the port and its owner."""

    def __init__(self, port: SerialPort, owner: PortOwner) -> None:
        self._port = port
        self.data_received = owner.data_received  # type: ignore[method-assign]
        self.pause_writing = owner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = owner.resume_writing  # type: ignore[method-assign]

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._port.lose(DeviceError(f"stopped working: {exc}"))


class SerialPort:
    """An open tty.

    `open` gives one; then `write` bytes and ask for changes with a callback. A change is made
    after the bytes written before it have left, and reported before any later one is. When the
    port fails, `PortOwner.port_lost` is called and no other callback.
    """

    def __init__(self, tty: Tty, owner: PortOwner, thread: ControlThread) -> None:
        self._tty = tty
        self._owner = owner
        self._thread = thread
        self._is_open = True
        self._unconfirmed_bytes = 0  # written since the kernel was last seen empty
        self._waiting: list[Callable[[], None]] = []
        self._link = _Link(self, owner)
        self._transport = _Transport(asyncio.get_running_loop(), self._link, tty.descriptor)

    @property
    def settings(self) -> SerialSettings:
        """The settings in force."""
        return self._tty.in_force

    @property
    def has_lines(self) -> bool:
        """Whether the device has modem lines at all."""
        return self._tty.has_lines

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        size: int = self._transport.get_write_buffer_size()
        return size

    def write(self, data: bytes) -> None:
        """Send bytes to the board; what the kernel does not take now is kept."""
        self._unconfirmed_bytes += len(data)
        self._transport.write(data)

    def pause_reading(self) -> None:
        """Leave what the board sends in the kernel's buffer."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Deliver what the board sends again."""
        if self._is_open:
            self._transport.resume_reading()

    def apply(self, settings: SerialSettings, done: Callable[[SerialSettings], None]) -> None:
        """Change the settings; `done` gets those in force then."""
        self._after_sent(lambda: self._tty.apply(settings), done)

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:
        """Set DTR and RTS in one step."""
        self._after_sent(lambda: self._tty.set_lines(lines), lambda _: done())

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        """Start or end a break."""
        self._after_sent(lambda: self._tty.set_break(on), lambda _: done())

    def purge(self, *, receive: bool, transmit: bool, done: Callable[[], None]) -> None:
        """Discard what was received and not read yet, what waits to be sent, or both."""
        if transmit:
            self._unconfirmed_bytes = 0
            self._transport.flush()
        self._call(lambda: self._tty.purge(receive=receive, transmit=transmit), lambda _: done())

    def read_modemstate(self, done: Callable[[Modemstate], None]) -> None:
        """Read the board's modem lines."""
        self._call(self._tty.modemstate, done)

    def when_sent(self, done: Callable[[], None]) -> None:
        """Call `done` when everything written so far has left, or can't."""
        self._after_sent(lambda: None, lambda _: done())

    def close(self, closed: Callable[[], None] | None = None) -> None:
        """Close the port off the loop; what is unsent is dropped. `closed` runs on the thread."""
        if not self._is_open:
            return
        self._is_open = False
        self._waiting.clear()
        self._transport.on_sent = None
        self._transport.abort()

        def close_tty() -> None:
            self._tty.close()
            if closed is not None:
                closed()

        # Behind the transport's own clean-up, so that the loop has let go of the descriptor.
        asyncio.get_running_loop().call_soon(self._thread.stop, close_tty)

    def lose(self, error: DeviceError) -> None:
        """The port has failed: close it and tell the owner."""
        if self._is_open:
            self.close()
            self._owner.port_lost(error)

    def _after_sent(self, run: Callable[[], T], done: Callable[[T], None]) -> None:
        """Run a call on the control thread when everything written so far has left."""
        if self.unsent_bytes or self._waiting:
            self._waiting.append(lambda: self._drain_and_call(run, done))
            self._transport.on_sent = self._run_waiting
        else:
            self._drain_and_call(run, done)

    def _run_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in waiting:
            start()

    def _drain_and_call(self, run: Callable[[], T], done: Callable[[T], None]) -> None:
        if not self._unconfirmed_bytes:
            self._call(run, done)
            return
        wire_s = self._unconfirmed_bytes * _BITS_PER_BYTE / max(self.settings.baudrate, 1)
        # The kernel holds no more than a few KiB of what was written since.
        limit_s = min(wire_s, _CALL_LIMIT_S / 2) + _DRAIN_SLACK_S
        self._unconfirmed_bytes = 0

        def drain_and_run() -> T:
            self._tty.drain(limit_s)
            return run()

        self._call(drain_and_run, done)

    def _call(self, run: Callable[[], T], done: Callable[[T], None]) -> None:
        if self._is_open:
            self._thread.submit(run, done, self._failed, limit_s=_CALL_LIMIT_S)

    def _failed(self, error: Exception) -> None:
        self.lose(DeviceError(f"stopped working: {error}"))


def open_port(
    tty: Tty,
    owner: PortOwner,
    opened: Callable[[SerialPort], None],
    failed: Callable[[DeviceError], None],
) -> None:
    """Open `tty` off the loop; one of `opened` and `failed` is called on it.

    Both modem lines are off afterwards, in one step, and no board is reset.
    """
    port: SerialPort | None = None

    def stuck(limit_s: float) -> None:
        error = DeviceError(f"the kernel did not answer for {limit_s:g} s")
        if port is not None:
            port.lose(error)
        else:
            thread.stop(tty.close)
            failed(error)

    def tty_opened(_: Any) -> None:
        nonlocal port
        port = SerialPort(tty, owner, thread)
        opened(port)

    def tty_failed(error: Exception) -> None:
        thread.stop(tty.close)
        failed(error if isinstance(error, DeviceError) else DeviceError(str(error)))

    thread = ControlThread(f"tty {tty.name}", stuck)
    thread.submit(tty.open, tty_opened, tty_failed, limit_s=_OPEN_LIMIT_S)
