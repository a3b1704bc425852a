"""The running gateway: which entries of the configuration are served, from start to end.

What runs for one entry is `running_port`'s matter; arguments and output are `cli`'s.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from gateway import __version__
from gateway.config.document import GatewayConfig, HttpConfig, PortConfig
from gateway.mdns.announcer import Announcer
from gateway.mdns.dns_sd import PortFacts
from gateway.net.access import Admission
from gateway.net.tls_context import TlsContexts
from gateway.port_document import PortState, service_json
from gateway.ports.running_port import RunningPort, document, start_port
from gateway.reload import Reloader
from gateway.runtime import call_blocking, raise_descriptor_limit, reserved_descriptors
from gateway.status import SocketInUseError, StatusError, StatusServer
from gateway.systemd import Counts, ManagerReports, Notifier
from gateway.usb.inventory import Inventory, UsbSource
from gateway.usb.pools import default_folder

if TYPE_CHECKING:
    from gateway.web.server import HttpService

#: A device whose board has vanished under its client counts in two ways.
_OPEN = {PortState.IDLE, PortState.NOT_CONNECTED, PortState.IN_USE, PortState.CLEANUP}
_IN_USE = {PortState.IN_USE, PortState.OFFLINE}
_ABSENT = {PortState.ABSENT, PortState.OFFLINE}


@dataclass(frozen=True, slots=True)
class _Changes:
    """What came of making what runs what is wanted: names of ports, and why some did not start."""

    started: set[str]
    stopped: set[str]
    unchanged: int
    failures: list[BaseException]


class Service:
    """Serves a configuration from `start` to `stop`; made and used on the loop.

    What is to be remembered over a restart is kept in `state_folder`.
    """

    def __init__(self, state_folder: Path | None = None, usb: UsbSource | None = None) -> None:
        self._ports: list[RunningPort] = []
        self._n_wanted = 0  # ports that are served or being started
        self._log = structlog.get_logger()
        folder = state_folder or default_folder(os.environ)
        self._inventory = Inventory(
            folder, self._log, usb or UsbSource(), self._rescan, self._ports_changed
        )
        self._tls_contexts = TlsContexts(self._log)
        self._admission = Admission()
        self._reconciling = asyncio.Lock()  # held while ports are started or stopped
        self._ports_are_old = False  # what runs is not what the inventory wants
        self._following: asyncio.Task[None] | None = None
        self._entries_known = False  # `_n_wanted` is the number of the configuration
        self._http: HttpService | None = None  # once a configuration has asked for it
        self._announcer = Announcer(self._announced)
        self._stopping = False

    async def start(self, config: GatewayConfig) -> None:
        """Serve every port of `config`; may be cancelled at any time, `stop` must follow then.

        Devices that are absent and addresses that can't be bound are retried indefinitely.
        Raises DeviceError when a simulated board does not start.
        """
        self._tell_warnings(config)
        entries = len(config.ports) + len(config.pools)
        self._log.info("service_started", version=__version__, ports=entries)
        async with self._reconciling:
            self._admission.connections.limits = config.connections
            await self._inventory.start(config)
            for failure in (await self._reconcile()).failures:
                raise failure
            await self._follow_http(config.http)
        self._announcer.follow(config.mdns)

    async def reload(self, config: GatewayConfig) -> None:
        """Serve `config` from now on; entries that have not changed go on undisturbed."""
        self._tell_warnings(config)
        async with self._reconciling:
            self._admission.connections.limits = config.connections
            await self._tls_contexts.renew()
            await self._inventory.reconfigure(config)
            changes = await self._reconcile()
            await self._follow_http(config.http)
        self._announcer.follow(config.mdns)
        self._tell_failures(changes)
        self._log.info(
            "configuration_reloaded",
            added=sorted(changes.started - changes.stopped),
            removed=sorted(changes.stopped - changes.started),
            changed=sorted(changes.started & changes.stopped),
            unchanged=changes.unchanged,
        )

    def reopen_logs(self) -> None:
        """Open all log files of boards again by their names: they may have been moved."""
        for port in self._ports:
            port.device.reopen_log()

    async def stop(self) -> None:
        """End the sessions, release the lines, close the ports; bounded to less than 2 s."""
        self._stopping = True
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        if self._http is not None:
            await self._http.stop()
        stopping = [port.stop("the gateway is shutting down") for port in self._ports]
        await asyncio.gather(self._announcer.stop(), self._inventory.stop(), *stopping)
        self._log.info("service_stopped")

    def snapshot(self) -> str:
        """How all ports are now, as one line of JSON."""
        return service_json(__version__, map(document, self._ports), self._inventory.not_served())

    def _announced(self) -> Iterator[PortFacts]:
        return filter(None, (PortFacts.of(document(port)) for port in self._ports))

    def tcp_ports(self) -> dict[str, int | None]:
        """The TCP port of each entry by its name, in the order of the configuration.

        None where it could not be bound, and where nothing is listened on.
        """
        return {port.config.name: port.way_in.tcp_port for port in self._ports}

    @property
    def http_port(self) -> int | None:
        """The TCP port of the HTTP server; None without one, or where it could not be bound."""
        return None if self._http is None else self._http.tcp_port

    def counts(self) -> Counts | None:
        """Count the ports by state; None before it is known which ports there are."""
        if not self._entries_known:
            return None
        states = [port.state for port in self._ports]
        return Counts(
            ports=self._n_wanted,
            listening=sum(port.way_in.is_ready for port in self._ports),
            open=sum(state in _OPEN for state in states),
            in_use=sum(state in _IN_USE for state in states),
            absent=sum(state in _ABSENT for state in states),
            broken=states.count(PortState.BROKEN),
        )

    def _rescan(self, name: str) -> None:
        for port in self._ports:
            if port.config.name == name:
                port.device.look_again()

    def _ports_changed(self) -> None:
        """Start and stop ports, when what is being started or stopped already has been."""
        self._ports_are_old = True
        if self._following is None and not self._stopping:
            self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        try:
            while self._ports_are_old and not self._stopping:
                async with self._reconciling:
                    self._tell_failures(await self._reconcile())
        finally:
            self._following = None

    async def _reconcile(self) -> _Changes:
        """Stop the ports that are not wanted, start those that are wanted and do not run."""
        self._ports_are_old = False
        wanted = {port.name: port for port in self._inventory.ports()}
        self._n_wanted, self._entries_known = len(wanted), True
        self._admission.reserved_descriptors = reserved_descriptors(len(wanted))
        leaving = [port for port in self._ports if wanted.get(port.config.name) != port.config]
        # First those that go: their addresses and devices may be wanted by others.
        await asyncio.gather(*(port.stop("its configuration has changed") for port in leaving))
        self._ports = [port for port in self._ports if port not in leaving]
        kept = {port.config.name for port in self._ports}
        coming = [port for name, port in wanted.items() if name not in kept]
        failures = await self._start_ports(coming)
        names = list(wanted)
        self._ports.sort(key=lambda port: names.index(port.config.name))
        return _Changes(
            started={port.name for port in coming},
            stopped={port.config.name for port in leaving},
            unchanged=len(kept),
            failures=failures,
        )

    async def _start_ports(self, ports: list[PortConfig]) -> list[BaseException]:
        """Start these ports; return the exceptions. `stop` knows all that have been started."""
        tasks = [asyncio.create_task(self._start_port(port)) for port in ports]
        if not tasks:
            return []
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise
        return [error for task in tasks if (error := task.exception()) is not None]

    async def _start_port(self, port: PortConfig) -> None:
        locate = partial(self._inventory.locate, port)
        running = await start_port(port, locate, self._log, self._tls_contexts, self._admission)
        running.usb_tty = partial(self._inventory.tty_of, port)
        self._ports.append(running)

    async def _follow_http(self, config: HttpConfig | None) -> None:
        if self._http is None:
            if config is None:
                return
            # On a thread: importing the server takes as long as the rest of the start.
            http_service = await call_blocking(_import_http_service, "HTTP server")
            self._http = http_service(
                __version__,
                lambda: self._ports,
                self._inventory.not_served,
                self._tls_contexts,
                self._admission,
            )
        await self._http.follow(config)

    def _tell_warnings(self, config: GatewayConfig) -> None:
        for warning in config.warnings:
            self._log.warning("configuration_doubtful", problem=str(warning))

    def _tell_failures(self, changes: _Changes) -> None:
        for failure in changes.failures:
            self._log.error("port_not_started", reason=str(failure))


def _import_http_service() -> type[HttpService]:
    from gateway.web.server import HttpService  # noqa: PLC0415 - only where it is configured

    return HttpService


async def serve(
    config: GatewayConfig,
    *,
    load: Callable[[], GatewayConfig] | None = None,
    status_path: Path | None = None,
    started: Callable[[Service], None] = lambda _: None,
    state_folder: Path | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then stop cleanly, also while it still starts.

    `started` is called when all ports have been started. SIGHUP makes it `load` the configuration
    again and open log files again; without `load` it stops. The status is served on a socket at
    `status_path`.
    """
    loop = asyncio.get_running_loop()
    stop_requested = asyncio.Event()
    # Before anything that takes time: until then these signals kill the process.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop_requested.set)
    raise_descriptor_limit()
    service = Service(state_folder)
    report = ManagerReports(Notifier(), service.counts)
    reloader = Reloader(
        load or (lambda: config), service.reload, report.reload_started, report.reload_ended
    )

    def hang_up() -> None:
        service.reopen_logs()
        reloader.request()

    if load is not None:
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        loop.add_signal_handler(signal.SIGHUP, stop_requested.set)
    status = StatusServer(status_path, service.snapshot) if status_path is not None else None
    report.start()
    try:
        if await _start_unless(stop_requested, _start(service, config, status)):
            report.update()
            started(service)
            await stop_requested.wait()
    finally:
        report.stop()
        if status is not None:
            status.stop()
        await reloader.stop()
        await service.stop()


async def _start(service: Service, config: GatewayConfig, status: StatusServer | None) -> None:
    await service.start(config)
    await _try_to_start(status)


async def _start_unless(
    stop_requested: asyncio.Event, starting: Coroutine[None, None, None]
) -> bool:
    """Run `starting` to its end, or cancel it when a stop is requested; whether it has ended."""
    start = asyncio.create_task(starting)
    stop = asyncio.create_task(stop_requested.wait())
    try:
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        if not start.done():
            start.cancel()
            await asyncio.wait({start})
    if start.cancelled():
        return False
    start.result()
    return True


async def _try_to_start(status: StatusServer | None) -> None:
    """Without its status socket the service still serves: another one may have it."""
    if status is None:
        return
    log = structlog.get_logger()
    try:
        await status.start()
    except SocketInUseError as error:  # two gateways on one host are nothing to mend
        log.info("status_not_served", reason=str(error))
    except (OSError, StatusError) as error:
        log.warning("status_not_served", reason=str(error))
    else:
        log.info("status_served", path=str(status.path))
