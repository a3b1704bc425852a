"""The wire between the host's tty and the simulated board's UART: a pty, paced in both directions.

Does to bytes what a UART and its USB bridge do: each side's take the time of its baud rate, a host
that reads at another rate than the board sends at gets garbage, and unread output is lost. On a
board that is its own USB device the bytes take the time of the bus; the rate that the host sets is
only reported to the board. The modem lines, which a pty lacks, go over the control socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

#: A start bit, eight data bits, a stop bit.
_BITS_PER_BYTE = 10
_NS_PER_S = 1_000_000_000

#: Bytes move in chunks of what is due, this often; about the polling of a USB bridge.
TICK_NS = 4_000_000

#: How often the host's rate is read for a board that acts on it: a change raises no event. Tools
#: that ask for a bootloader by the rate leave it for 10 ms and more.
RATE_POLL_NS = 5_000_000

#: A UART samples each bit in its middle, so that the tenth is still right with an error of 5 %;
#: with noise and two clocks that are both off, 3 % is what the boards' makers allow.
MAX_RATE_ERROR = 0.03

#: What the host has written goes from the kernel to the bridge's own buffer, where a purge no
#: longer reaches it and a new baud rate no longer concerns it. The size is a CP2102N's.
BRIDGE_BUFFER_BYTES = 512

#: What the host has not read waits in the kernel, which for a USB tty keeps 64 KB; a pty about 20.
#: More is lost, for a UART without flow control doesn't wait.
BACKLOG_BYTES = 40 * 1024

#: linux/asm-generic: TCGETS2 and struct termios2, whose last two words are the speeds in baud.
#: termios.tcgetattr knows the standard rates only.
_TCGETS2 = 0x802C542A
_TERMIOS2 = struct.Struct("=4I20s2I")

#: What a USB serial driver opens a port with for the first time.
_FIRST_BAUDRATE = termios.B9600

_SLOWEST_BAUD = 50

#: Over a USB bridge the first bytes come milliseconds after the host has opened its tty and made it
#: raw. Over a pty they would come at once, and go back to the board as echo if the host was
#: preempted in between. A tty that stays cooked for longer echoes, as anywhere.
COOKED_LIMIT_S = 0.5


class Uart(Protocol):
    """The board's end of the wire, as the link sees it."""

    @property
    def baudrate(self) -> int:
        """The rate in force, for both directions."""

    @property
    def unsent_bytes(self) -> int:
        """How much there is to send, at least up to where the rate changes."""

    def take(self, now_ns: int, limit: int) -> bytes:
        """The next bytes that have left the UART; fewer than `limit` when the rate changes."""

    def receive_data(self, now_ns: int, data: bytes) -> None:
        """Bytes that have arrived at the UART."""


