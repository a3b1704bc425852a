"""What runs for one entry of the configuration: its device, its way in, its simulated board.

`service` decides which entries run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import structlog

from gateway import __version__
from gateway.config.document import PortConfig, Protocol
from gateway.config.usb_match import UsbTty
from gateway.errors import DeviceError
from gateway.net.access import AcceptOptions, Admission, Rejection
from gateway.net.tls_context import TlsContext, TlsContexts
from gateway.port.board_tty import Locate
from gateway.port.port import Port
from gateway.port.recorder import Recorder
from gateway.port_document import (
    ClientDocument,
    ClientState,
    PortDocument,
    PortState,
    UsbDocument,
    utc_text,
)
from gateway.protocol.access_server import AccessServer, RawPipe
from gateway.protocol.board_kinds import UsbIds, row_of
from gateway.serialport.tty import TtyLocation
from gateway.session.dialer import Dialer
from gateway.session.listener import Listener

if TYPE_CHECKING:
    from gateway.simulator.host import SimulatedBoard


#: What RFC 2217 clients that ask for the server's signature get.
_SIGNATURE = f"esp-serial-gateway {__version__}"


class RunningPort:
    """One entry being served; made by `start_port`."""

    def __init__(
        self,
        config: PortConfig,
        port: Port,
        way_in: Listener | Dialer,
        board: SimulatedBoard | None,
    ) -> None:
        #: Returns the port's USB device, None where it is not known.
        self.usb_tty: Callable[[], UsbTty | None] = lambda: None
        self.config = config
        self.port = port
        self.way_in = way_in
        self._board = board
        self._stopping: asyncio.Task[None] | None = None

    async def stop(self, reason: str) -> None:
        """End its sessions, release the lines, close the port; bounded to less than 2 s.

        Runs once, to its end: cancelling a caller does not cancel it, and later callers wait for
        the same end.
        """
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(reason))
        await asyncio.shield(self._stopping)

    async def _stop(self, reason: str) -> None:
        # While the device finishes with its last client, that client reads its last bytes.
        await asyncio.gather(self.way_in.stop(reason), self.port.stop(reason))
        if self._board is not None:
            await self._board.stop()

    @property
    def recorder(self) -> Recorder:
        """The last of the board's output."""
        return self.port.recorder

    @property
    def state(self) -> PortState:
        """The state of the port."""
        return _state_of(self)[0]


def document(running: RunningPort) -> PortDocument:
    """Describe a port as it is now; all that documents need of it is asked for here."""
    config, port, way_in = running.config, running.port, running.way_in
    arbiter, counts = port.arbiter, port.counts
    state, reason = _state_of(running)
    status = port.status if port.has_status else None
    rejected = {each.value: way_in.rejected[each] for each in Rejection}
    listener = way_in if isinstance(way_in, Listener) else None
    return PortDocument(
        name=config.name,
        state=state,
        reason=reason,
        device=str(config.device),
        protocol=config.protocol.value,
        sharing=config.sharing.value,
        tls=config.tls is not None,
        host=config.host if config.connect is None else None,
        addresses=() if listener is None else listener.addresses,
        tcp_port=way_in.tcp_port if config.connect is None else None,
        connect=None if config.connect is None else str(config.connect),
        usb=_usb_of(port.usb_ids, running.usb_tty()),
        configured_baudrate=config.serial.baudrate,
        settings=None if status is None else status.settings,
        lines=None if status is None else status.lines,
        clients=tuple(
            ClientDocument(
                claim.label,
                ClientState.CONTROLLER if claim in arbiter.controllers else ClientState.SUSPENDED,
                utc_text(claim.made_at),
            )
            for claim in arbiter
        ),
        received_bytes=port.received_bytes,
        sent_bytes=port.sent_bytes,
        output_dropped_bytes=counts.output_dropped_bytes,
        input_dropped_bytes=counts.input_dropped_bytes,
        sessions=port.sessions,
        rejected={"unavailable": arbiter.refused, **rejected},
        reconnects=max(0, counts.opened - 1),
        peer_connected=way_in.is_connected if isinstance(way_in, Dialer) else None,
        dial_failures=way_in.failures if isinstance(way_in, Dialer) else 0,
        recorded_from=port.recorder.begin,
        recorded_to=port.recorder.end,
        resets=dict(counts.resets),
        control_calls=counts.control_calls.copy(),
    )


def _state_of(running: RunningPort) -> tuple[PortState, str]:
    """The state and its reason, which is empty where there is none."""
    port = running.port
    if port.state is PortState.IDLE and isinstance(running.way_in, Dialer):
        return PortState.NOT_CONNECTED, running.way_in.trouble
    return port.state, port.reason


def _usb_of(ids: UsbIds | None, tty: UsbTty | None) -> UsbDocument | None:
    """Describe the tty's USB device where it is known, else the one that was open last."""
    if tty is not None:
        ids = tty.vendor_id, tty.product_id
    if ids is None:
        return None
    row = row_of(ids)
    kind, chip = ("", "") if row is None else (row.kind.value, row.name)
    return UsbDocument(f"{ids[0]:04x}:{ids[1]:04x}", kind, chip, "" if tty is None else tty.serial)


async def start_port(
    config: PortConfig,
    locate: Locate,
    log: structlog.typing.FilteringBoundLogger,
    contexts: TlsContexts,
    admission: Admission,
) -> RunningPort:
    """Serve one entry; its device and its address are retried indefinitely.

    `locate` tells where its device is, if it is a real one. Raises DeviceError when a simulated
    board does not start, TlsFileError when a file for TLS can't be used. When cancelled, stops
    again what it has started.
    """
    log = log.bind(device=config.name)
    tls = await _tls_of(config, contexts)
    url = config.device.simulated
    board = await _start_board(url) if url is not None else None
    port = Port(config, locate if board is None else partial(_location_of, board), log)

    def converse() -> AccessServer | RawPipe:
        return RawPipe() if config.protocol is Protocol.RAW else AccessServer(_SIGNATURE)

    way_in: Listener | Dialer
    if config.connect is not None:
        way_in = Dialer(config, port, converse, log, tls)
    else:
        way_in = Listener(config, port, converse, log, AcceptOptions(admission, tls))
    running = RunningPort(config, port, way_in, board)
    try:
        port.start()
        await way_in.start()
    except BaseException:
        await running.stop("the gateway is shutting down")
        raise
    return running


async def _tls_of(config: PortConfig, contexts: TlsContexts) -> TlsContext | None:
    if config.tls is None:
        return None
    return await (contexts.server if config.connect is None else contexts.client)(config.tls)


async def _start_board(url: str) -> SimulatedBoard:
    # Imported only where a simulated board is asked for: a lab host has none.
    from gateway.simulator.host import start_board  # noqa: PLC0415
    from gateway.simulator.url import parse_url  # noqa: PLC0415

    try:
        return await start_board(parse_url(url))
    except OSError as error:
        raise DeviceError(f"{url}: {error}") from error


def _location_of(board: SimulatedBoard) -> TtyLocation:
    from gateway.simulator.host import SimulatedLines  # noqa: PLC0415

    return TtyLocation(
        str(board.by_path),
        open_lines=lambda: SimulatedLines(board.control_path),
        usb_ids=lambda: board.usb_ids,
    )
