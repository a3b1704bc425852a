"""gensio's rfc2217 client sets everything it can and says what it was answered.

For Debian's interpreter, which has the gensio module: `python3 gensio_client.py TCP_PORT`. Prints
one line of JSON a step, `[name, asked for, answered]`, then the board's answer to `version`.
Standard library and gensio only.
"""

from __future__ import annotations

import json
import sys

import gensio

#: gensio's numbers are RFC 2217's own; 0 asks for the value in force.
STEPS = [
    ("baud", 0),
    ("baud", 250000),
    ("baud", 115200),
    *(("datasize", value) for value in (5, 6, 7, 8)),
    *(("parity", value) for value in (2, 3, 4, 5, 1)),
    *(("stopbits", value) for value in (2, 1)),
    *(("flowcontrol", value) for value in (2, 1)),
    ("iflowcontrol", 0),
    *(("sbreak", value) for value in (1, 0, 2)),
    # In an order that does not reset the board.
    *(("dtr", 1), ("rts", 1), ("rts", 0), ("dtr", 0), ("rts", 2), ("dtr", 2)),
]

_WAIT_MS = 20_000


class Handler:
    """What gensio reports."""

    def __init__(self) -> None:
        self.received = b""
        self.modemstates = 0
        self.news = gensio.waiter(OS)

    def read_callback(self, _io: object, error: str | None, data: bytes, _aux: object) -> int:
        """Bytes from the board, or the end of the connection."""
        if error is None:
            self.received += bytes(data)
            if self.received.endswith(b"esp> "):
                self.news.wake()
        return len(data)

    def modemstate(self, _sio: object, _state: int) -> None:
        """NOTIFY-MODEMSTATE."""
        self.modemstates += 1


class Log:
    """Where gensio's complaints go."""

    def gensio_log(self, level: str, text: str) -> None:
        """One complaint."""
        print(json.dumps(["log", level, text]))


OS = gensio.alloc_gensio_selector(Log())


def main(tcp_port: str) -> None:
    """Play all of it against the gateway at 127.0.0.1."""
    handler = Handler()
    io = gensio.gensio(OS, f"telnet(rfc2217),tcp,127.0.0.1,{tcp_port}", handler)
    io.open_s()
    io.read_cb_enable(True)
    serial = io.cast_to_sergensio()
    for name, value in STEPS:
        answer = getattr(serial, f"sg_{name}_s")(value)
        print(json.dumps([name, value, answer]))
    serial.sg_flush(gensio.SERGIO_FLUSH_RCV_XMIT_BUFFERS)
    serial.sg_send_break()
    handler.received = b""
    io.write(b"version\r", None)
    handler.news.wait_timeout(1, _WAIT_MS)
    print(json.dumps(["board", handler.received.decode(errors="replace"), handler.modemstates]))
    io.read_cb_enable(False)
    io.close_s()


if __name__ == "__main__":
    main(sys.argv[1])