class Pacer:
    """How many bytes a line of some baud rate has carried by now; exact over any time."""

    def __init__(self, baudrate: int, now_ns: int) -> None:
        self.baudrate = baudrate
        self._anchor_ns = now_ns
        self._carried = 0

    def due(self, now_ns: int) -> int:
        """Bytes that have passed since the last `carry`."""
        bits = (now_ns - self._anchor_ns) * self.baudrate // _NS_PER_S
        return bits // _BITS_PER_BYTE - self._carried

    def carry(self, n_bytes: int) -> int:
        """Count bytes as passed; return when the last one had."""
        self._carried += n_bytes
        return self.due_ns(0)

    def due_ns(self, n_bytes: int) -> int:
        """When `n_bytes` more will have passed."""
        bits = (self._carried + n_bytes) * _BITS_PER_BYTE
        return self._anchor_ns + -(-bits * _NS_PER_S // self.baudrate)


@lru_cache(maxsize=32)
def garble_table(sender_baud: int, receiver_baud: int) -> bytes:
    """What a receiver of another rate makes of each byte, as a table for bytes.translate.

    It samples the sender's frame (a slower receiver: the same one again and again) at its own bit
    times, least significant bit first. A byte that would come out right by chance is changed, so
    that a wrong rate shows.
    """
    ratio = sender_baud / receiver_baud
    table = bytearray()
    for byte in range(256):
        frame = (byte | 0x100) << 1  # start bit 0, data, stop bit 1
        sampled = 0
        for bit in range(8):
            position = int((bit + 1.5) * ratio) % _BITS_PER_BYTE
            sampled |= (frame >> position & 1) << bit
        table.append(sampled if sampled != byte else byte ^ 0x80)
    return bytes(table)


def carry(data: bytes, sender_baud: int, receiver_baud: int) -> bytes:
    """What the receiver gets of what the sender sent."""
    if abs(sender_baud - receiver_baud) <= MAX_RATE_ERROR * receiver_baud:
        return data
    return data.translate(garble_table(sender_baud, receiver_baud))


class _Pty:
    """A pty whose slave is the host's tty; the non-blocking master is ours.

    No slave of our own is kept open: the master then shows (POLLHUP) whether the host has its tty
    open. The settings stay with the pair.
    """

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        self.path = os.ttyname(slave)
        settings = termios.tcgetattr(slave)
        settings[4] = settings[5] = _FIRST_BAUDRATE
        termios.tcsetattr(slave, termios.TCSANOW, settings)
        os.close(slave)
        os.set_blocking(self.master, False)
        self._poll = select.poll()
        self._poll.register(self.master, 0)
        # Edge-triggered, since a tty that is not open stays hung up.
        self.edges = select.epoll()
        self.edges.register(self.master, select.EPOLLIN | select.EPOLLET)

    @property
    def is_open(self) -> bool:
        """Whether the host has the tty open."""
        return not any(event & select.POLLHUP for _, event in self._poll.poll(0))

    @property
    def baudrate(self) -> int:
        """The rate that the host has set; never 0, which asks for a hang-up."""
        packed = fcntl.ioctl(self.master, _TCGETS2, bytes(_TERMIOS2.size))
        return max(_SLOWEST_BAUD, int(_TERMIOS2.unpack(packed)[-1]))

    @property
    def echoes(self) -> bool:
        """Whether what the host gets comes back to the board: until the host makes its tty raw."""
        local_modes: int = termios.tcgetattr(self.master)[3]
        return bool(local_modes & termios.ECHO)

    def read(self, limit: int) -> bytes:
        """What the host has written; b"" when there is nothing."""
        try:
            return os.read(self.master, limit) if limit else b""
        except OSError:  # EAGAIN, or EIO: it is not open
            return b""

    def write(self, data: bytes | bytearray) -> int:
        """Hand bytes to the host; return how many the kernel has taken."""
        try:
            return os.write(self.master, data)
        except BlockingIOError:
            return 0

    def discard_unread(self) -> None:
        """Drop what the host did not read before it closed the tty, as a driver does."""
        with contextlib.suppress(OSError):  # opened exclusively in the meantime
            slave = os.open(self.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                termios.tcflush(slave, termios.TCIFLUSH)
            finally:
                os.close(slave)

    def close(self) -> None:
        self.edges.close()
        os.close(self.master)


class Link:
    """Carries bytes between a new pty and a board's UART, on the running loop, until `close`.

    `after_transfer` is called when the UART has received or sent bytes, `lost` with the number of
    bytes that the host did not read in time. Call `wake` when the UART may have something to send.
    With `usb_baudrate` the board is its own USB device: that is the pace of both directions, and
    `rate_set` is called with each rate that the host sets.
    """

    def __init__(
        self,
        uart: Uart,
        after_transfer: Callable[[], None],
        lost: Callable[[int], None],
        *,
        usb_baudrate: int | None = None,
        rate_set: Callable[[int], None] | None = None,
    ) -> None:
        self._uart = uart
        self._usb_baudrate = usb_baudrate
        self._rate_set = rate_set or (lambda _rate: None)
        self._after_transfer = after_transfer
        self._lost = lost
        self._pty = _Pty()
        self.path = self._pty.path
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pty.edges.fileno(), self._on_edge)
        self._was_open = False
        self._opened_at = 0.0
        self._to_board = bytearray()  # in the bridge's buffer
        self._to_board_pacer: Pacer | None = None  # None while the line is idle
        self._to_host_pacer: Pacer | None = None
        self._backlog = bytearray()  # has left the UART, is not in the kernel yet
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._seen_rate = self._pty.baudrate
        if rate_set is not None:
            self._watch_rate()

    @property
    def host_baudrate(self) -> int:
        """The rate that the host has set on its tty."""
        return self._pty.baudrate

    def close(self) -> None:
        """Take the tty away: the host sees a hang-up."""
        for timer in self._timers.values():
            timer.cancel()
        self._loop.remove_reader(self._pty.edges.fileno())
        self._pty.close()

    @property
    def _line_baudrate(self) -> int:
        """The rate of the line at the host's end."""
        return self._usb_baudrate or self._pty.baudrate

    def wake(self) -> None:
        """Start sending if the line is idle and the UART has something to send."""
        if self._to_host_pacer is None and self._uart.unsent_bytes:
            self._to_host_pacer = Pacer(self._uart.baudrate, time.monotonic_ns())
            self._schedule(self._send_due, self._to_host_pacer, self._uart.unsent_bytes)

    def _schedule(self, tick: Callable[[], None], pacer: Pacer, n_bytes: int) -> None:
        """Call `tick` when `n_bytes` more have passed, or sooner to move on what has."""
        at_ns = min(pacer.due_ns(n_bytes), time.monotonic_ns() + TICK_NS)
        self._timers[tick] = self._loop.call_at(at_ns / _NS_PER_S, tick)

    def _on_edge(self) -> None:
        """The host has opened, written to or closed its tty."""
        self._pty.edges.poll(0)
        if self._to_board_pacer is None:
            self._start_receiving()
        self._note_open()

    def _note_open(self) -> bool:
        """Whether the host has its tty open; when it has closed it, what it did not read goes."""
        is_open = self._pty.is_open
        if self._was_open and not is_open:
            self._pty.discard_unread()
            self._backlog.clear()
        if is_open and not self._was_open:
            self._opened_at = self._loop.time()
        self._was_open = is_open
        return is_open

    def _watch_rate(self) -> None:
        at_s = self._loop.time() + RATE_POLL_NS / _NS_PER_S
        self._timers[self._watch_rate] = self._loop.call_at(at_s, self._watch_rate)
        rate = self._pty.baudrate
        if rate != self._seen_rate:
            self._seen_rate = rate
            self._rate_set(rate)

    def _start_receiving(self) -> None:
        baudrate = self._line_baudrate
        self._fill(baudrate)
        if self._to_board:
            self._to_board_pacer = Pacer(baudrate, time.monotonic_ns())
            self._schedule(self._deliver_due, self._to_board_pacer, len(self._to_board))

    def _fill(self, baudrate: int) -> None:
        """Move bytes from the kernel to the bridge's buffer, unless the rate has changed."""
        if self._line_baudrate == baudrate:
            self._to_board += self._pty.read(BRIDGE_BUFFER_BYTES - len(self._to_board))

    def _deliver_due(self) -> None:
        pacer = self._to_board_pacer
        assert pacer is not None  # noqa: S101 - the timer runs only with a pacer
        now_ns = time.monotonic_ns()
        while (n_due := min(pacer.due(now_ns), len(self._to_board))) > 0:
            chunk = bytes(self._to_board[:n_due])
            del self._to_board[:n_due]
            pacer.carry(n_due)
            self._uart.receive_data(now_ns, carry(chunk, pacer.baudrate, self._uart.baudrate))
            self._fill(pacer.baudrate)
        if self._to_board:
            self._schedule(self._deliver_due, pacer, len(self._to_board))
        else:
            self._to_board_pacer = None
            self._start_receiving()
        self._after_transfer()

    def _send_due(self) -> None:
        pacer = self._to_host_pacer
        assert pacer is not None  # noqa: S101 - the timer runs only with a pacer
        now_ns = time.monotonic_ns()
        while self._uart.unsent_bytes and (n_due := pacer.due(now_ns)) > 0:
            chunk = self._uart.take(now_ns, n_due)
            passed_ns = pacer.carry(len(chunk))
            self._hand_over(chunk, pacer.baudrate)
            if self._uart.baudrate != pacer.baudrate:
                self._to_host_pacer = pacer = Pacer(self._uart.baudrate, passed_ns)
        if self._uart.unsent_bytes:
            self._schedule(self._send_due, pacer, self._uart.unsent_bytes)
        else:
            self._to_host_pacer = None
        self._after_transfer()

    def _hand_over(self, chunk: bytes, sender_baud: int) -> None:
        if not self._note_open():
            return
        self._backlog += carry(chunk, sender_baud, self._line_baudrate)
        self._write_backlog()
        if (n_lost := len(self._backlog) - BACKLOG_BYTES) > 0:
            del self._backlog[BACKLOG_BYTES:]
            self._lost(n_lost)

    @property
    def _is_being_opened(self) -> bool:
        return self._loop.time() - self._opened_at < COOKED_LIMIT_S and self._pty.echoes

    def _write_backlog(self) -> None:
        while (
            self._backlog
            and not self._is_being_opened
            and (n_taken := self._pty.write(self._backlog))
        ):
            del self._backlog[:n_taken]
        if (timer := self._timers.pop(self._write_backlog, None)) is not None:
            timer.cancel()
        if self._backlog:
            retry_at_s = self._loop.time() + TICK_NS / _NS_PER_S
            self._timers[self._write_backlog] = self._loop.call_at(retry_at_s, self._write_backlog)
