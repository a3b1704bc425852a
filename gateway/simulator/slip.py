"""SLIP framing as the boot ROM and the flasher stub use it: bulk, bounded, pure.

Every frame begins and ends with END. What lies between two frames is ignored, as the chip does:
that is where the garbage of a wrong baud rate goes. What a frame says is others' matter.
"""

from __future__ import annotations

_END = b"\xc0"
_ESC = b"\xdb"
_ESC_END = b"\xdb\xdc"
_ESC_ESC = b"\xdb\xdd"


def encode(payload: bytes) -> bytes:
    """Frame one payload for the wire."""
    return _END + payload.replace(_ESC, _ESC_ESC).replace(_END, _ESC_END) + _END


def decode(content: bytes) -> bytes | None:
    """Undo the escapes of one frame's content (without its ENDs); None if one is invalid."""
    escapes = content.count(_ESC)
    if not escapes:
        return content
    if escapes != content.count(_ESC_END) + content.count(_ESC_ESC):
        return None
    # In valid content the byte after ESC ESC_ESC cannot complete an ESC_END, so this order is
    # safe; the other one would turn the escaped form of DB DC into C0.
    return content.replace(_ESC_END, _END).replace(_ESC_ESC, _ESC)


class SlipReader:
    """Cuts a byte stream into the payloads of its frames.

    Frames longer than `max_frame_bytes` after decoding are dropped, as are frames with an invalid
    escape and empty ones. At most twice `max_frame_bytes` are kept between two calls.
    """

    def __init__(self, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._in_frame = False
        self._content = bytearray()

    def receive_data(self, data: bytes) -> list[bytes]:
        """Take bytes of the stream; return the payloads that they complete, in order."""
        payloads: list[bytes] = []
        *closed, tail = data.split(_END)
        for piece in closed:
            if self._in_frame:
                self._append(piece)
                self._close(payloads)
            else:
                self._in_frame = True
        if self._in_frame:
            self._append(tail)
        return payloads

    def _append(self, piece: bytes) -> None:
        # An escape makes two bytes of one. One byte more than could be valid is kept, so that
        # _close sees that the frame was too long.
        room = 2 * self.max_frame_bytes + 1 - len(self._content)
        self._content += piece[:room]

    def _close(self, payloads: list[bytes]) -> None:
        if not self._content:
            # Two ENDs in a row: the second one starts a frame. A reader that came in half way
            # through a frame finds its way back by this.
            return
        payload = decode(bytes(self._content))
        if payload is not None and len(payload) <= self.max_frame_bytes:
            payloads.append(payload)
        self._content.clear()
        self._in_frame = False
