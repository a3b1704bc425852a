"""A client that has a port and says nothing: whoever comes may ask whether it lives."""

from __future__ import annotations

from gateway.net.client_socket import tcp_link
from tests.support.pty_board import Served, until
from tests.support.tcp_client import GREETING, TcpClient

#: Longer than a client is believed in without being asked.
QUIET_S = 1.05


async def quiet_client(served: Served) -> TcpClient:
    """A client that has the port and of which nothing has been heard for a while."""
    client = await TcpClient.connect(served.tcp_port)
    await client.receive_wire(GREETING)
    session = await served.session()
    connection = session._transport.get_extra_info("socket")

    def is_quiet() -> bool:
        link = tcp_link(connection)
        assert link is not None
        return link.silence_s > QUIET_S

    await until(is_quiet)
    return client
