"""A client's TCP connection as the kernel has it: its options, its peer, whether that has left.

What goes over it is `session`'s matter.
"""

from __future__ import annotations

import asyncio
import socket

#: How long bytes may be on their way to a client without being acknowledged: then its machine is
#: taken to be dead.
USER_TIMEOUT_MS = 15_000

#: An answer waits for nothing. A client's machine that died is noticed within 14 s (5 s of
#: silence, 3 probes 3 s apart), or 15 s after data that it does not acknowledge. Telnet's Synch
#: has its DM sent urgently: out of line it would be missing behind its IAC.
_SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
)

#: States of a TCP connection whose peer will send no more, linux/tcp_states.h.
_TCP_CLOSE = 7
_TCP_CLOSE_WAIT = 8
_TCP_LAST_ACK = 9


def set_options(transport: asyncio.Transport) -> None:
    """Answer at once, and notice a client's machine that has died (see _SOCKET_OPTIONS)."""
    for option in _SOCKET_OPTIONS:
        transport.get_extra_info("socket").setsockopt(*option)


def sends_no_more(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed its end, though there may be bytes left to read."""
    connection = transport.get_extra_info("socket")
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state in {_TCP_CLOSE, _TCP_CLOSE_WAIT, _TCP_LAST_ACK}


def reason_of(error: Exception) -> str:
    """Why a connection has ended, in the kernel's words."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return (strerror or str(error)).lower()


def peer_name(transport: asyncio.Transport) -> str:
    """`address:port` of the client; a client that is gone already has no name."""
    peer = transport.get_extra_info("peername")
    if not peer:
        return "unknown"
    host, tcp_port = peer[:2]
    return f"[{host}]:{tcp_port}" if ":" in host else f"{host}:{tcp_port}"


def peer_host(transport: asyncio.Transport) -> str:
    """The address of the client; one that is gone already has none."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if peer else ""
