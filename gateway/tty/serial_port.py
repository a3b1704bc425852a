"""One open serial port: bytes, settings, lines, break and purge, in the order they are asked for.

Bytes go over `serial_transport`; everything else goes to the port's control thread, behind the
bytes that were written before and ahead of those written after. Which client may use the port,
and when it is opened again, is `device`'s matter.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from gateway.errors import DeviceError
from gateway.protocol.board_kinds import UsbIds
from gateway.protocol.reset import Lines
from gateway.protocol.rfc2217 import Linestate
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.control_thread import ControlThread
from gateway.tty.port_counts import PortCounts
from gateway.tty.serial_states import PortStates
from gateway.tty.serial_transport import SerialTransport, Unsent
from gateway.tty.serial_tty import Tty

T = TypeVar("T")

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
#: The most that drivers keep of what was written: cdc_acm 16 transfers of 1280 bytes at full
#: speed, others 4 KiB. At 115200 baud they need 2.1 s; pyserial waits 3 s for its answers.
_KERNEL_HOLDS_BYTES = 20480
#: 20 KiB at 9600 baud; at less, a board that takes nothing is not waited for any longer.
_DRAIN_LONGEST_S = 26.0


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


@dataclass(frozen=True, slots=True)
class _Change:
    """A call that has its place in the byte stream."""

    position: int  # behind this many written bytes
    run: Callable[[], Any]
    done: Callable[[Any], None]
    holds_reading: bool


class SerialPort:
    """An open tty.

    `open_port` gives one; then `write` bytes and ask for changes with a callback. A change is
    made after the bytes written before it have left, or can't; bytes and changes asked for after
    it wait for it. `purge` and `read_states` wait for none. When the port fails,
    `PortOwner.port_lost` is called and no other callback; after `close`, none at all.
    """

    def __init__(self, tty: Tty, owner: PortOwner, thread: ControlThread) -> None:
        self._tty = tty
        self._owner = owner
        self._thread = thread
        self._is_open = True
        self._drained_bytes = 0  # of those written: seen to have left, or given up
        self._changes: deque[_Change] = deque()  # the first is being made
        self._wanted_settings: deque[SerialSettings] = deque()  # asked for and not in force yet
        self._link = _Link(self, owner)
        self._transport = SerialTransport(
            asyncio.get_running_loop(),
            self._link,
            tty.descriptor,
            high_bytes=UNSENT_HIGH_BYTES,
            low_bytes=UNSENT_LOW_BYTES,
        )
        #: Send bytes to the board; what the kernel does not take now is kept.
        self.write = self._transport.write

    @property
    def settings(self) -> SerialSettings:
        """The settings in force when all that was asked for so far has been done."""
        return self._wanted_settings[-1] if self._wanted_settings else self._tty.in_force

    @property
    def usb_ids(self) -> UsbIds | None:
        """Vendor and product id of the USB device, None if it is none."""
        return self._tty.usb_ids

    @property
    def has_lines(self) -> bool:
        """Whether the device has modem lines at all."""
        return self._tty.has_lines

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size()

    def take_unsent(self) -> Unsent:
        """Return what a port that has failed had not been able to send, and keep nothing of it."""
        return self._transport.take_unsent()

    def pause_reading(self) -> None:
        """Leave what the board sends in the kernel's buffer."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Deliver what the board sends again."""
        self._transport.resume_reading()

    def apply(self, settings: SerialSettings, done: Callable[[SerialSettings], None]) -> None:
        """Change the settings; `done` gets those in force then."""

        def applied(in_force: SerialSettings) -> None:
            self._wanted_settings.popleft()
            done(in_force)

        self._wanted_settings.append(settings)
        self._change(lambda: self._tty.apply(settings), applied, holds_reading=True)

    def set_lines(self, lines: Lines, done: Callable[[], None]) -> None:
        """Set DTR and RTS in one step."""
        self._change(lambda: self._tty.set_lines(lines), lambda _: done())

    def set_break(self, on: bool, done: Callable[[], None]) -> None:
        """Start or end a break."""
        self._change(lambda: self._tty.set_break(on), lambda _: done())

    def when_sent(self, done: Callable[[], None]) -> None:
        """Call `done` when everything written so far has left, or can't."""
        self._change(lambda: None, lambda _: done())

    def purge(self, *, receive: bool, transmit: bool, done: Callable[[], None]) -> None:
        """Discard what was received and not read yet, what waits to be sent, or both.

        Changes that wait for bytes which are discarded are made then.
        """
        if not self._is_open:
            return
        if not transmit:
            self._call(lambda: self._tty.purge(receive=receive, transmit=False), lambda _: done())
            return
        self._tty.stop_draining()
        self._drained_bytes = self._transport.written_bytes
        self._call(lambda: self._tty.purge(receive=receive, transmit=True), lambda _: None)
        # Keeps what is written from here on from being discarded as well.
        self._change(lambda: None, lambda _: done())
        self._transport.flush()

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        """Read the states of the board's lines and of the bytes on their way to it."""
        self._call(self._tty.states, lambda states: done(self._with_unsent(states)))

    def close(self, closed: Callable[[], None] | None = None) -> None:
        """Close the port off the loop; what is unsent is dropped. `closed` runs on the thread."""
        if not self._is_open:
            return
        self._is_open = False
        self._changes.clear()
        # The loop lets go of the descriptor here and now: only the thread has it from here on.
        self._transport.abort()
        self._tty.stop_draining()

        def close_tty() -> None:
            self._tty.close()
            if closed is not None:
                closed()

        self._thread.stop(close_tty)

    def lose(self, error: DeviceError) -> None:
        """The port has failed: close it and tell the owner."""
        if self._is_open:
            self.close()
            self._owner.port_lost(error)

    def _with_unsent(self, states: PortStates) -> PortStates:
        """Bytes that the kernel has not been given yet have not been transmitted either."""
        if not self.unsent_bytes:
            return states
        transmitted = Linestate.TRANSMIT_HOLDING_EMPTY | Linestate.TRANSMIT_SHIFT_EMPTY
        return replace(states, linestate=states.linestate & ~transmitted)

    def _change(
        self, run: Callable[[], T], done: Callable[[T], None], *, holds_reading: bool = False
    ) -> None:
        if self._is_open:
            position = self._transport.written_bytes
            self._changes.append(_Change(position, run, done, holds_reading))
            if len(self._changes) == 1:
                self._begin_change()

    def _begin_change(self) -> None:
        """Let the bytes before the first change out; make it when they have left."""
        self._transport.close_gate(self._changes[0].position, self._drain)

    def _drain(self) -> None:
        """Wait for what the kernel has taken and not sent, then make the change."""
        undrained = self._changes[0].position - self._drained_bytes
        if undrained <= 0:
            self._make_change()
            return
        self._drained_bytes += undrained
        wire_bits = min(undrained, _KERNEL_HOLDS_BYTES) * _BITS_PER_BYTE
        limit_s = _DRAIN_SLACK_S + wire_bits / max(self._tty.in_force.baudrate, 1)
        limit_s = min(limit_s, _DRAIN_LONGEST_S)
        self._call(lambda: self._tty.drain(limit_s), lambda _: self._make_change(), waits_s=limit_s)

    def _make_change(self) -> None:
        change = self._changes[0]
        if change.holds_reading:
            # tcsetattr keeps a lock in the kernel while the driver talks to the device, 5 s if
            # that has vanished: read, write and even epoll_wait on the descriptor wait for it.
            self._transport.hold_reading()
        self._call(change.run, self._change_made)

    def _change_made(self, result: object) -> None:
        change = self._changes.popleft()
        if change.holds_reading:
            self._transport.release_reading()
        if self._changes:
            self._begin_change()
        else:
            self._transport.open_gate()
        change.done(result)

    def _call(
        self, run: Callable[[], T], done: Callable[[T], None], *, waits_s: float = 0.0
    ) -> None:
        """Run a call on the control thread; `waits_s` is how long it may wait for the board."""
        self._thread.submit(run, done, self._failed, limit_s=_CALL_LIMIT_S + waits_s)

    def _failed(self, error: Exception) -> None:
        self.lose(DeviceError(f"stopped working: {error}"))


