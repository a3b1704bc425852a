"""A simulated board without process, pty and time: the test is its clock and its wire."""

from __future__ import annotations

import struct

from gateway.simulator.board import Board, Runs
from gateway.simulator.chips import Opcode
from gateway.simulator.flash import Flash
from gateway.simulator.url import parse_url
from tests.support.download_host import slip

MS = 1_000_000
MUCH = 1 << 20


class Bench:
    """A board and the clock that it lives by."""

    def __init__(self, parameters: str = "heartbeat_s=0", chip: str = "esp32") -> None:
        url = parse_url(f"sim://{chip}?{parameters}")
        self.flash = Flash(url.flash_mb << 20)
        self.board = Board(url, self.flash, powered_ns=0)
        self.now_ns = 0

    def wait(self, ms: float) -> None:
        """Let time pass, and what is due then happen."""
        end_ns = self.now_ns + round(ms * MS)
        while (deadline_ns := self.board.next_deadline()) is not None and deadline_ns <= end_ns:
            self.now_ns = deadline_ns
            self.board.handle_timer(deadline_ns)
        self.now_ns = end_ns

    def set_lines(self, dtr: bool, rts: bool, then_ms: float = 100) -> None:
        """Set both lines, then let time pass."""
        self.board.set_lines(self.now_ns, self.now_ns, dtr, rts)
        self.wait(then_ms)

    def enter_download_mode(self) -> None:
        """Play the sequence of a board with two transistors."""
        self.set_lines(dtr=False, rts=True)
        self.set_lines(dtr=True, rts=False)
        self.set_lines(dtr=False, rts=False)

    def send(self, data: bytes) -> None:
        """Let bytes arrive at the board."""
        self.board.receive_data(self.now_ns, data)

    def received(self) -> bytes:
        """All that the board sends now."""
        data = bytearray()
        while self.board.unsent_bytes:
            data += self.board.take(self.now_ns, MUCH)
        return bytes(data)

    def runs(self, what: str) -> bool:
        """Whether that is what the chip runs."""
        return self.board.runs == Runs(what)

    def events(self) -> list[dict[str, object]]:
        """The log so far, without times."""
        entries = self.board.log_entries()
        return [{key: entry[key] for key in entry if key != "t_ns"} for entry in entries]


def request(opcode: Opcode, body: bytes) -> bytes:
    """A command of the host, framed."""
    return slip(struct.pack("<BBHI", 0, opcode, len(body), 0) + body)
