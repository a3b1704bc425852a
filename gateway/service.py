"""The running gateway: which entries of the configuration are served, from start to end.

What runs for one entry is `running_port`'s matter; arguments and output are `cli`'s.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import structlog

from gateway.config import GatewayConfig, PortConfig
from gateway.device import DeviceState
from gateway.reload import Reloader
from gateway.running_port import RunningPort, start_port
from gateway.sd_notify import Notifier
from gateway.sd_report import Counts, SdReport
from gateway.status import to_json
from gateway.status_socket import StatusServer

#: A device whose board has vanished under its client counts in two ways.
_OPEN = {DeviceState.IDLE, DeviceState.IN_USE, DeviceState.RELEASING}
_IN_USE = {DeviceState.IN_USE, DeviceState.AWAY}
_ABSENT = {DeviceState.ABSENT, DeviceState.AWAY}


class Service:
    """Serves a configuration from `start` to `stop`; made and used on the loop."""

    def __init__(self) -> None:
        self._ports: list[RunningPort] = []
        self._log = structlog.get_logger()
        self._version = version("esp-serial-gateway")

    async def start(self, config: GatewayConfig) -> None:
        """Serve every port of `config`.

        Devices that are absent and addresses that can't be bound are tried again for ever.
        Raises DeviceError when a simulated board does not start.
        """
        self._log.info("service_started", version=self._version, ports=len(config.ports))
        for failure in await self._start_ports(config.ports, config):
            raise failure

    async def reload(self, config: GatewayConfig) -> None:
        """Serve `config` from now on; entries that have not changed go on undisturbed."""
        wanted = {port.name: port for port in config.ports}
        running = {port.config.name: port for port in self._ports}
        leaving = [port for port in self._ports if wanted.get(port.config.name) != port.config]
        staying = [port for port in self._ports if port not in leaving]
        # First those that go: their addresses and devices may be wanted by others.
        await self._stop_ports(leaving, "its configuration has changed")
        self._ports = staying
        kept = {port.config.name for port in staying}
        coming = [port for port in config.ports if port.name not in kept]
        for failure in await self._start_ports(coming, config):
            self._log.error("port_not_started", reason=str(failure))
        self._log.info(
            "configuration_reloaded",
            added=[port.name for port in coming if port.name not in running],
            removed=[name for name in running if name not in wanted],
            changed=[port.name for port in coming if port.name in running],
            unchanged=len(kept),
        )

    async def stop(self) -> None:
        """End the sessions, release the lines, close the ports; bounded to less than 2 s."""
        await self._stop_ports(self._ports, "the gateway is shutting down")
        self._log.info("service_stopped")

    def snapshot(self) -> str:
        """How all ports are now, as one line of JSON (see `status`)."""
        return to_json(self._version, (port.snapshot() for port in self._ports))

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

    async def _start_ports(
        self, ports: Iterable[PortConfig], config: GatewayConfig
    ) -> list[BaseException]:
        """Start these; return what has failed. All are waited for, so that `stop` knows them."""
        signature = f"esp-serial-gateway {self._version}"
        results = await asyncio.gather(
            *(start_port(port, signature, self._log) for port in ports), return_exceptions=True
        )
        self._ports += [result for result in results if isinstance(result, RunningPort)]
        names = [port.name for port in config.ports]
        self._ports.sort(key=lambda port: names.index(port.config.name))
        return [result for result in results if isinstance(result, BaseException)]

    async def _stop_ports(self, ports: list[RunningPort], reason: str) -> None:
        await asyncio.gather(*(port.stop(reason) for port in ports))


async def serve(
    config: GatewayConfig,
    *,
    load: Callable[[], GatewayConfig] | None = None,
    status_path: Path | None = None,
    started: Callable[[Service], None] = lambda _: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then stop cleanly. `started` is called when all is up.

    SIGHUP makes it `load` the configuration again, if there is something to load. The status is
    told on a socket at `status_path`.
    """
    loop = asyncio.get_running_loop()
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop.set)
    service = Service()
    report = SdReport(Notifier(), service.counts)
    reloader = Reloader(
        load or (lambda: config), service.reload, report.reload_started, report.reload_ended
    )
    loop.add_signal_handler(signal.SIGHUP, reloader.request)
    status = StatusServer(status_path, service.snapshot) if status_path is not None else None
    try:
        await service.start(config)
        await _try_to_start(status)
        report.start()
        started(service)
        await asked_to_stop.wait()
    finally:
        report.stop()
        if status is not None:
            status.stop()
        await reloader.stop()
        await service.stop()


async def _try_to_start(status: StatusServer | None) -> None:
    """Without its status socket the service still serves: another one may have it."""
    if status is None:
        return
    log = structlog.get_logger()
    try:
        await status.start()
    except OSError as error:
        log.info("status_not_served", reason=str(error))
    else:
        log.info("status_served", path=str(status.path))
