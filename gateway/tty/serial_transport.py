"""The byte path of an open tty: pyserial-asyncio's transport, read, write and close replaced.

When the gate in its byte stream closes and opens, and who closes the descriptor, is
`serial_port`'s matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import serial_asyncio

#: One read takes what the tty has: its buffers hold 4 KiB on most drivers, 64 KiB at most.
_READ_BYTES = 65536

#: A tty gives so much at a time at most (N_TTY_BUF_SIZE in linux/drivers/tty/n_tty.c, less one);
#: its driver may have more. Reading on at once, not in the loop's next turn, halves the CPU of a
#: board that sends as fast as it goes: 5.1 ms a MB for 10.5 (docs/performance.md).
_FULL_READ_BYTES = 4095


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


@dataclass(frozen=True, slots=True)
class Unsent:
    """What a tty that has failed had not taken.

    `cut_off_bytes` are the rest of what it had begun to take: what stood before them is lost in the
    kernel's buffer, which was full. `whole` was written behind a change that was asked for, or
    after the failure. With `is_cut_off`, `whole` goes on where they end.
    """

    cut_off_bytes: int
    whole: bytes
    is_cut_off: bool


class SerialTransport(serial_asyncio.SerialTransport):  # type: ignore[misc]
    """pyserial-asyncio's transport on the descriptor itself, with a gate in its byte stream.

    Its own read and write go through select() and cost 34 ms of CPU a MB where os.read costs 8;
    its write waits for the next turn of the loop, and its close calls a flush that blocks.
    What was written behind the gate waits there, so that a change can be made between two bytes.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.Protocol,
        fd: int,
        *,
        high_bytes: int,
        low_bytes: int,
    ) -> None:
        self._fd = fd
        self._unsent = bytearray()
        self._is_paused = False
        self._is_held = False
        self.written_bytes = 0
        self.gone_bytes = 0  # of those written: taken by the kernel, or dropped
        self._late = bytearray()  # written after the tty has failed
        self._gate: int | None = None  # in written bytes
        self._at_gate: Callable[[], None] | None = None
        super().__init__(loop, protocol, _Descriptor(fd))
        self._set_write_buffer_limits(high=high_bytes, low=low_bytes)

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
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

    def close_gate(self, position: int, reached: Callable[[], None]) -> None:
        """Send no byte from `position` on; call `reached`, perhaps at once, when all before are
        gone."""
        self._gate, self._at_gate = position, reached
        if self.gone_bytes < position:
            self._ensure_writer()
        self._pass_gate()

    def open_gate(self) -> None:
        """Send what has waited behind the gate."""
        self._gate = None
        if self._unsent:
            self._ensure_writer()

    def flush(self) -> None:
        """Drop all that is unsent, before the gate and behind it."""
        self.gone_bytes = self.written_bytes
        self._unsent.clear()
        self._late.clear()
        super().flush()
        self._pass_gate()

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

    def hold_reading(self) -> None:
        """Keep the loop off the descriptor until `release_reading`."""
        self._is_held = True
        self._remove_reader()

    def release_reading(self) -> None:
        """Read again, unless paused."""
        self._is_held = False
        self._ensure_reader()

    def pause_reading(self) -> None:
        """Leave what the board sends in the kernel."""
        self._is_paused = True
        self._remove_reader()

    def resume_reading(self) -> None:
        """Deliver what the board sends again."""
        self._is_paused = False
        self._ensure_reader()

    def _ensure_reader(self) -> None:
        # Called by the base class as well, in the first turn of the loop.
        if not self._is_paused and not self._is_held:
            super()._ensure_reader()

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
        """`data` and what is there behind it; a port that fails here fails again in its turn."""
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

    def _pass_gate(self) -> None:
        if self._at_gate is not None and self._gate is not None and self.gone_bytes >= self._gate:
            at_gate, self._at_gate = self._at_gate, None
            at_gate()

    def _call_connection_lost(self, exc: Exception | None) -> None:
        """Leave the descriptor open: the control thread closes it, for close may block."""
        self._at_gate = None
        self._protocol.connection_lost(exc)
