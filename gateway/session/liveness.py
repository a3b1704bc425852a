"""Whether a client is still there: dead machines, idle clients, commands that are never finished.

One that only does not read is there. When another client connects from the same address, the
network is there, so the machine is asked at once: one that lives acknowledges a TCP probe within a
round trip, whatever its programs do. So two programs on one workstation don't take the port from
each other, and a client that has lost its network does not keep its user out.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from gateway import clock
from gateway.net.client_socket import (
    USER_TIMEOUT_MS,
    TcpLink,
    kernel_socket,
    probe_every_second,
    set_option,
    tcp_link,
)
from gateway.port.claim import Claim

#: Several times within USER_TIMEOUT_MS, so that a client that has just stopped reading is seen.
_LOOK_S = 4.0
_LOOK_SOON_S = 0.5

#: A client of which nothing has been heard for so long, though it was asked, is dead: one that has
#: nothing to say is asked after 5, 8 and 11 s.
_SILENT_S = 13.0
_UNANSWERED = 2

#: Programs send a telnet command as a whole. What a link that loses packets cuts in two is sent
#: again within seconds, or the client is dead as above.
UNFINISHED_LIMIT_S = 10.0

#: Probing at a contender: a client that was heard of so recently lives, for the kernel probes only
#: when nothing has come for so long.
_HEARD_S = 1.0
#: Two probes, a second apart, and time for the answer to the second. A round trip may take as
#: long as all of it. pyserial gives a connection up after 3 s.
_PROBE_SILENT_S = 1.5
#: When the kernel has not even asked so often, nothing is known.
_PROBE_LIMIT_S = 3.0
_PROBE_LOOK_S = 0.1


class Watched(Protocol):
    """The session of the client."""

    received_bytes: int
    sent_bytes: int

    @property
    def is_amid_command(self) -> bool:
        """Whether the client has begun a command and not ended it."""

    def close(self, reason: str, *, is_fault: bool = False) -> None:
        """End it; `is_fault` when it ends for what the client has done."""

    def died(self, reason: str) -> None:
        """Its client's machine is not there any longer."""


class Liveness:
    """One client's; looks from `start` to `stop`.

    The client is closed when no byte has gone either way for `idle_timeout_s` (0: never), and up
    to one look more. It has died when nothing has been heard of its machine for 13 s. The kernel
    alone would take up to 28 s: its two clocks, for probes and for bytes on their way, start
    again after each other.

    A client in the middle of a command of which no byte comes for UNFINISHED_LIMIT_S, and up to
    one look more, is closed, while it is read from: it holds the port, and what it would send is
    taken for the rest of the command. Each byte starts the time again, so a slow link closes
    no client; `telnet.MAX_SUBNEGOTIATION_BYTES` bounds how many there may be.
    Linux ends a connection whose TCP_USER_TIMEOUT is over also while the peer acknowledges
    everything and has only no room for more (seen on 6.18): a monitor stopped by Ctrl-Z would be
    lost after 15 s. Such a peer is alive, so the option is off while bytes wait for a peer and
    none are on their way. If it dies then, the kernel gives up after 15 probes without an answer,
    which takes some 15 minutes.
    """

    def __init__(self, client: Watched, claim: Claim, idle_timeout_s: float) -> None:
        self._client = client
        self._claim = claim
        self._idle_timeout_s = idle_timeout_s
        self._seen_bytes = 0
        self._seen_at = 0.0
        self._command_bytes = 0  # of the client, when it was seen last that its command may go on
        self._command_at = 0.0
        self._user_timeout_ms = USER_TIMEOUT_MS
        self._timer: clock.Timer | None = None
        self._probe_timer: clock.Timer | None = None

    def start(self, transport: asyncio.Transport) -> None:
        """Look from now on; `transport` is connected."""
        self._transport = transport
        self._socket = kernel_socket(transport)
        self._seen_bytes = self._moved_bytes
        self._seen_at = clock.time()
        self._look_later(_LOOK_S)

    def stop(self) -> None:
        """Look no more: the client has left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
            self._claim.port.arbiter.probe(self._claim, False)

    def probe(self) -> None:
        """Ask the client's machine whether it is there, unless it was heard of just before."""
        if self._probe_timer is not None:
            return  # it is being asked
        link = tcp_link(self._socket)
        if link is not None and link.silence_s >= _HEARD_S:
            self._claim.port.arbiter.probe(self._claim, True)
            probe_every_second(self._socket, True)
            self._look_for_answer_later(clock.time())

    def _look_for_answer_later(self, since: float) -> None:
        self._probe_timer = clock.call_later(_PROBE_LOOK_S, self._look_for_answer, since)

    def _look_for_answer(self, since: float) -> None:
        self._probe_timer = None
        waited_s = clock.time() - since
        link = tcp_link(self._socket)
        if link is None:
            return  # the connection is gone, which is reported soon
        is_heard = link.silence_s < waited_s
        if not is_heard and waited_s > _PROBE_SILENT_S and link.unanswered >= _UNANSWERED:
            self._client.died("no answer while another client connected from its address")
        elif is_heard or waited_s > _PROBE_LIMIT_S:
            probe_every_second(self._socket, False)
            self._claim.port.arbiter.probe(self._claim, False)
        else:
            self._look_for_answer_later(since)

    @property
    def _moved_bytes(self) -> int:
        return self._client.received_bytes + self._client.sent_bytes

    def _look_later(self, wait_s: float) -> None:
        self._timer = clock.call_later(min(wait_s, self._idle_timeout_s or wait_s), self._look)

    def _look(self) -> None:
        self._timer = None
        link = tcp_link(self._socket)
        if link is None:
            return  # the connection is gone, which is reported soon
        if link.silence_s >= _SILENT_S and link.unanswered >= _UNANSWERED:
            self._client.died(f"no answer for {link.silence_s:.0f} s")
            return
        moved_bytes = self._moved_bytes
        now = clock.time()
        if moved_bytes != self._seen_bytes:
            self._seen_bytes, self._seen_at = moved_bytes, now
        elif self._idle_timeout_s and now - self._seen_at >= self._idle_timeout_s:
            self._client.close(f"no byte for {self._idle_timeout_s:g} s")
            return
        if self._has_left_a_command(now):
            self._client.close("left a telnet command unfinished", is_fault=True)
            return
        self._set_user_timeout(link)
        self._look_later(max(_LOOK_SOON_S, min(_LOOK_S, _SILENT_S - link.silence_s)))

    def _has_left_a_command(self, now: float) -> bool:
        """Whether the client has been amid one command for too long without a further byte."""
        received_bytes = self._client.received_bytes
        # While nothing is read, the rest may be waiting in the kernel; at the end, none comes.
        is_heard = self._transport.is_reading() and not self._transport.is_closing()
        is_amid = self._client.is_amid_command
        if not is_amid or not is_heard or received_bytes != self._command_bytes:
            self._command_bytes, self._command_at = received_bytes, now
        return now - self._command_at >= UNFINISHED_LIMIT_S

    def _set_user_timeout(self, link: TcpLink) -> None:
        """Put TCP_USER_TIMEOUT in force, unless the peer has acknowledged all that it let come."""
        wanted_ms = 0 if link.unsent_bytes and not link.is_unacked else USER_TIMEOUT_MS
        if wanted_ms != self._user_timeout_ms:
            set_option(self._socket, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, wanted_ms)
            self._user_timeout_ms = wanted_ms
