"""The running gateway: a device and a listener or dialer per port, from start to end.

What one port does is these three's matter; arguments and output are `cli`'s.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog

from gateway.config import GatewayConfig, PortConfig, Protocol
from gateway.device import Device, DeviceState
from gateway.dialer import Dialer
from gateway.errors import DeviceError
from gateway.listener import Listener
from gateway.protocol.access_server import AccessServer
from gateway.protocol.raw import RawPipe
from gateway.sd_notify import Notifier
from gateway.sd_report import Counts, SdReport
from gateway.serial_tty import TtyLocation

if TYPE_CHECKING:
    from gateway.simulator.host import SimulatedBoard

_SIMULATED = "sim://"

#: A device whose board has vanished under its client counts in two ways.
_OPEN = {DeviceState.IDLE, DeviceState.IN_USE, DeviceState.RELEASING}
_IN_USE = {DeviceState.IN_USE, DeviceState.AWAY}
_ABSENT = {DeviceState.ABSENT, DeviceState.AWAY}


@dataclass(slots=True)
class _Port:
    """What runs for one entry of the configuration."""

    config: PortConfig
    device: Device
    way_in: Listener | Dialer
    board: SimulatedBoard | None


class Service:
    """Serves a configuration from `start` to `stop`; made and used on the loop."""

    def __init__(self) -> None:
        self._ports: list[_Port] = []
        self._log = structlog.get_logger()
        self._signature = f"esp-serial-gateway {version('esp-serial-gateway')}"

    async def start(self, config: GatewayConfig) -> None:
        """Serve every port of `config`.

        Devices that are absent and addresses that can't be bound are tried again for ever.
        Raises DeviceError when a simulated board does not start.
        """
        self._log.info("service_started", version=self._signature, ports=len(config.ports))
        try:
            # All are waited for when one fails, so that `stop` knows of all that run.
            failures = await asyncio.gather(
                *(self._start_port(port) for port in config.ports), return_exceptions=True
            )
        finally:
            self._ports.sort(key=lambda port: config.ports.index(port.config))
        for failure in failures:
            if failure is not None:
                raise failure

    async def stop(self) -> None:
        """End the sessions, release the lines, close the ports; bounded to less than 2 s."""
        reason = "the gateway is shutting down"
        # While a device finishes with its last client, that client reads its last bytes.
        ways_in = [port.way_in.stop(reason) for port in self._ports]
        devices = [port.device.stop() for port in self._ports]
        await asyncio.gather(*ways_in, *devices)
        boards = [port.board for port in self._ports if port.board is not None]
        await asyncio.gather(*(board.stop() for board in boards))
        self._log.info("service_stopped")

    def tcp_ports(self) -> dict[str, int | None]:
        """The TCP port of each entry by its name, in the order of the configuration.

        None where it could not be bound, and where nothing is listened on.
        """
        return {port.config.name: port.way_in.tcp_port for port in self._ports}

    def counts(self) -> Counts:
        """How many ports there are, and how many of them are in which state now."""
        states = [port.device.state for port in self._ports]
        return Counts(
            ports=len(states),
            listening=sum(port.way_in.is_ready for port in self._ports),
            open=sum(state in _OPEN for state in states),
            in_use=sum(state in _IN_USE for state in states),
            absent=sum(state in _ABSENT for state in states),
            broken=states.count(DeviceState.BROKEN),
        )

    def refuse_reload(self) -> None:
        """SIGHUP, which would end the process: its file is read at the start only."""
        self._log.warning("reload_refused", reason="restart the service to read its file again")

    async def _start_port(self, config: PortConfig) -> None:
        log = self._log.bind(device=config.name)
        board = await _start_board(config.device) if _is_simulated(config) else None
        location = _location_of(board) if board is not None else TtyLocation(config.device)
        device = Device(config, lambda: location, log)
        converse = RawPipe if config.protocol is Protocol.RAW else self._access_server
        way_in: Listener | Dialer
        if config.connect is not None:
            way_in = Dialer(config.connect, device, converse, log)
        else:
            way_in = Listener(config, device, converse, log)
        self._ports.append(_Port(config, device, way_in, board))
        device.start()
        await way_in.start()

    def _access_server(self) -> AccessServer:
        return AccessServer(self._signature)


async def serve(config: GatewayConfig, started: Callable[[Service], None] = lambda _: None) -> None:
    """Serve until SIGINT or SIGTERM, then stop cleanly. `started` is called when all is up."""
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop.set)
    service = Service()
    loop.add_signal_handler(signal.SIGHUP, service.refuse_reload)
    report = SdReport(Notifier(), service.counts)
    try:
        await service.start(config)
        report.start()
        started(service)
        await asked_to_stop.wait()
    finally:
        report.stop()
        await service.stop()


def _is_simulated(config: PortConfig) -> bool:
    return config.device.startswith(_SIMULATED)


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
