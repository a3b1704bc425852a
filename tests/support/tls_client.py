"""The TLS kin of TcpClient: it too reads only when it is told to, and leaves as it is told to."""

from __future__ import annotations

import asyncio
import ssl
from typing import Self

from tests.support.tcp_client import TcpClient


class TlsClient(TcpClient):
    """A secured connection to a gateway on loopback; `await connect_tls`, then use it with `with`.

    What it raises when it is refused is `ssl.SSLError`.
    """

    _tls: ssl.SSLObject

    @classmethod
    async def connect_tls(
        cls,
        tcp_port: int,
        context: ssl.SSLContext,
        *,
        receive_buffer_bytes: int | None = None,
        source: str = "127.0.0.1",
        with_end: bytes = b"",
    ) -> Self:
        """Connect and shake hands; `with_end` is sent in one segment with our end of that."""
        client = await cls.connect(
            tcp_port, receive_buffer_bytes=receive_buffer_bytes, source=source
        )
        try:
            await client.shake_hands(context, with_end=with_end)
        except BaseException:
            client.close()
            raise
        return client

    async def accept_tls(self, context: ssl.SSLContext) -> None:
        """Shake hands on a connection that the gateway has made."""
        await self.shake_hands(context, is_server=True)

    async def shake_hands(
        self, context: ssl.SSLContext, *, is_server: bool = False, with_end: bytes = b""
    ) -> None:
        """Shake hands; `with_end` is sent in one segment with our end of it."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if is_server else "127.0.0.1"
        self._tls = context.wrap_bio(self._incoming, self._outgoing, is_server, name)
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fetch()
            else:
                if with_end:
                    self._tls.write(with_end)
                await self._flush()
                return

    async def send(self, data: bytes) -> None:
        """Send all of it; waits while the gateway does not read."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
            await self._flush()

    async def send_close_notify(self) -> None:
        """Say that no more comes, and go on reading."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            await self._flush()

    async def receive_rest(self) -> bytes:
        """Read to the end what comes below TLS."""
        rest = b""
        while chunk := await asyncio.get_running_loop().sock_recv(self._socket, 65536):
            rest += chunk
        return rest

    async def _receive_some(self) -> bytes:
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                await self._fetch()

    async def _fetch(self) -> None:
        chunk = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        if chunk:
            self._incoming.write(chunk)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await asyncio.get_running_loop().sock_sendall(self._socket, self._outgoing.read())
