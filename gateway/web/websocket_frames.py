"""Rules of RFC 6455 for a client's frames that aiohttp's parser does not hold clients to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from aiohttp import web
from aiohttp.http import WebSocketReader

_MASKED: Final = 0x80
_LENGTH: Final = 0x7F

#: Bytes of the length behind the first two, by what stands in the second of them (section 5.2).
_LENGTH_BYTES: Final = {126: 2, 127: 8}
_MASK_BYTES: Final = 4

#: The smallest length that needs so many bytes.
_LEAST: Final = {0: 0, 2: 126, 8: 65536}


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
        """From here on it is a WebSocket."""
        self.frames = StrictFrames(parser)
        super().set_parser(cast("WebSocketReader", self.frames), data_received_cb)


class StrictFrames:
    """Stands before a parser, which closes with 1002 at a frame that is unmasked or oddly long.

    Only the heads of frames are looked at, whatever lies between them. `fault` is what was wrong.
    """

    def __init__(self, parser: WebSocketReader) -> None:
        self.fault = ""
        self._parser = parser
        self._head = bytearray()  # of a frame, as far as it has come; the parser gets it whole
        self._left_bytes = 0  # of the payload

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """As that of the parser, which gets all before the first frame that breaks a rule."""
        if self.fault:
            return True, b""
        return self._parser.feed_data(self._checked(data))

    def feed_eof(self) -> None:
        """As that of the parser."""
        self._parser.feed_eof()

    def _checked(self, data: bytes) -> bytes:
        """What the parser is to have of it."""
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
            self.fault = self._look()
            if self.fault:
                checked.append(_PROTOCOL_ERROR)
                break
            self._left_bytes = self._payload_bytes()
            checked.append(bytes(self._head))
            self._head.clear()
        return b"".join(checked)

    def _head_bytes(self) -> int:
        """How long the head is, as far as that is known."""
        if len(self._head) < 2:
            return 2
        second = self._head[1]
        mask_bytes = _MASK_BYTES if second & _MASKED else 0
        return 2 + _LENGTH_BYTES.get(second & _LENGTH, 0) + mask_bytes

    def _payload_bytes(self) -> int:
        short = self._head[1] & _LENGTH
        n_bytes = _LENGTH_BYTES.get(short, 0)
        return int.from_bytes(self._head[2 : 2 + n_bytes], "big") if n_bytes else short

    def _look(self) -> str:
        if not self._head[1] & _MASKED:
            return "a frame of a client must be masked"
        if self._payload_bytes() < _LEAST[_LENGTH_BYTES.get(self._head[1] & _LENGTH, 0)]:
            return "a length must have as few bytes as possible"
        return ""
