"""An access server of which the test says what it answers, and which tells what came together."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Self

from gateway.protocol import rfc2217, telnet

#: For hung tests only.
LIMIT_S = 60.0
_END_S = 5.0

#: What one recv() gave: commands, and data as bytes.
Segment = list[rfc2217.Command | bytes]
Answer = Callable[[rfc2217.Command], bytes]


def acknowledge(command: rfc2217.Command) -> bytes:
    """As it was asked for; a request for a state gets none."""
    if isinstance(command, rfc2217.NotifyModemstate):
        return b""
    return rfc2217.encode(command)


class ScriptedAccessServer:
    """Serves one client after another in a thread until the `with` block ends.

    `answer` makes what is sent for a command. While `reads` is not set, nothing is received.
    With `greets` off, no negotiation is answered.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, *, greets: bool = True) -> None:
        self.answer: Answer = acknowledge
        self.segments: list[Segment] = []
        self.connections = 0
        self.reads = threading.Event()
        self.reads.set()
        self._tls = tls
        self._greets = greets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="scripted access server")

    def url(self, options: str = "") -> str:
        """The address for `serial.serial_for_url`."""
        return f"gateway://127.0.0.1:{self._listener.getsockname()[1]}{options}"

    def say(self, wire_bytes: bytes) -> None:
        """Send that to the client that is connected."""
        assert self._client is not None
        self._client.sendall(wire_bytes)

    def hang_up(self) -> None:
        """Close the connection."""
        assert self._client is not None
        self._client.shutdown(socket.SHUT_RDWR)

    def commands(self) -> list[rfc2217.Command]:
        """All that came, without the data."""
        return [each for part in self.segments for each in part if not isinstance(each, bytes)]

    def data(self) -> bytes:
        """All data that came."""
        return b"".join(each for part in self.segments for each in part if isinstance(each, bytes))

    def wait_for(self, is_there: Callable[[], object]) -> None:
        """Wait until a condition holds."""
        deadline_s = time.monotonic() + LIMIT_S
        while not is_there():
            assert time.monotonic() < deadline_s, self.segments
            time.sleep(0.002)

    def wait_for_commands(self, *commands: rfc2217.Command) -> None:
        """Wait until the last commands that came are these."""
        self.wait_for(lambda: tuple(self.commands()[-len(commands) :]) == commands)

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            # A client may leave whenever it likes.
            with client, contextlib.suppress(OSError):
                self._client = client
                if self._tls is not None:
                    client = self._client = self._tls.wrap_socket(client, server_side=True)
                self.connections += 1
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with client:
                    self._serve(client)
            self._client = None

    def _serve(self, client: socket.socket) -> None:
        engine = telnet.Telnet()
        while data := client.recv(65536):
            segment: Segment = []
            for event in engine.receive_data(data):
                match event:
                    case telnet.Data(text):
                        segment.append(text)
                    case telnet.ComPort(payload):
                        command = rfc2217.decode(payload)
                        assert not isinstance(command, rfc2217.Malformed), command
                        segment.append(command)
                        engine.queue(self.answer(command))
            if segment:
                self.segments.append(segment)
            answers = engine.data_to_send()
            if self._greets:
                client.sendall(answers)
            while not self.reads.wait(0.01):
                if self._listener.fileno() < 0:
                    return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.reads.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept() on Linux
        client = self._client
        if client is not None:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self._thread.join(_END_S)
        self._listener.close()
