"""A raw TCP port as a conversation: a plain byte pipe, for socket:// clients, nc and socat.

The sibling of `access_server` for clients that speak no protocol: every byte is data, nothing can
be asked for and nothing is answered. What happens to the board when such a client comes and goes
is `device`'s matter.
"""

from __future__ import annotations

from gateway.protocol.access_server import Event, PortRequest, PortStatus, SerialData
from gateway.protocol.rfc2217 import Linestate, Modemstate


class RawPipe:
    """One client's bytes, as they are."""

    is_telnet = False
    unparsed_bytes = 0
    #: Nothing is put among the board's bytes: there is no telling who reads them.
    takes_text = False
    unsent_bytes = 0
    is_amid_command = False

    def receive_data(self, data: bytes) -> list[Event]:
        """All that comes from the client is for the board."""
        return [SerialData(data)] if data else []

    def data_to_send(self) -> bytes:
        """Nothing: there is nothing to answer."""
        return b""

    def say(self, text: bytes) -> None:
        """There is no place for it."""

    def escape(self, data: bytes) -> bytes:
        """Data from the board goes over the wire as it is."""
        return data

    def answer(self, request: PortRequest, status: PortStatus) -> None:
        """Nobody has asked."""

    def notify_modemstate(self, state: Modemstate, *, requested: bool = False) -> None:
        """There is no way to tell the client."""

    def notify_linestate(self, state: Linestate, *, requested: bool = False) -> None:
        """There is no way to tell the client."""
