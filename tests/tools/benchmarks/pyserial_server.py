"""An RFC 2217 server as pyserial's documentation shows it (examples/rfc2217_server.py).

`serial.rfc2217.PortManager` between a blocking read of the port in one thread and of the socket in
another, a third looks at the modem lines once a second; one client at a time.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from typing import Any, cast

import serial
import serial.rfc2217

_READ_TIMEOUT_S = 3
_RECEIVE_BYTES = 1024
_POLL_S = 1


class _Redirector:
    """Copies both ways between one client and the port."""

    def __init__(self, port: serial.Serial, connection: socket.socket) -> None:
        self._port = port
        self._connection = connection
        self._lock = threading.Lock()
        self._is_alive = True
        self._manager: Any = serial.rfc2217.PortManager(cast("Any", port), cast("Any", self))

    def write(self, data: bytes) -> None:
        """For the manager's answers as well."""
        with self._lock:
            self._connection.sendall(data)

    def run(self) -> None:
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        threading.Thread(target=self._poll, daemon=True).start()
        with contextlib.suppress(OSError):
            while self._is_alive and (data := self._connection.recv(_RECEIVE_BYTES)):
                self._port.write(b"".join(self._manager.filter(data)))
        self._is_alive = False
        reader.join()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while self._is_alive:
                if data := self._port.read(self._port.in_waiting or 1):
                    self.write(b"".join(self._manager.escape(data)))
        self._is_alive = False

    def _poll(self) -> None:
        while self._is_alive:
            time.sleep(_POLL_S)
            self._manager.check_modem_lines()


def main() -> None:
    """`pyserial_server TTY TCP_PORT`."""
    tty, tcp_port = sys.argv[1:]
    port = serial.serial_for_url(tty, do_not_open=True)
    port.timeout = _READ_TIMEOUT_S
    port.dtr = False
    port.rts = False
    port.open()
    settings = port.get_settings()
    with socket.create_server(("127.0.0.1", int(tcp_port)), backlog=1) as listening:
        while True:
            connection, _ = listening.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            port.rts = True
            port.dtr = True
            with connection:
                _Redirector(port, connection).run()
            port.dtr = False
            port.rts = False
            port.apply_settings(settings)


if __name__ == "__main__":
    main()
