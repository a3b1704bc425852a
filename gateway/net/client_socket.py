"""A client's TCP connection as the kernel has it: its options, its peer, whether that has left.

What goes over it is `session`'s matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Any

#: How long bytes may be on their way to a client without being acknowledged: then its machine is
#: taken to be dead. The kernel is only the last to do so, see `client_watch`.
USER_TIMEOUT_MS = 15_000

#: A silent client is asked by the kernel whether its machine is there: first, and then so often.
_PROBE_AFTER_S = 5
_PROBE_EVERY_S = 3

#: An answer waits for nothing. Telnet's Synch has its DM sent urgently: out of line it would be
#: missing behind its IAC.
_SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
)

#: What a socket raises once its connection has ended: OSError (bad descriptor) on asyncio's loop,
#: ValueError (negative descriptor) on uvloop.
_ENDED = (OSError, ValueError)

#: States of a TCP connection whose peer will send no more, linux/tcp_states.h.
_TCP_CLOSE = 7
_TCP_CLOSE_WAIT = 8
_TCP_LAST_ACK = 9

#: Where `struct tcp_info` has what TcpLink tells: linux/tcp.h.
_TCPI_RETRANSMITS_OFFSET = 2
_TCPI_PROBES_OFFSET = 3
_TCPI_UNACKED_OFFSET = 24
_TCPI_LAST_DATA_RECV_MS_OFFSET = 52
_TCPI_LAST_ACK_RECV_MS_OFFSET = 56
_TCPI_NOTSENT_BYTES_OFFSET = 144
_TCP_INFO_BYTES = 148


@dataclass(frozen=True, slots=True)
class TcpLink:
    """What the kernel knows of the way to a peer.

    `silence_s` is how long nothing at all has come from it, not even an acknowledgement;
    `unanswered` how often it has been sent something (again) since then: a probe, or bytes.
    `is_unacked` is true when bytes are on their way, `unsent_bytes` are not even that.
    """

    silence_s: float
    unanswered: int
    is_unacked: bool
    unsent_bytes: int


def kernel_socket(transport: asyncio.Transport) -> socket.socket | None:
    """Return the socket of a connection; None once it has ended, on uvloop.

    A socket that was got before can be kept: `tcp_link` and `set_option` bear its end.
    """
    connection: socket.socket | None = transport.get_extra_info("socket")
    return connection


def set_option(connection: socket.socket | None, level: int, option: int, value: int) -> None:
    """Set an option of a connection; does nothing once that has ended, which is reported soon."""
    if connection is not None:
        with contextlib.suppress(*_ENDED):
            connection.setsockopt(level, option, value)


def _tcp_info(connection: socket.socket | None, n_bytes: int) -> bytes | None:
    """Return the first bytes of `struct tcp_info`; None once the connection has ended."""
    if connection is not None:
        with contextlib.suppress(*_ENDED):
            return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, n_bytes)
    return None


def tcp_link(connection: socket.socket | None) -> TcpLink | None:
    """What the kernel knows now; None if the connection is gone."""
    info = _tcp_info(connection, _TCP_INFO_BYTES)
    if info is None:
        return None

    def number_at(offset: int) -> int:
        number: int = struct.unpack_from("I", info, offset)[0]
        return number

    silence_ms = min(
        map(number_at, (_TCPI_LAST_DATA_RECV_MS_OFFSET, _TCPI_LAST_ACK_RECV_MS_OFFSET))
    )
    return TcpLink(
        silence_s=silence_ms / 1000,
        unanswered=info[_TCPI_RETRANSMITS_OFFSET] + info[_TCPI_PROBES_OFFSET],
        is_unacked=number_at(_TCPI_UNACKED_OFFSET) > 0,
        unsent_bytes=number_at(_TCPI_NOTSENT_BYTES_OFFSET),
    )


def probe_every_second(connection: socket.socket | None, wanted: bool) -> None:
    """Have the kernel ask at once, unless the peer was heard of within a second, and go on so.

    Nothing is asked while bytes are on their way: they are sent again instead.
    """
    for option, seconds in (
        (socket.TCP_KEEPINTVL, 1 if wanted else _PROBE_EVERY_S),
        (socket.TCP_KEEPIDLE, 1 if wanted else _PROBE_AFTER_S),
    ):
        set_option(connection, socket.IPPROTO_TCP, option, seconds)


def set_options(connection: socket.socket) -> None:
    """Answer at once, and notice a client's machine that has died (see _SOCKET_OPTIONS)."""
    for option in _SOCKET_OPTIONS:
        connection.setsockopt(*option)


def sends_no_more(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed its end, though there may be bytes left to read."""
    info = _tcp_info(kernel_socket(transport), 1)
    return info is None or info[0] in {_TCP_CLOSE, _TCP_CLOSE_WAIT, _TCP_LAST_ACK}


def reason_of(error: Exception) -> str:
    """Why a connection has ended, in the kernel's words."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return (strerror or str(error)).lower()


def _peer(transport: asyncio.Transport) -> tuple[Any, ...] | None:
    """Return the peer's socket address; None if the connection ended before it was asked for."""
    try:
        peer: tuple[Any, ...] | None = transport.get_extra_info("peername")
    except AttributeError:  # uvloop's closed transport looks for it in the socket that it had
        return None
    return peer


def peer_name(transport: asyncio.Transport) -> str:
    """`address:port` of the client; a client that is gone already has no name.

    Behind it, in parentheses, who its certificate says it is, if it has one.
    """
    peer = _peer(transport)
    identity = transport.get_extra_info("peer_identity")
    suffix = f" ({identity})" if identity else ""
    if not peer:
        return f"unknown{suffix}"
    host, tcp_port = peer[:2]
    return (f"[{host}]:{tcp_port}" if ":" in host else f"{host}:{tcp_port}") + suffix


def peer_host(transport: asyncio.Transport) -> str:
    """The address of the client; one that is gone already has none."""
    peer = _peer(transport)
    return str(peer[0]) if peer else ""


def peer_origin(transport: asyncio.Transport) -> str:
    """The address of the client, and the name in its certificate if it has one: the same for each
    of its connections.
    """
    identity = transport.get_extra_info("peer_identity")
    return peer_host(transport) + (f" ({identity})" if identity else "")
