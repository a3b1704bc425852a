"""The running gateway: serve the ports that are wanted, reload, stop cleanly.

`serve` is the life of the process, `Service` brings the running ports to what the configuration and
the plugged-in devices want, `Reloader` reads the file again.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from gateway import __version__, clock
from gateway.config.document import GatewayConfig, HttpConfig, PortConfig
from gateway.errors import ConfigError, GatewayError
from gateway.mdns.announcer import Announcer
from gateway.mdns.dns_sd import PortFacts
from gateway.net.access import Admission
from gateway.net.tls_context import TlsContexts
from gateway.port_document import PortState, service_json
from gateway.running_port import RunningPort, document, start_port
from gateway.runtime import call_blocking, raise_descriptor_limit, reserved_descriptors
from gateway.status import SocketInUseError, StatusError, StatusServer
from gateway.systemd import Counts, ManagerReports, Notifier
from gateway.usb.inventory import Inventory, UsbSource
from gateway.usb.pools import default_folder

if TYPE_CHECKING:
    from gateway.web.server import HttpService

#: How long reading the file may take before a reload is given up. Parsing the largest file that is
#: accepted takes 13 s on a PC; reading from a network mount that is gone never ends.
LOAD_LIMIT_S: Final = 60.0

#: A port whose board has vanished under its client counts in two ways.
_OPEN: Final = {PortState.IDLE, PortState.NOT_CONNECTED, PortState.IN_USE, PortState.CLEANUP}
_IN_USE: Final = {PortState.IN_USE, PortState.OFFLINE}
_ABSENT: Final = {PortState.ABSENT, PortState.OFFLINE}


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
    `status_path`. Raises DeviceError when a simulated board does not start.
    """
    loop = asyncio.get_running_loop()
    stop_requested = asyncio.Event()
    # Before anything that takes time: until then these signals kill the process.
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop_requested.set)
    raise_descriptor_limit()
    service = Service(state_folder)
    reports = ManagerReports(Notifier(), service.counts)
    reloader = Reloader(
        load or (lambda: config), service.reload, reports.reload_started, reports.reload_ended
    )
    status = StatusServer(status_path, service.snapshot) if status_path is not None else None

    def hang_up() -> None:
        service.reopen_logs()
        reloader.request()

    if load is not None:
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    elif signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        loop.add_signal_handler(signal.SIGHUP, stop_requested.set)

    async def run() -> None:
        await service.start(config)
        if status is not None:
            await _start_status(status)
        reports.update()
        started(service)
        await stop_requested.wait()

    reports.start()
    running = asyncio.create_task(run())
    stopping = asyncio.create_task(stop_requested.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        reports.stop()
        stopping.cancel()
        running.cancel()
        await asyncio.wait({running, stopping})
        if status is not None:
            status.stop()
        await reloader.stop()
        await service.stop()
    if not running.cancelled():
        running.result()


async def _start_status(status: StatusServer) -> None:
    log = structlog.get_logger()
    try:
        await status.start()
    except SocketInUseError as error:  # two gateways on one host are legitimate
        log.info("status_not_served", reason=str(error))
    except (OSError, StatusError) as error:  # the ports are served without it
        log.warning("status_not_served", reason=str(error))
    else:
        log.info("status_served", path=str(status.path))


@dataclass(frozen=True, slots=True)
class _Changes:
    """What a reconciliation has changed: names of ports, and why some did not start."""

    started: set[str]
    stopped: set[str]
    unchanged: int
    failures: list[Exception]


class Service:
    """Serves a configuration from `start` to `stop`; made and used on the loop.

    The table of pools is kept over a restart in `state_folder`.
    """

    def __init__(self, state_folder: Path | None = None, usb: UsbSource | None = None) -> None:
        self._log = structlog.get_logger()
        self._ports: list[RunningPort] = []  # in the order of the wanted ones
        self._wanted: dict[str, PortConfig] | None = None  # by name; None: not known yet
        self._wanted_has_changed = asyncio.Event()
        self._reconciling = asyncio.Lock()  # held while ports are started or stopped
        self._following: asyncio.Task[None] | None = None
        folder = state_folder or default_folder(os.environ)
        self._inventory = Inventory(
            folder, self._log, usb or UsbSource(), self._rescan, self._wanted_has_changed.set
        )
        self._tls_contexts = TlsContexts(self._log)
        self._admission = Admission()
        self._http: HttpService | None = None  # once a configuration has asked for it
        self._announcer = Announcer(self._announced)

    async def start(self, config: GatewayConfig) -> None:
        """Serve every port of `config`; may be cancelled at any time, `stop` must follow then.

        Devices that are absent and addresses that can't be bound are retried indefinitely.
        Raises DeviceError when a simulated board does not start.
        """
        self._log_warnings(config)
        entries = len(config.ports) + len(config.pools)
        self._log.info("service_started", version=__version__, ports=entries)
        async with self._reconciling:
            await self._inventory.start(config)
            for failure in (await self._apply(config)).failures:
                raise failure
        self._following = asyncio.create_task(self._follow_inventory())

    async def reload(self, config: GatewayConfig) -> None:
        """Serve `config` from now on; entries that have not changed go on undisturbed."""
        self._log_warnings(config)
        async with self._reconciling:
            await self._tls_contexts.renew()
            await self._inventory.reconfigure(config)
            changes = await self._apply(config)
        self._log_failures(changes)
        self._log.info(
            "configuration_reloaded",
            added=sorted(changes.started - changes.stopped),
            removed=sorted(changes.stopped - changes.started),
            changed=sorted(changes.started & changes.stopped),
            unchanged=changes.unchanged,
        )

    async def stop(self) -> None:
        """End the sessions, release the lines, close the ports; bounded to less than 2 s."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
        if self._http is not None:
            await self._http.stop()
        stopping = [port.stop("the gateway is shutting down") for port in self._ports]
        await asyncio.gather(self._announcer.stop(), self._inventory.stop(), *stopping)
        self._log.info("service_stopped")

    async def _apply(self, config: GatewayConfig) -> _Changes:
        self._admission.connections.limits = config.connections
        changes = await self._reconcile()
        await self._follow_http(config.http)
        self._announcer.follow(config.mdns)
        return changes

    async def _follow_inventory(self) -> None:
        """Start and stop ports of pools as boards are plugged in for the first time."""
        while True:
            await self._wanted_has_changed.wait()
            async with self._reconciling:
                try:
                    self._log_failures(await self._reconcile())
                except Exception:  # the next change is followed all the same
                    self._log.exception("reconcile_failed")

    async def _reconcile(self) -> _Changes:
        """Stop the ports that are not wanted, start those that are wanted and do not run."""
        self._wanted_has_changed.clear()
        wanted = self._wanted = {port.name: port for port in self._inventory.ports()}
        self._admission.reserved_descriptors = reserved_descriptors(len(wanted))
        unwanted = [port for port in self._ports if wanted.get(port.config.name) != port.config]
        # These first: their addresses and devices may be wanted by others.
        await asyncio.gather(*(port.stop("its configuration has changed") for port in unwanted))
        self._ports = [port for port in self._ports if port not in unwanted]
        kept = {port.config.name for port in self._ports}
        missing = [port for name, port in wanted.items() if name not in kept]
        failures = await self._start_ports(missing)
        names = list(wanted)
        self._ports.sort(key=lambda port: names.index(port.config.name))
        return _Changes(
            started={port.name for port in missing},
            stopped={port.config.name for port in unwanted},
            unchanged=len(kept),
            failures=failures,
        )

    async def _start_ports(self, ports: list[PortConfig]) -> list[Exception]:
        """Start ports, all at once; return the exceptions. Ports that run are in `_ports`."""
        failures = []

        async def start(port: PortConfig) -> None:
            locate = partial(self._inventory.locate, port)
            try:
                running = await start_port(
                    port, locate, self._log, self._tls_contexts, self._admission
                )
            except Exception as error:
                failures.append(error)
                return
            running.usb_tty = partial(self._inventory.tty_of, port)
            self._ports.append(running)

        async with asyncio.TaskGroup() as group:
            for port in ports:
                group.create_task(start(port))
        return failures

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

    def _rescan(self, name: str) -> None:
        for port in self._ports:
            if port.config.name == name:
                port.port.rescan()

    def reopen_logs(self) -> None:
        """Open all log files of boards again by their names: they may have been moved."""
        for port in self._ports:
            port.port.reopen_log()

    def snapshot(self) -> str:
        """Return the state of all ports as one line of JSON."""
        return service_json(__version__, map(document, self._ports), self._inventory.not_served())

    def _announced(self) -> Iterator[PortFacts]:
        return filter(None, (PortFacts.of(document(port)) for port in self._ports))

    def tcp_ports(self) -> dict[str, int | None]:
        """Return the TCP port of each entry by its name, in the order of the configuration.

        None if it could not be bound or if the port does not listen.
        """
        return {port.config.name: port.way_in.tcp_port for port in self._ports}

    @property
    def http_port(self) -> int | None:
        """The TCP port of the HTTP server; None without one, or if it could not be bound."""
        return None if self._http is None else self._http.tcp_port

    def counts(self) -> Counts | None:
        """Count the ports by state; None before it is known which ports are wanted."""
        if self._wanted is None:
            return None
        states = [port.state for port in self._ports]
        return Counts(
            ports=len(self._wanted),
            listening=sum(port.way_in.is_ready for port in self._ports),
            open=sum(state in _OPEN for state in states),
            in_use=sum(state in _IN_USE for state in states),
            absent=sum(state in _ABSENT for state in states),
            broken=states.count(PortState.BROKEN),
        )

    def _log_warnings(self, config: GatewayConfig) -> None:
        for warning in config.warnings:
            self._log.warning("configuration_warning", problem=str(warning))

    def _log_failures(self, changes: _Changes) -> None:
        for failure in changes.failures:
            self._log.error("port_not_started", reason=str(failure))


def _import_http_service() -> type[HttpService]:
    from gateway.web.server import HttpService  # noqa: PLC0415 - only where it is configured

    return HttpService


class ReloadError(GatewayError):
    """Why the file could not be read again; for the operator."""


class Reloader:
    """Runs one reload at a time, and one more for all requests that arrive meanwhile.

    Made and used on the loop. `load` blocks, so it runs on a thread; `serve` makes the service
    serve its result. `started` and `ended` are called around each reload, `ended` with whether the
    file is served now. Every exception of a reload is logged: the service continues to serve the
    configuration that it has.
    """

    def __init__(
        self,
        load: Callable[[], GatewayConfig],
        serve: Callable[[GatewayConfig], Awaitable[None]],
        started: Callable[[], None],
        ended: Callable[[bool], None],
    ) -> None:
        self._load = load
        self._serve = serve
        self._started = started
        self._ended = ended
        self._log = structlog.get_logger()
        self._requested = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[GatewayConfig] | None = None

    def request(self) -> None:
        """Reload now, or once more when the current reload has ended."""
        self._requested.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Cancel the current reload; the ports that it was starting are stopped."""
        tasks = [task for task in (self._task, self._loading) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self) -> None:
        while True:
            await self._requested.wait()
            self._requested.clear()
            self._started()
            is_served = False
            try:
                is_served = await self._reload()
            finally:
                self._ended(is_served)

    async def _reload(self) -> bool:
        try:
            await self._serve(await self._loaded())
        except ConfigError as error:
            for problem in error.problems:
                self._log.error("configuration_rejected", problem=str(problem))
        except ReloadError as error:
            self._log.error("reload_failed", reason=str(error))
        except Exception as error:
            self._log.exception("reload_failed", reason=str(error) or type(error).__name__)
        else:
            return True
        return False

    async def _loaded(self) -> GatewayConfig:
        """Read the file. Raises ConfigError, and ReloadError when reading it does not end.

        A read that does not end is left behind; meanwhile no second one is begun.
        """
        if self._loading is not None and not self._loading.done():
            raise ReloadError("an earlier reload is still reading the file")
        self._loading = asyncio.create_task(call_blocking(self._load, "configuration"))
        self._loading.add_done_callback(_retrieve_exception)
        try:
            async with clock.timeout(LOAD_LIMIT_S):
                return await asyncio.shield(self._loading)
        except TimeoutError:
            if self._loading.done():
                raise
            reason = f"reading the file took longer than {LOAD_LIMIT_S:g} s"
            raise ReloadError(reason) from None


def _retrieve_exception(loading: asyncio.Task[GatewayConfig]) -> None:
    """Keep asyncio from logging the exception of a read that was left behind."""
    if not loading.cancelled():
        loading.exception()
