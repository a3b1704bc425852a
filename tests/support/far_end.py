"""A machine that a port with `connect` dials, in the test's hands."""

from __future__ import annotations

import select
import socket
import ssl
from types import TracebackType
from typing import Self

from tests.support.tcp_client import TcpClient
from tests.support.tls_client import TlsClient
from tests.support.tty_board import until


class FarEnd:
    """Has a TCP port of loopback inside its `with`, and listens on it unless told otherwise.

    While it does not listen, connecting is refused: no other program gets the port.
    """

    def __init__(self, *, listens: bool = True) -> None:
        self._listens = listens
        self._socket = _bound(0)
        self.tcp_port: int = self._socket.getsockname()[1]

    def listen(self) -> None:
        """Take connections from now on."""
        self._socket.listen()

    def stop_listening(self) -> None:
        """Refuse connections from now on."""
        self._socket.close()
        self._socket = _bound(self.tcp_port)

    @property
    def address(self) -> str:
        """HOST:PORT, as in the YAML."""
        return f"127.0.0.1:{self.tcp_port}"

    @property
    def has_call(self) -> bool:
        """Whether a connection waits to be accepted."""
        return bool(select.select([self._socket], [], [], 0)[0])

    async def accept(self) -> TcpClient:
        """The next connection."""
        await until(lambda: self.has_call)
        return TcpClient.of(self._socket.accept()[0])

    async def accept_tls(self, context: ssl.SSLContext) -> TlsClient:
        """The same with TLS; raises what comes of a gateway that does not accept it."""
        await until(lambda: self.has_call)
        client = TlsClient.of(self._socket.accept()[0])
        try:
            await client.accept_tls(context)
        except BaseException:
            client.close()
            raise
        return client

    def __enter__(self) -> Self:
        if self._listens:
            self.listen()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()


def _bound(tcp_port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", tcp_port))
    return bound
