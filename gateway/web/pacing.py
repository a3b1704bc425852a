"""HTTP in pieces: one piece of one connection per turn of the event loop, read or written.

aiohttp parses whatever it is handed at once, and event loops hand over up to 256 KiB of each
connection in one turn: chunks of one byte each or many small requests held up every serial port for
tens of milliseconds. So did long answers to many clients at once.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from gateway.turns import Turns

#: So much may wait in a protocol for a handler that reads none of it: frames of a WebSocket without
#: contents, for instance, which a parser does not count.
_HELD_BYTES: Final = 65536

#: A piece, for which aiohttp takes 1 ms of CPU at the worst (requests of 120 headers; a PC's core).
PIECE_BYTES: Final = 8192


class PacedConnection(asyncio.Transport, asyncio.Protocol):
    """Between a transport and the protocol that reads from it: hands received bytes on in pieces.

    For the protocol it is the transport. Only reading is paced: while pieces wait for their turn,
    or the protocol has paused, the transport is not read.
    """

    def __init__(self, protocol: asyncio.Protocol, turns: Turns) -> None:
        super().__init__()
        self._protocol = protocol
        self._turns = turns
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._has_ended = False  # the peer sends no more
        self._waits = False  # for its turn
        self._is_paused = False  # by the protocol
        self._held_bytes: int | None = None  # handed on since `hold`

    # What the transport reports.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not of that class
        self._protocol.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Keep it for its turn."""
        self._received += data
        self._wait_for_turn()

    def eof_received(self) -> bool:
        """Tell the protocol in its turn; until then the transport stays open."""
        self._has_ended = True
        self._wait_for_turn()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what waits."""
        self._transport = None
        self._received.clear()
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """See asyncio.BaseProtocol."""
        self._protocol.resume_writing()

    def _take_turn(self) -> None:
        """Hand the next piece on."""
        self._waits = False
        if self._transport is None or self._is_paused:
            return
        if self._held_bytes is not None and self._held_bytes >= _HELD_BYTES:
            return
        if self._received:
            piece = bytes(self._received[:PIECE_BYTES])
            if self._held_bytes is not None:
                self._held_bytes += len(piece)
            del self._received[:PIECE_BYTES]
            try:
                self._protocol.data_received(piece)
            except BaseException:
                self.abort()  # as an event loop's own transports do
                raise
        if self._received or self._is_paused:
            self._wait_for_turn()
        elif self._has_ended:
            if not self._protocol.eof_received() and not self.is_closing():
                self.close()
        elif not self.is_closing():
            self._transport.resume_reading()

    def _wait_for_turn(self) -> None:
        if self._transport is None or self._waits:
            return
        self._waits = True
        self._turns.add(self._take_turn)
        if not self._has_ended and not self.is_closing():
            self._transport.pause_reading()

    # What a handler asks that reads what the protocol has made of the pieces.

    def hold(self) -> None:
        """Hand on so much only, and the end of the connection, until `release`."""
        if self._held_bytes is None:
            self._held_bytes = 0

    def release(self) -> None:
        """The handler reads."""
        was_full = self._held_bytes is not None and self._held_bytes >= _HELD_BYTES
        self._held_bytes = None
        if was_full:
            self._wait_for_turn()

    # What the protocol asks of its transport.

    def pause_reading(self) -> None:
        """Hand on nothing more."""
        self._is_paused = True
        if not self._waits and self._transport is not None and not self.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on."""
        self._is_paused = False
        self._wait_for_turn()

    def is_reading(self) -> bool:
        """Whether the protocol reads."""
        return not self._is_paused and not self.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.WriteTransport."""
        if self._transport is not None:
            self._transport.write(data)

    def is_closing(self) -> bool:
        """See asyncio.BaseTransport."""
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        """See asyncio.BaseTransport."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """See asyncio.WriteTransport."""
        if self._transport is not None:
            self._transport.abort()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See asyncio.BaseTransport."""
        return default if self._transport is None else self._transport.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """See asyncio.BaseTransport."""
        return self._protocol

    def get_write_buffer_size(self) -> int:
        """See asyncio.WriteTransport."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """See asyncio.WriteTransport."""
        return (0, 0) if self._transport is None else self._transport.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See asyncio.WriteTransport."""
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high, low)