class PortOpener:
    """Opens ttys for one owner, off the loop and one at a time.

    A try that fails leaves its thread for the next one, so that a board that is away costs one
    thread however often it is tried. The thread of a try that succeeds is the port's from then on.
    `counts` gets that a tty was opened, and what each call takes that may block in the kernel.
    """

    def __init__(self, owner: PortOwner, counts: PortCounts | None = None) -> None:
        self._owner = owner
        self._counts = counts or PortCounts()
        self._thread: ControlThread | None = None
        self._is_trying = False
        self._goes_on = False  # another try may follow

    def open(
        self,
        tty: Tty,
        opened: Callable[[SerialPort], None],
        failed: Callable[[DeviceError], None],
    ) -> None:
        """Open `tty`; one of `opened` and `failed` is called on the loop.

        Both modem lines are off afterwards, in one step, and no board is reset.
        """
        thread = self._thread
        if thread is None:
            thread = ControlThread(f"tty {tty.name}", _nothing, self._counts.control_calls.observe)
        self._thread = thread
        self._is_trying = self._goes_on = True

        def stuck(limit_s: float) -> None:
            self._thread = None
            self._is_trying = False
            thread.stop(tty.close)
            failed(_no_answer(limit_s))

        def tty_opened(_: Any) -> None:
            self._thread = None
            self._is_trying = False
            self._counts.opened += 1
            port = SerialPort(tty, self._owner, thread)
            thread.on_stuck = lambda limit_s: port.lose(_no_answer(limit_s))
            opened(port)

        def tty_failed(error: Exception) -> None:
            self._is_trying = False
            if not self._goes_on:
                self.end()
            failed(error if isinstance(error, DeviceError) else DeviceError(str(error)))

        thread.on_stuck = stuck
        thread.submit(tty.open, tty_opened, tty_failed, limit_s=_OPEN_LIMIT_S)

    def end(self) -> None:
        """End the thread, after the try that is under way if there is one: none follows for now."""
        self._goes_on = False
        if self._thread is not None and not self._is_trying:
            self._thread.stop(_nothing)
            self._thread = None


def _no_answer(limit_s: float) -> DeviceError:
    return DeviceError(f"the kernel did not answer for {limit_s:g} s")


def _nothing(*_: object) -> None:
    pass
