"""A client's TCP connection in the kernel: its options, its peer, the state of the link."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from dataclasses import dataclass
from typing import Any, Final

#: How long bytes to a client may stay unacknowledged: then the kernel takes its machine to be dead.
#: The last resort; the liveness checks of a session are faster.
USER_TIMEOUT_MS: Final = 15_000

#: The kernel probes a silent client's machine after this time, and then this often.
_PROBE_AFTER_S: Final = 5
_PROBE_EVERY_S: Final = 3

#: Answers are sent at once. Telnet's Synch sends its DM as urgent data, which must stay in line
#: behind its IAC.
_SOCKET_OPTIONS: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
    (socket.SOL_SOCKET, socket.SO_OOBINLINE, 1),
)

#: Errors of a socket whose connection has ended: OSError (bad descriptor) on asyncio's loop,
#: ValueError (negative descriptor) on uvloop.
_ENDED: Final = (OSError, ValueError)

#: States of a TCP connection whose peer sends nothing more: CLOSE, CLOSE_WAIT, LAST_ACK
#: (linux/tcp_states.h).
_PEER_CLOSED: Final = frozenset({7, 8, 9})

#: Offsets in `struct tcp_info` (linux/tcp.h).
_RETRANSMITS_AT: Final = 2
_PROBES_AT: Final = 3
_UNACKED_AT: Final = 24
_LAST_DATA_RECV_MS_AT: Final = 52
_LAST_ACK_RECV_MS_AT: Final = 56
_NOTSENT_BYTES_AT: Final = 144
_TCP_INFO_BYTES: Final = 148


@dataclass(frozen=True, slots=True)
class TcpLink:
    """The kernel's knowledge of the link to a peer.

    `silence_s` is the time without anything from the peer, acknowledgements included, `unanswered`
    the number of probes and retransmissions since then. `is_unacked`: bytes are on their way;
    `unsent_bytes` are not even that.
    """

    silence_s: float
    unanswered: int
    is_unacked: bool
    unsent_bytes: int


def kernel_socket(transport: asyncio.Transport) -> socket.socket | None:
    """Return the socket of a connection; None once it has ended, on uvloop.

    It can be kept: `tcp_link` and `set_option` handle its end.
    """
    connection: socket.socket | None = transport.get_extra_info("socket")
    return connection


def set_option(connection: socket.socket | None, level: int, option: int, value: int) -> None:
    """Set an option of a connection, unless that has ended, which is reported soon."""
    if connection is not None:
        with contextlib.suppress(*_ENDED):
            connection.setsockopt(level, option, value)


def _tcp_info(connection: socket.socket | None, n_bytes: int) -> bytes | None:
    if connection is not None:
        with contextlib.suppress(*_ENDED):
            return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, n_bytes)
    return None


def tcp_link(connection: socket.socket | None) -> TcpLink | None:
    """Return the state of the link now; None once the connection has ended."""
    info = _tcp_info(connection, _TCP_INFO_BYTES)
    if info is None:
        return None

    def number(offset: int) -> int:
        return int.from_bytes(info[offset : offset + 4], sys.byteorder)

    silence_ms = min(number(_LAST_DATA_RECV_MS_AT), number(_LAST_ACK_RECV_MS_AT))
    return TcpLink(
        silence_s=silence_ms / 1000,
        unanswered=info[_RETRANSMITS_AT] + info[_PROBES_AT],
        is_unacked=number(_UNACKED_AT) > 0,
        unsent_bytes=number(_NOTSENT_BYTES_AT),
    )


def probe_every_second(connection: socket.socket | None, wanted: bool) -> None:
    """Have the kernel probe each second, at once unless the peer was heard within a second.

    Unacknowledged bytes are retransmitted instead.
    """
    for option, seconds in (
        (socket.TCP_KEEPINTVL, 1 if wanted else _PROBE_EVERY_S),
        (socket.TCP_KEEPIDLE, 1 if wanted else _PROBE_AFTER_S),
    ):
        set_option(connection, socket.IPPROTO_TCP, option, seconds)


def set_options(connection: socket.socket) -> None:
    """Set the options of a client's connection (_SOCKET_OPTIONS). Raises OSError."""
    for option in _SOCKET_OPTIONS:
        connection.setsockopt(*option)


def sends_no_more(transport: asyncio.Transport) -> bool:
    """Return whether the peer has closed its end; there may be bytes left to read."""
    info = _tcp_info(kernel_socket(transport), 1)
    return info is None or info[0] in _PEER_CLOSED


def reason_of(error: Exception) -> str:
    """Return the kernel's reason, in lower case."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return (strerror or str(error)).lower()


def _peer(transport: asyncio.Transport) -> tuple[Any, ...]:
    """Return the peer's socket address; empty if the connection ended before the first call."""
    with contextlib.suppress(AttributeError):  # of uvloop's closed transport, without its socket
        return transport.get_extra_info("peername") or ()
    return ()


def _with_identity(transport: asyncio.Transport, text: str) -> str:
    identity = transport.get_extra_info("peer_identity")
    return f"{text} ({identity})" if identity else text


def peer_name(transport: asyncio.Transport) -> str:
    """Return `address:port` of the client, else `unknown`, with the name in its certificate."""
    name = "unknown"
    if peer := _peer(transport):
        host, tcp_port = peer[:2]
        name = f"[{host}]:{tcp_port}" if ":" in host else f"{host}:{tcp_port}"
    return _with_identity(transport, name)


def peer_host(transport: asyncio.Transport) -> str:
    """Return the address of the client; empty if the connection ended before the first call."""
    peer = _peer(transport)
    return str(peer[0]) if peer else ""


def peer_origin(transport: asyncio.Transport) -> str:
    """Return the client's address, with the name in its certificate.

    It is the same for each of the client's connections.
    """
    return _with_identity(transport, peer_host(transport))
