"""An access server on a loopback port, in a thread, whose serial port does all it is asked for.

For clients that block, like pyserial's. What they send comes back, so that both directions are
seen; there is no tty and no session: only the protocol is under test.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from typing import Self

from gateway.protocol.access_server import (
    AccessServer,
    BreakRequest,
    Event,
    LinesRequest,
    PortStatus,
    PurgeRequest,
    SerialData,
    SettingsRequest,
    StateRequest,
    StatesWatched,
)
from gateway.protocol.reset import IDLE, Lines
from gateway.protocol.rfc2217 import Modemstate
from gateway.protocol.serial_settings import SerialSettings, StopBits

#: How long a thread that has been told to end may take.
END_S = 5.0


class LoopbackAccessServer:
    """Serves one client after another until the `with` block ends.

    `status` is the port's state, `events` everything that clients asked for. Its port has no
    1.5 stop bits, like a Linux tty.
    """

    def __init__(self) -> None:
        self.status = PortStatus(SerialSettings(), IDLE)
        self.modemstate = Modemstate.CTS
        self.events: list[Event] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._client: socket.socket | None = None
        self._thread = threading.Thread(target=self._run, name="loopback access server")

    def url(self, options: str = "") -> str:
        """The address for `serial.serial_for_url`."""
        return f"rfc2217://127.0.0.1:{self._listener.getsockname()[1]}{options}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        if self._client is not None:
            self._client.shutdown(socket.SHUT_RDWR)
        self._thread.join(END_S)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self._client = client
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._serve(client)
                self._client = None

    def _serve(self, client: socket.socket) -> None:
        server = AccessServer("loopback")
        client.sendall(server.data_to_send())
        while data := client.recv(65536):
            for event in server.receive_data(data):
                self.events.append(event)
                self._carry_out(server, event)
                if isinstance(event, SerialData):
                    client.sendall(server.data_to_send() + server.escape(event.data))
            client.sendall(server.data_to_send())

    def _carry_out(self, server: AccessServer, event: Event) -> None:
        status = self.status
        match event:
            case SettingsRequest():
                wanted = event.apply_to(status.settings)
                if wanted.stopbits != StopBits.ONE_POINT_FIVE:
                    self.status = replace(status, settings=wanted)
                server.answer(event, self.status)
            case LinesRequest(_, dtr, rts):
                lines = Lines(
                    dtr=status.lines.dtr if dtr is None else dtr,
                    rts=status.lines.rts if rts is None else rts,
                )
                self.status = replace(status, lines=lines)
                server.answer(event, self.status)
            case BreakRequest(_, on):
                self.status = replace(status, break_on=bool(on))
                server.answer(event, self.status)
            case PurgeRequest():
                server.answer(event, status)
            case StatesWatched():
                server.notify_modemstate(self.modemstate)
            case StateRequest():
                server.notify_modemstate(self.modemstate, requested=True)
