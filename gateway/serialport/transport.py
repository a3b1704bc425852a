"""One open tty: bytes, and calls that have their place among them.

pyserial-asyncio's transport on the descriptor itself, with an ordered queue of calls. Bytes are
read and written on the event loop; a call that may block in the kernel runs on the tty's own
thread, after the bytes written before it and ahead of those written after. `Opening` opens ttys
off the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import serial_asyncio

from gateway.errors import DeviceError
from gateway.protocol.rfc2217 import Linestate
from gateway.serialport.states import PortStates
from gateway.serialport.tty import Tty
from gateway.serialport.worker import Worker

T = TypeVar("T")

#: Above HIGH unsent bytes the owner is asked to stop writing, at LOW to go on: the client's
#: socket is not read meanwhile. 64 KiB are 0.7 s at 921600 baud, enough to keep the wire busy.
UNSENT_HIGH_BYTES: Final = 65536
UNSENT_LOW_BYTES: Final = 16384

#: One read takes what the tty has: its buffers hold 4 KiB on most drivers, 64 KiB at most.
_READ_BYTES: Final = 65536

#: A tty gives so much at a time at most (N_TTY_BUF_SIZE in linux/drivers/tty/n_tty.c, less one);
#: its driver may have more. Reading on at once, not in the loop's next turn, halves the CPU of a
#: board that sends as fast as it goes: 5.1 ms a MB for 10.5 (docs/performance.md).
_FULL_READ_BYTES: Final = 4095

#: How long a call on the tty may take before the port is given up as broken. An ioctl on a
#: vanished cdc_acm device takes 5 s to fail.
_CALL_LIMIT_S: Final = 8.0
#: Opening may wait for a previous owner's close, which waits for its output (30 s by default).
_OPEN_LIMIT_S: Final = 35.0

#: Added to the time that unsent bytes need on the wire, before a call that waits for them goes
#: ahead without: USB bridges send a frame each 1 ms and have FIFOs of up to 4 KiB.
_DRAIN_SLACK_S: Final = 0.5
_BITS_PER_BYTE: Final = 12  # the longest frame: start, 8 data, parity, 2 stop
#: The most that drivers keep of what was written: cdc_acm 16 transfers of 1280 bytes at full
#: speed, others 4 KiB. At 115200 baud they need 2.1 s; pyserial waits 3 s for its answers.
_KERNEL_HOLDS_BYTES: Final = 20480
#: 20 KiB at 9600 baud; at less, a board that takes nothing is not waited for any longer.
_DRAIN_LONGEST_S: Final = 26.0


@dataclass
class _Descriptor:
    """All that the base class asks of its serial instance.

    Handed a pyserial port, it would set its timeouts, and each of these setters
    reconfigures the tty, on the loop.
    """

    fd: int
    timeout: float | None = None
    write_timeout: float | None = None

    def fileno(self) -> int:
        return self.fd


@dataclass(frozen=True, slots=True)
class Unsent:
    """What a tty that has failed had not taken.

    `cut_off_bytes` are the rest of what it had begun to take: what stood before them is lost in the
    kernel's buffer, which was full. `whole` was written after a call that was asked for, or
    after the failure. With `is_cut_off`, `whole` goes on where they end.
    """

    cut_off_bytes: int
    whole: bytes
    is_cut_off: bool


@dataclass(frozen=True, slots=True)
class _Call:
    """A call that has its place in the byte stream."""

    position: int  # after this many written bytes
    run: Callable[[], Any]
    done: Callable[[Any], None]
    holds_reading: bool


class SerialTransport(serial_asyncio.SerialTransport):  # type: ignore[misc] # untyped library
    """An open tty; its protocol gets `data_received`, `pause_writing`, `resume_writing`.

    `connection_lost(error)` comes once, with a DeviceError, when the tty has failed; calls that
    were asked for are never done then. After `close` nothing comes at all.

    The base class's own read and write go through select() and cost 34 ms of CPU a MB where os.read
    costs 8; its write waits for the next turn of the loop, and its close calls a flush that blocks.
    """

    def __init__(self, tty: Tty, protocol: asyncio.Protocol, worker: Worker) -> None:
        self.tty = tty
        self.written_bytes = 0
        self.gone_bytes = 0  # of those written: taken by the kernel, or dropped
        self._fd = tty.descriptor
        self._worker = worker
        worker.on_stuck = lambda limit_s: self.fail(no_answer(limit_s))
        self._unsent = bytearray()
        self._late = bytearray()  # written after the tty has failed
        self._is_open = True
        self._is_paused = False
        self._is_held = False
        self._has_reader = False
        self._gate: int | None = None  # bytes from here on wait, in written bytes
        self._has_reached_gate = False
        self._drained_bytes = 0  # of those written: seen to have left, or given up
        self._calls: deque[_Call] = deque()  # the first is being made
        super().__init__(asyncio.get_running_loop(), protocol, _Descriptor(self._fd))
        self._set_write_buffer_limits(high=UNSENT_HIGH_BYTES, low=UNSENT_LOW_BYTES)

    # --- bytes

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the kernel has not taken yet."""
        return len(self._unsent) + len(self._late)

    def write(self, data: bytes) -> None:
        """Send now what the kernel takes, the rest later.

        What is written after the tty has failed is kept for `take_unsent`: the owner does not know
        of the failure before the loop's next turn.
        """
        if self._closing:
            self._late += data
            return
        self.written_bytes += len(data)
        if not self._unsent and self._gate is None:
            try:
                sent = os.write(self._fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._late += data
                self._abort(error)
                return
            self.gone_bytes += sent
            if sent == len(data):
                return
            data = data[sent:]
        self._unsent += data
        if self._gate is None:
            self._ensure_writer()
        self._maybe_pause_protocol()

    def take_unsent(self) -> Unsent:
        """Return what the kernel has not taken, and keep nothing of it."""
        n_before_gate = len(self._unsent)
        if self._gate is not None:
            n_before_gate = min(n_before_gate, max(0, self._gate - self.gone_bytes))
        left = Unsent(
            cut_off_bytes=n_before_gate,
            whole=bytes(self._unsent[n_before_gate:] + self._late),
            is_cut_off=n_before_gate > 0 and self._gate is None,
        )
        self._unsent.clear()
        self._late.clear()
        return left

    def pause_reading(self) -> None:
        """Leave what the board sends in the kernel."""
        self._is_paused = True
        self._remove_reader()

    def resume_reading(self) -> None:
        """Deliver what the board sends again."""
        self._is_paused = False
        self._ensure_reader()

    # --- calls

    def call_in_order(
        self, run: Callable[[], T], done: Callable[[T], None], *, holds_reading: bool = False
    ) -> None:
        """Run `run` on the thread when the bytes written so far have left, or can't.

        Bytes and calls that follow wait for it. `done(result)` is called on the loop.
        `holds_reading` is for calls that take a lock in the kernel.
        """
        if self._is_open:
            self._calls.append(_Call(self.written_bytes, run, done, holds_reading))
            if len(self._calls) == 1:
                self._begin_call()

    def call_now(
        self, run: Callable[[], T], done: Callable[[T], None], *, waits_s: float = 0.0
    ) -> None:
        """Run `run` on the thread without waiting for bytes; `waits_s` is how long it may wait."""
        self._worker.submit(run, done, self._call_failed, limit_s=_CALL_LIMIT_S + waits_s)

    def purge(self, *, receive: bool, transmit: bool, done: Callable[[object], None]) -> None:
        """Discard what was received and not read yet, what waits to be sent, or both.

        Calls that wait for bytes which are discarded are made then.
        """
        if not self._is_open:
            return
        if not transmit:
            self.call_now(lambda: self.tty.purge(receive=receive, transmit=False), done)
            return
        self.tty.stop_draining()
        self._drained_bytes = self.written_bytes
        self.call_now(lambda: self.tty.purge(receive=receive, transmit=True), lambda _: None)
        # Keeps what is written from here on from being discarded as well.
        self.call_in_order(lambda: None, done)
        self.flush()

    def read_states(self, done: Callable[[PortStates], None]) -> None:
        """Read the states of the board's lines and of the bytes on their way to it."""
        self.call_now(self.tty.states, lambda states: done(self._with_unsent(states)))

    # --- the end

    def close(self, closed: Callable[[], None] = lambda: None) -> None:
        """Close the tty off the loop; what is unsent is dropped. `closed` runs on the thread."""
        if not self._is_open:
            return
        self._is_open = False
        self._calls.clear()
        # The loop lets go of the descriptor here and now: only the thread has it from here on.
        self.abort()
        self.tty.stop_draining()

        def close_tty() -> None:
            self.tty.close()
            closed()

        self._worker.stop(close_tty)

    def fail(self, error: DeviceError) -> None:
        """Close a tty that has failed, or is another device than is wanted; report its loss."""
        if self._is_open:
            self.close()
            self._protocol.connection_lost(error)

    # --- inside: calls

    def _call_failed(self, error: Exception) -> None:
        self.fail(_stopped_working(error))

    def _begin_call(self) -> None:
        """Let the bytes before the first call out; make it when they have left."""
        self._gate = self._calls[0].position
        self._has_reached_gate = False
        if self.gone_bytes < self._gate:
            self._ensure_writer()
        self._pass_gate()

    def _pass_gate(self) -> None:
        if self._gate is None or self._has_reached_gate or self.gone_bytes < self._gate:
            return
        self._has_reached_gate = True
        undrained = self._calls[0].position - self._drained_bytes
        if undrained <= 0:
            self._make_call()
            return
        # Wait for what the kernel has taken and not sent.
        self._drained_bytes += undrained
        wire_bits = min(undrained, _KERNEL_HOLDS_BYTES) * _BITS_PER_BYTE
        limit_s = _DRAIN_SLACK_S + wire_bits / max(self.tty.in_force.baudrate, 1)
        limit_s = min(limit_s, _DRAIN_LONGEST_S)
        self.call_now(lambda: self.tty.drain(limit_s), lambda _: self._make_call(), waits_s=limit_s)

    def _make_call(self) -> None:
        call = self._calls[0]
        if call.holds_reading:
            # tcsetattr keeps a lock in the kernel while the driver talks to the device, 5 s if
            # that has vanished: read, write and even epoll_wait on the descriptor wait for it.
            self._is_held = True
            self._remove_reader()
        self.call_now(call.run, self._call_made)

    def _call_made(self, result: object) -> None:
        call = self._calls.popleft()
        if call.holds_reading:
            self._is_held = False
            self._ensure_reader()
        if self._calls:
            self._begin_call()
        else:
            self._gate = None
            if self._unsent:
                self._ensure_writer()
        call.done(result)

    def _with_unsent(self, states: PortStates) -> PortStates:
        """Bytes that the kernel has not been given yet have not been transmitted either."""
        if not self._unsent:
            return states
        transmitted = Linestate.TRANSMIT_HOLDING_EMPTY | Linestate.TRANSMIT_SHIFT_EMPTY
        return replace(states, linestate=states.linestate & ~transmitted)

    # --- inside: bytes

    def flush(self) -> None:
        """Drop all that is unsent, before a call that waits and after it."""
        self.gone_bytes = self.written_bytes
        self._unsent.clear()
        self._late.clear()
        super().flush()
        self._pass_gate()

    def _ensure_reader(self) -> None:
        # Called by the base class as well, in the first turn of the loop.
        is_wanted = not self._is_paused and not self._is_held and not self._closing
        if is_wanted and not self._has_reader:
            self._has_reader = True
            self._loop.add_reader(self._fd, self._read_ready)

    def _read_ready(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._abort(error)
            return
        if len(data) >= _FULL_READ_BYTES:
            data = self._read_on(data)
        if data:
            self._protocol.data_received(data)
        else:
            self._abort(OSError("hung up"))

    def _read_on(self, data: bytes) -> bytes:
        """Return `data` and what follows it; a tty that fails here fails again in its turn."""
        pieces, n_bytes = [data], len(data)
        with contextlib.suppress(OSError):
            while len(pieces[-1]) >= _FULL_READ_BYTES and n_bytes < _READ_BYTES:
                pieces.append(os.read(self._fd, _READ_BYTES - n_bytes))
                n_bytes += len(pieces[-1])
        return b"".join(pieces)

    def _write_ready(self) -> None:
        sendable = len(self._unsent) if self._gate is None else self._gate - self.gone_bytes
        try:
            with memoryview(self._unsent)[:sendable] as data:
                sent = os.write(self._fd, data)
        except BlockingIOError:
            return
        except OSError as error:
            self._abort(error)
            return
        self.gone_bytes += sent
        del self._unsent[:sent]
        if sent == sendable:
            self._remove_writer()
        self._maybe_resume_protocol()
        self._pass_gate()

    def _call_connection_lost(self, exc: Exception | None) -> None:
        """Leave the descriptor open: the thread closes it, for close may block."""
        self._has_reached_gate = True
        if exc is not None:
            self.fail(_stopped_working(exc))


class Opening:
    """Opens ttys for one protocol, off the loop and one at a time.

    A try that fails leaves its thread for the next one, so that a board that is away costs one
    thread however often it is tried. The thread of a try that succeeds is the transport's.
    `took` gets the seconds of each call.
    """

    def __init__(self, protocol: asyncio.Protocol, took: Callable[[float], None]) -> None:
        self._protocol = protocol
        self._took = took
        self._worker: Worker | None = None
        self._is_trying = False
        self._goes_on = False  # another try may follow

    def begin(
        self,
        tty: Tty,
        opened: Callable[[SerialTransport], None],
        failed: Callable[[DeviceError], None],
    ) -> None:
        """Open `tty`; one of `opened` and `failed` is called on the loop.

        Both modem lines are where they rest afterwards, in one step, and no board is reset.
        """
        worker = self._worker
        if worker is None:
            worker = Worker(f"tty {tty.name}", _nothing, self._took)
        self._worker = worker
        self._is_trying = self._goes_on = True

        def stuck(limit_s: float) -> None:
            self._worker = None
            self._is_trying = False
            worker.stop(tty.close)
            failed(no_answer(limit_s))

        def tty_opened(_: Any) -> None:
            self._worker = None
            self._is_trying = False
            opened(SerialTransport(tty, self._protocol, worker))

        def tty_failed(error: Exception) -> None:
            self._is_trying = False
            if not self._goes_on:
                self.end()
            failed(error if isinstance(error, DeviceError) else DeviceError(str(error)))

        worker.on_stuck = stuck
        worker.submit(tty.open, tty_opened, tty_failed, limit_s=_OPEN_LIMIT_S)

    def end(self) -> None:
        """End the thread, after the try that is under way if there is one: none follows for now."""
        self._goes_on = False
        if self._worker is not None and not self._is_trying:
            self._worker.stop(_nothing)
            self._worker = None


def no_answer(limit_s: float) -> DeviceError:
    """Return the error for a kernel that has kept a thread for too long."""
    return DeviceError(f"the kernel did not answer for {limit_s:g} s")


def _stopped_working(error: Exception) -> DeviceError:
    return DeviceError(f"stopped working: {error}")


def _nothing(*_: object) -> None:
    pass
