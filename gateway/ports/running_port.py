"""What runs for one entry of the configuration: its device, its way in, its simulated board.

Which entries run is `service`'s matter; what each part does is its own.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import structlog

from gateway import __version__
from gateway.config.document import PortConfig, Protocol
from gateway.config.usb_match import UsbTty
from gateway.devices.device import Device
from gateway.devices.device_state import DeviceState
from gateway.errors import DeviceError
from gateway.mdns.dns_sd import PortFacts
from gateway.net.access import AcceptOptions, Admission, Rejection
from gateway.net.tls_context import TlsContext, TlsContexts
from gateway.ports.dialer import Dialer
from gateway.ports.listener import Listener
from gateway.protocol.access_server import AccessServer, RawPipe
from gateway.protocol.board_kinds import row_of
from gateway.status import NOT_CONNECTED, PortSnapshot
from gateway.tty.lasting_port import Locate
from gateway.tty.serial_tty import TtyLocation

if TYPE_CHECKING:
    from gateway.simulator.host import SimulatedBoard


#: What RFC 2217 clients that ask for the server's signature get.
_SIGNATURE = f"esp-serial-gateway {__version__}"


class RunningPort:
    """One entry being served; made by `start_port`."""

    def __init__(
        self,
        config: PortConfig,
        device: Device,
        way_in: Listener | Dialer,
        board: SimulatedBoard | None,
    ) -> None:
        self.config = config
        self.device = device
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
        await asyncio.gather(self.way_in.stop(reason), self.device.stop(reason))
        if self._board is not None:
            await self._board.stop()

    def snapshot(self) -> PortSnapshot:
        """How it is now."""
        device = self.device
        status = device.status if device.is_open else None
        state, reason = device.state.value, device.reason
        if device.state is DeviceState.IDLE and isinstance(self.way_in, Dialer):
            state, reason = NOT_CONNECTED, self.way_in.trouble
        return PortSnapshot(
            name=self.config.name,
            address=self._address(),
            device=str(self.config.device),
            state=state,
            reason=reason,
            client=device.users.names,
            since=device.users.since,
            watchers=device.users.watchers,
            settings="" if status is None else str(status.settings),
            lines="" if status is None else str(status.lines),
            received_bytes=device.received_bytes,
            sent_bytes=device.sent_bytes,
            sessions=device.sessions,
            refused=device.users.refused,
            not_allowed=self.way_in.rejected[Rejection.NOT_ALLOWED],
            output_dropped_bytes=device.users.output_dropped_bytes,
            input_dropped_bytes=device.counts.input_dropped_bytes,
            too_many=self.way_in.rejected[Rejection.TOO_MANY],
            not_secured=self.way_in.rejected[Rejection.NOT_SECURED],
            other_protocol=self.way_in.rejected[Rejection.OTHER_PROTOCOL],
            protocol=self.config.protocol.value,
            baudrate=self.config.serial.baudrate,
            tls=self.config.tls is not None,
        )

    def announced(self, tty: UsbTty | None) -> PortFacts | None:
        """What the network is told of it, None while nobody can connect.

        `tty` is its USB device, if that is known.
        """
        if isinstance(self.way_in, Dialer) or self.way_in.tcp_port is None:
            return None
        ids = self.device.usb_ids if tty is None else (tty.vendor_id, tty.product_id)
        row = row_of(ids)
        return PortFacts(
            name=self.config.name,
            listens_at=self.way_in.addresses,
            tcp_port=self.way_in.tcp_port,
            protocol=self.config.protocol.value,
            kind="" if row is None else row.kind.value,
            chip="" if row is None else row.name,
            usb="" if ids is None else f"{ids[0]:04x}:{ids[1]:04x}",
            serial="" if tty is None else tty.serial,
            has_tls=self.config.tls is not None,
            is_present=self.device.state not in {DeviceState.ABSENT, DeviceState.BROKEN},
        )

    def _address(self) -> str:
        if self.config.connect is not None:
            return f"-> {self.config.connect}"
        tcp_port = self.way_in.tcp_port
        return "" if tcp_port is None else f"{self.config.host}:{tcp_port}"


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
    device = Device(config, locate if board is None else partial(_location_of, board), log)

    def converse() -> AccessServer | RawPipe:
        return RawPipe() if config.protocol is Protocol.RAW else AccessServer(_SIGNATURE)

    way_in: Listener | Dialer
    if config.connect is not None:
        way_in = Dialer(config, device, converse, log, tls)
    else:
        way_in = Listener(config, device, converse, log, AcceptOptions(admission, tls))
    port = RunningPort(config, device, way_in, board)
    try:
        device.start()
        await way_in.start()
    except BaseException:
        await port.stop("the gateway is shutting down")
        raise
    return port


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
