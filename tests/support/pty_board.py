"""A gateway in the test's own loop that serves a board on a pty: its device and its listener."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from gateway import clock
from gateway.config.document import (
    OnAbsent,
    OnConnect,
    OnDisconnect,
    PortConfig,
    Protocol,
    Recording,
    Sharing,
)
from gateway.config.usb_match import DeviceChoice
from gateway.net.access import AcceptOptions, Admission
from gateway.net.tls_context import TlsContext
from gateway.port.port import Port
from gateway.port_document import PortState
from gateway.protocol.access_server import AccessServer
from gateway.protocol.reset import ResetChoice
from gateway.protocol.serial_settings import SerialSettings
from gateway.session.listener import Listener
from gateway.session.requests import Conversation
from gateway.session.session import Session, SessionState
from tests.support.clock import ControlledClock
from tests.support.tty_board import LIMIT_S, LoopClock, PtyBoard, turns, until

__all__ = [
    "LIMIT_S",
    "LoopClock",
    "PtyBoard",
    "Served",
    "access_server",
    "pass_silence",
    "port_config",
    "port_of",
    "serving",
    "turns",
    "until",
]


async def pass_silence(sessions: Callable[[], Iterable[Session]]) -> None:
    """Let a held clock move until no session waits for the first bytes of a silent client."""
    installed = clock.installed()
    assert isinstance(installed, ControlledClock)
    await until(sessions)
    waiting = {SessionState.NEW, SessionState.SCREENING}
    while any(session.state in waiting for session in sessions()):
        if installed.is_held:
            installed.advance(0.05)
        await turns(1)


@dataclass(frozen=True)
class Served:
    """A board behind a listener."""

    board: PtyBoard
    port: Port
    listener: Listener
    admission: Admission

    @property
    def tcp_port(self) -> int:
        """Where clients connect."""
        tcp_port = self.listener.tcp_port
        assert tcp_port is not None
        return tcp_port

    @property
    def sessions(self) -> set[Session]:
        """The sessions that have not ended."""
        return set(self.listener._sessions)

    async def session(self) -> Session:
        """The session that has the device, once there is one; a held clock moves for it."""
        await pass_silence(lambda: self.sessions)
        await until(lambda: self.active)
        return self.active[0]

    @property
    def active(self) -> list[Session]:
        """The session that has the device, if any."""
        return [session for session in self.sessions if session.state is SessionState.ACTIVE]

    def states(self) -> list[str]:
        """The states of all sessions."""
        return sorted(session.state.value for session in self.sessions)

    async def until_idle(self) -> None:
        """Wait until nobody is connected and the device can be had."""
        await until(lambda: not self.sessions and self.port.state is PortState.IDLE)


def port_config(
    name: str = "desk",
    tcp_port: int = 0,
    *,
    on_connect: OnConnect = OnConnect.NOTHING,
    on_disconnect: OnDisconnect = OnDisconnect.NOTHING,
) -> PortConfig:
    """A port on loopback; what it says of its device's path is not used."""
    return PortConfig(
        name,
        host="127.0.0.1",
        tcp_port=tcp_port,
        connect=None,
        device=DeviceChoice(("/dev/null",)),
        serial=SerialSettings(),
        resets=ResetChoice(hold_s=1.0),
        grace_s=0.0,
        on_absent=OnAbsent.REFUSE,
        protocol=Protocol.RFC2217,
        on_connect=on_connect,
        on_disconnect=on_disconnect,
    )


def access_server() -> Conversation:
    """What clients are served with unless a test says otherwise."""
    return AccessServer("gateway under test")


def port_of(
    board: PtyBoard,
    name: str = "desk",
    *,
    on_connect: OnConnect = OnConnect.NOTHING,
    on_disconnect: OnDisconnect = OnDisconnect.NOTHING,
    recording: Recording | None = None,
    sharing: Sharing = Sharing.EXCLUSIVE,
    on_absent: OnAbsent = OnAbsent.REFUSE,
    resets: ResetChoice | None = None,
) -> Port:
    """A device for a board, not started."""
    log = structlog.get_logger().bind(device=name)
    config = port_config(name, on_connect=on_connect, on_disconnect=on_disconnect)
    config = replace(
        config,
        recording=recording or Recording(),
        sharing=sharing,
        on_absent=on_absent,
        resets=resets or config.resets,
    )
    return Port(config, lambda: board.location, log)


@asynccontextmanager
async def serving(
    board: PtyBoard,
    name: str = "desk",
    *,
    converse: Callable[[], Conversation] = access_server,
    on_connect: OnConnect = OnConnect.NOTHING,
    on_disconnect: OnDisconnect = OnDisconnect.NOTHING,
    recording: Recording | None = None,
    sharing: Sharing = Sharing.EXCLUSIVE,
    tls: TlsContext | None = None,
    admission: Admission | None = None,
) -> AsyncIterator[Served]:
    """Serve a board on a free TCP port of loopback; it is open when the body starts.

    Asserts in the end that no callback has raised.
    """
    port = port_of(
        board,
        name,
        on_connect=on_connect,
        on_disconnect=on_disconnect,
        recording=recording,
        sharing=sharing,
    )
    log = structlog.get_logger().bind(device=name)
    admission = admission or Admission()
    listener = Listener(port_config(name), port, converse, log, AcceptOptions(admission, tls))
    port.start()
    await until(lambda: port.state is PortState.IDLE)
    await listener.start()
    try:
        yield Served(board, port, listener, admission)
    finally:
        await asyncio.gather(listener.stop("the test is over"), port.stop())
