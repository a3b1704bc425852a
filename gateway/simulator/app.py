"""The app that a simulated board runs: a heartbeat in its log and an echoing prompt.

Just enough to see that bytes go both ways in order and that the board was or was not reset.
Pure logic: times are arguments, in nanoseconds; the UART's speed is `link`'s matter.
"""

from __future__ import annotations

import hashlib
import re

VERSION = "1.0"
PROMPT = b"esp> "

#: What one command may send: 90 s at 115200 baud.
MAX_PATTERN_BYTES = 1 << 20

#: The line buffer; what is typed beyond it is neither kept nor echoed.
MAX_LINE_BYTES = 256

#: With more than this unsent the app is busy printing, as a real one that blocks in its UART
#: driver: it prints no heartbeats and leaves its input in the receive buffer, which overflows.
BUSY_BYTES = 4096
RECEIVE_BUFFER_BYTES = 4096

_HELP = (
    b"help       this list\r\nversion    what runs here\r\nbytes N    N bytes of a fixed pattern"
)

#: Runs of plain characters, and each key that means something.
_KEYS = re.compile(rb"[^\r\n\b\x7f]+|[\r\n\b\x7f]")


def pattern(n_bytes: int) -> bytes:
    """The pseudo-random bytes that `bytes N` sends: always the same, all values occur."""
    return hashlib.shake_256(b"esp-serial-gateway").digest(n_bytes)


class App:
    """One run of the app, from its start at `started_ns` until reset.

    `heartbeat_ns` is the time between two heartbeats, 0 for none.
    """

    def __init__(self, name: str, heartbeat_ns: int, started_ns: int) -> None:
        self._name = name
        self._heartbeat_ns = heartbeat_ns
        self._started_ns = started_ns
        self._heartbeats = 0
        self._line = bytearray()
        self._received = bytearray()  # waits until the app is no longer busy
        self._received_cr = False
        self._unsent = bytearray()
        self._print_log(started_ns, "ready")

    @property
    def unsent_bytes(self) -> int:
        """How much `take` has to give."""
        return len(self._unsent)

    def take(self, limit: int) -> bytes:
        """Up to `limit` bytes of what the app prints, for the UART to send."""
        chunk = bytes(self._unsent[:limit])
        del self._unsent[:limit]
        self._read_received()
        return chunk

    def receive_data(self, data: bytes) -> None:
        """Characters that came over the UART."""
        self._received += data[: RECEIVE_BUFFER_BYTES - len(self._received)]
        self._read_received()

    def next_deadline(self) -> int | None:
        """When `handle_timer` wants to be called, if at all."""
        if not self._heartbeat_ns:
            return None
        return self._started_ns + (self._heartbeats + 1) * self._heartbeat_ns

    def handle_timer(self, now_ns: int) -> None:
        """Print the heartbeat if it is due; those that were missed are left out."""
        due_ns = self.next_deadline()
        if due_ns is None or now_ns < due_ns:
            return
        self._heartbeats = (now_ns - self._started_ns) // self._heartbeat_ns
        if not self._is_busy:
            self._unsent += b"\r\n"
            self._print_log(now_ns, f"heartbeat {self._heartbeats}")
            self._unsent += self._line

    @property
    def _is_busy(self) -> bool:
        return len(self._unsent) > BUSY_BYTES

    def _print_log(self, now_ns: int, text: str) -> None:
        uptime_ms = (now_ns - self._started_ns) // 1_000_000
        self._unsent += f"I ({uptime_ms}) app: {text}\r\n".encode() + PROMPT

    def _read_received(self) -> None:
        while self._received and not self._is_busy:
            keys = _KEYS.match(self._received)
            if keys is None:  # can't be: every byte is one or the other
                return
            text = keys.group()
            del self._received[: len(text)]
            is_crlf = self._received_cr and text == b"\n"
            self._received_cr = text == b"\r"
            if not is_crlf:
                self._press(text)

    def _press(self, text: bytes) -> None:
        if text in {b"\r", b"\n"}:
            line = bytes(self._line)
            self._line.clear()
            answer = self._answer(line)
            self._unsent += b"\r\n" + answer + (b"\r\n" if answer else b"") + PROMPT
        elif text in {b"\b", b"\x7f"}:
            if self._line:
                del self._line[-1:]
                self._unsent += b"\b \b"
        else:
            text = text[: MAX_LINE_BYTES - len(self._line)]
            self._line += text
            self._unsent += text

    def _answer(self, line: bytes) -> bytes:
        match line.split():
            case []:
                return b""
            case [b"help"]:
                return _HELP
            case [b"version"]:
                return f"{self._name} simulated app {VERSION}".encode()
            case [b"bytes", digits] if digits.isdigit() and len(digits) < 10:
                n_bytes = int(digits)
                if n_bytes <= MAX_PATTERN_BYTES:
                    return pattern(n_bytes)
                return f"? at most {MAX_PATTERN_BYTES} bytes".encode()
        return b"? " + line
