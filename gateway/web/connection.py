"""An HTTP connection below aiohttp: one piece of one connection per turn of the event loop.

aiohttp parses all that it is handed at once, and event loops hand over up to 256 KiB of each
connection in one turn: chunks of one byte each or many small requests held up every serial port for
tens of milliseconds. So did long answers to many clients at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http import WebSocketReader

from gateway.turns import Turns

#: Of a held connection: frames of a WebSocket without contents, for instance, which aiohttp's
#: parser does not count.
_HELD_BYTES: Final = 65536

#: A piece takes aiohttp at most 1 ms of CPU (requests of 120 headers; a PC's core).
PIECE_BYTES: Final = 8192


class PacedConnection(asyncio.Transport, asyncio.Protocol):
    """Passes what a transport receives to a protocol in pieces; for the protocol, the transport.

    While pieces wait for their turn, or the protocol has paused, the transport is not read.
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
        self._held_bytes: int | None = None  # passed on since `hold`

    # Reported by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.BaseProtocol."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not of that class
        self._protocol.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Keep it for its turn."""
        self._received += data
        self._wait_for_turn()

    def eof_received(self) -> bool:
        """Report it to the protocol in its turn; until then the transport stays open."""
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
        self._waits = False
        if self._transport is None or self._is_paused or self._is_full:
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

    # Called by a handler that reads what the protocol has made of the pieces.

    @property
    def _is_full(self) -> bool:
        return self._held_bytes is not None and self._held_bytes >= _HELD_BYTES

    def hold(self) -> None:
        """Pass on at most _HELD_BYTES, and the end of the connection, until `release`."""
        if self._held_bytes is None:
            self._held_bytes = 0

    def release(self) -> None:
        """Pass on without that limit."""
        was_full, self._held_bytes = self._is_full, None
        if was_full:
            self._wait_for_turn()

    # Called by the protocol on its transport.

    def pause_reading(self) -> None:
        """Pass on nothing more."""
        self._is_paused = True
        if not self._waits and self._transport is not None and not self.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Pass on again."""
        self._is_paused = False
        self._wait_for_turn()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """See asyncio.WriteTransport."""
        if self._transport is not None:
            self._transport.write(data)

    def is_reading(self) -> bool:
        """Whether the protocol reads; asked by what looks after clients."""
        return not self._is_paused and not self.is_closing()

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

    def get_write_buffer_size(self) -> int:
        """See asyncio.WriteTransport."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()


#: Of a WebSocket's frame (RFC 6455, section 5.2): the mask bit, the length in its second byte, the
#: bytes of a longer length by that value, and the smallest length that needs them.
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_LENGTH_BYTES: Final = {126: 2, 127: 8}
_SMALLEST: Final = {0: 0, 2: 126, 8: 65536}
_MASK_BYTES: Final = 4

#: A head with reserved bits, which the parser answers with 1002 as it does every such error.
_PROTOCOL_ERROR: Final = b"\xf0\x80"


class HttpHandler(web.RequestHandler):
    """aiohttp's, with StrictFrames before the parser of a WebSocket."""

    frames: StrictFrames | None = None

    def set_parser(
        self,
        parser: WebSocketReader,
        data_received_cb: Callable[[], None] | None = None,
    ) -> None:
        """Parse a WebSocket from here on."""
        self.frames = StrictFrames(parser)
        super().set_parser(cast("WebSocketReader", self.frames), data_received_cb)


class StrictFrames:
    """Rejects frames that aiohttp's parser accepts against RFC 6455: unmasked, or oddly long.

    Only the heads of frames are examined. `fault` describes the error; the parser closes with 1002.
    """

    def __init__(self, parser: WebSocketReader) -> None:
        self.fault = ""
        self._parser = parser
        self._head = bytearray()  # of a frame, as far as received; the parser gets it whole
        self._left_bytes = 0  # of the payload

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Pass on all before the first frame that breaks a rule."""
        if self.fault:
            return True, b""
        return self._parser.feed_data(self._checked(data))

    def feed_eof(self) -> None:
        """Pass it on."""
        self._parser.feed_eof()

    def _checked(self, data: bytes) -> bytes:
        checked = []
        at = 0
        while at < len(data):
            if self._left_bytes:
                payload = data[at : at + self._left_bytes]
                checked.append(payload)
                self._left_bytes -= len(payload)
                at += len(payload)
                continue
            part = data[at : at + self._head_bytes() - len(self._head)]
            self._head += part
            at += len(part)
            if len(self._head) < self._head_bytes():
                continue
            self.fault = self._find_fault()
            if self.fault:
                checked.append(_PROTOCOL_ERROR)
                break
            self._left_bytes = self._payload_bytes()
            checked.append(bytes(self._head))
            self._head.clear()
        return b"".join(checked)

    def _head_bytes(self) -> int:
        """The length of the head, as far as it is known."""
        if len(self._head) < 2:
            return 2
        second = self._head[1]
        mask_bytes = _MASK_BYTES if second & _MASKED else 0
        return 2 + _LENGTH_BYTES.get(second & _LENGTH, 0) + mask_bytes

    def _payload_bytes(self) -> int:
        short = self._head[1] & _LENGTH
        n_bytes = _LENGTH_BYTES.get(short, 0)
        return int.from_bytes(self._head[2 : 2 + n_bytes], "big") if n_bytes else short

    def _find_fault(self) -> str:
        if not self._head[1] & _MASKED:
            return "a client's frame must be masked"
        if self._payload_bytes() < _SMALLEST[_LENGTH_BYTES.get(self._head[1] & _LENGTH, 0)]:
            return "a length must have as few bytes as possible"
        return ""
