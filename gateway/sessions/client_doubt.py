"""Finds out at once whether the machine of a client is still there, when another wants its port.

A machine that lives acknowledges a TCP probe within a round trip, whatever its programs do: so
two programs on one workstation don't take the port from each other. Whose arrival raises a doubt
is `session`'s matter, who gets the port then `device`'s.
"""

from __future__ import annotations

import socket
from typing import Protocol

from gateway import clock
from gateway.devices.sharing import DeviceUser, Users
from gateway.net.client_socket import probe_every_second, tcp_link

#: Who was heard of so recently lives: the kernel probes only when nothing has come for so long.
_HEARD_S = 1.0
#: Two probes, a second apart, and time for the answer to the second. A round trip may take as
#: long as all of it. pyserial gives a connection up after 3 s.
_SILENT_S = 1.5
_UNANSWERED = 2
#: When the kernel has not even asked so often, nothing is known.
_LIMIT_S = 3.0
_LOOK_S = 0.1


class DoubtedClient(DeviceUser, Protocol):
    """The session of the client."""

    def died(self, reason: str) -> None:
        """Its client's machine is not there any more."""


class ClientDoubt:
    """See the module; made on the loop."""

    def __init__(self, client: DoubtedClient, users: Users) -> None:
        self._client = client
        self._users = users
        self._timer: clock.Timer | None = None

    def raise_for(self, connection: socket.socket | None) -> None:
        """Ask the machine of the client, unless it was heard of just before."""
        if self._timer is not None:
            return  # it is being asked
        link = tcp_link(connection)
        if link is not None and link.silence_s >= _HEARD_S:
            self._users.doubt(self._client, True)
            probe_every_second(connection, True)
            self._look_later(connection, clock.time())

    def stop(self) -> None:
        """Stop asking: the client has left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._users.doubt(self._client, False)

    def _look_later(self, connection: socket.socket | None, since: float) -> None:
        self._timer = clock.call_later(_LOOK_S, self._look, connection, since)

    def _look(self, connection: socket.socket | None, since: float) -> None:
        self._timer = None
        waited_s = clock.time() - since
        link = tcp_link(connection)
        if link is None:
            return  # the connection is gone, which is reported soon
        is_heard = link.silence_s < waited_s
        if not is_heard and waited_s > _SILENT_S and link.unanswered >= _UNANSWERED:
            self._client.died("no answer while another client came from its address")
        elif is_heard or waited_s > _LIMIT_S:
            probe_every_second(connection, False)
            self._users.doubt(self._client, False)
        else:
            self._look_later(connection, since)
