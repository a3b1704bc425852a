"""Which plugged-in device each port of the YAML and of its pools has.

`assign` and `assign_pools` are pure: the plugged-in devices decide, never the order of plugging.
`Inventory` follows the devices, and has ports rescan when their device has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from gateway import clock
from gateway.config.document import GatewayConfig, PortConfig, pool_member_name
from gateway.config.usb_match import DeviceChoice, UsbMatch, UsbTty
from gateway.errors import DeviceAbsentError, DeviceError
from gateway.serialport.tty import TtyLocation
from gateway.usb.hotplug import UdevMonitor, Watcher, open_udev_monitor
from gateway.usb.pools import PoolStore, PoolTable, Served, today
from gateway.usb.sysfs import Sysfs, existing, in_order

#: How long the start waits for the first scan; ports get their devices later otherwise.
_FIRST_SCAN_LIMIT_S: Final = 2.0

#: Devices or ports that a message names.
_MAX_NAMED: Final = 4


# --- assignment


@dataclass(frozen=True, slots=True)
class Assignment:
    """The device of each port: `paths` to open and `problems` by the port's name.

    A port in neither has no device. `held` are the ttys of `paths`; `free` are the ttys that no
    port wants and that can be opened. `real_paths` has the target of each path that exists.
    """

    paths: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    held: tuple[UsbTty, ...] = ()
    free: tuple[UsbTty, ...] = ()
    real_paths: Mapping[str, str] = field(default_factory=dict)


def assign(
    ports: Mapping[str, DeviceChoice], ttys: Sequence[UsbTty], real_paths: Mapping[str, str]
) -> Assignment:
    """Give each port its device; none if several ports want it or several devices match.

    `real_paths` has the target of each tty's path and each port's path, of those that exist.
    """
    # A device that is being unplugged loses its node first. It then matches no port, and must not
    # seem free to a pool either.
    there = [tty for tty in ttys if tty.path in real_paths]
    index = _Index(there)
    wanted = {name: _wanted_by(choice, index, real_paths) for name, choice in ports.items()}
    holders: dict[str, list[str]] = {}
    for name, paths in wanted.items():
        for path in paths:
            holders.setdefault(real_paths[path], []).append(name)
    by_path = {tty.path: tty for tty in ttys}
    paths_of_ports: dict[str, str] = {}
    problems: dict[str, str] = {}
    for name, paths in wanted.items():
        rivals = [each for path in paths for each in holders[real_paths[path]] if each != name]
        if len(paths) > 1:
            named = _listed([str(by_path.get(path, path)) for path in paths])
            problems[name] = f"{len(paths)} devices fit: {named}"
        elif rivals:
            named = _listed(sorted(rivals))
            problems[name] = f"{by_path.get(paths[0], paths[0])} fits {named} as well"
        elif paths:
            paths_of_ports[name] = paths[0]
    opened = {real_paths[path] for path in paths_of_ports.values()}
    return Assignment(
        paths_of_ports,
        problems,
        held=tuple(tty for tty in there if real_paths[tty.path] in opened),
        free=tuple(tty for tty in there if real_paths[tty.path] not in holders),
        real_paths=real_paths,
    )


def real_paths_of(config: GatewayConfig, ttys: Sequence[UsbTty]) -> dict[str, str]:
    """Return the targets that `assign` needs, as they are now."""
    paths = [tty.path for tty in ttys]
    paths += [path for port in config.ports for path in port.device.paths]
    return existing(paths)


def assign_pools(
    config: GatewayConfig, assignment: Assignment, ttys: Sequence[UsbTty], table: PoolTable
) -> tuple[Served, dict[str, str]]:
    """Give the free devices their ports of pools, in `table`.

    Also return why devices that match a pool have none, by the device.
    """
    wanted: dict[str, list[UsbTty]] = {pool.name: [] for pool in config.pools}
    not_served: dict[str, str] = {}
    not_for_pools = list(assignment.held)
    for tty in assignment.free:
        fitting = [pool.name for pool in config.pools if pool.pattern.device.fits(tty)]
        if len(fitting) == 1:
            wanted[fitting[0]].append(tty)
        elif fitting:
            not_served[str(tty)] = f"fits the pools {', '.join(fitting)}"
        elif tty.is_jtag and any(
            match.describes(tty) for pool in config.pools for match in pool.pattern.device.matches
        ):
            not_served[str(tty)] = jtag_note(tty)
            not_for_pools.append(tty)
    ranges = {pool.name: pool.tcp_ports for pool in config.pools}
    served = table.update(ranges, wanted, ttys, today(), not_for_pools)
    not_served |= {str(tty): f"the pool {pool} is full" for pool, tty in served.left_out}
    return served, not_served


def jtag_note(tty: UsbTty) -> str:
    """Return why a JTAG channel is not served, and how to serve it."""
    return f"JTAG channel; to serve it all the same, give a port `interface: {tty.interface}`"


class _Index:
    """Find matching devices without testing each: hundreds of ports, as many devices, per event."""

    def __init__(self, ttys: Sequence[UsbTty]) -> None:
        self._all = ttys
        self._by_location: dict[str, list[UsbTty]] = {}
        self._by_serial: dict[str, list[UsbTty]] = {}
        for tty in ttys:
            self._by_location.setdefault(tty.location, []).append(tty)
            self._by_serial.setdefault(tty.serial, []).append(tty)

    def fitting(self, match: UsbMatch) -> list[UsbTty]:
        near: Sequence[UsbTty] = self._all
        if match.location is not None:
            near = self._by_location.get(match.location, ())
        elif match.serial is not None:
            near = self._by_serial.get(match.serial, ())
        return [tty for tty in near if match.fits(tty)]


def _wanted_by(choice: DeviceChoice, index: _Index, real_paths: Mapping[str, str]) -> list[str]:
    """Return the paths of all devices of the first alternative that matches any."""
    for alternative in choice.alternatives:
        if isinstance(alternative, str):
            fitting = [alternative] if alternative in real_paths else []
        else:
            fitting = [tty.path for tty in index.fitting(alternative)]
        if fitting:
            return fitting
    return []


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _MAX_NAMED
    return ", ".join(texts[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


# --- over time


@dataclass(frozen=True, slots=True)
class UsbSource:
    """Where the plugged-in devices, and events about them, are read."""

    sysfs: Callable[[], Sysfs] = Sysfs
    open_monitor: Callable[[], UdevMonitor | None] = open_udev_monitor


class Inventory:
    """The devices of all ports, kept up to date; made and used on the loop.

    `rescan` is called with the name of each port whose device is there, gone, replaced or
    ambiguous since, `ports_changed` when a pool has other ports than before.
    """

    def __init__(
        self,
        state_folder: Path,
        log: structlog.typing.FilteringBoundLogger,
        source: UsbSource,
        rescan: Callable[[str], None],
        ports_changed: Callable[[], None],
    ) -> None:
        self._log = log
        self._rescan = rescan
        self._ports_changed = ports_changed
        self._config = GatewayConfig(())
        self._watcher = Watcher(source.sysfs(), self._plugged, log, source.open_monitor)
        self._is_watching = False
        self._store = PoolStore(state_folder, log)
        self._is_scanned = asyncio.Event()
        self._ttys: list[UsbTty] = []
        self._made_from: tuple[object, ...] = ()  # the inputs of the assignment
        self._assignment = Assignment()
        self._served = Served()
        self._pool_paths: dict[str, str] = {}  # by the port's name
        self._not_served: dict[str, str] = {}
        self._ttys_by_path: dict[str, UsbTty] = {}  # by real path
        self._places: dict[str, tuple[object, ...]] = {}  # reported last, by port

    async def start(self, config: GatewayConfig) -> None:
        """Find the plugged-in devices, and follow them; bounded."""
        await self.reconfigure(config)
        if not self._is_watching:
            return
        try:
            async with clock.timeout(_FIRST_SCAN_LIMIT_S):
                await self._is_scanned.wait()
        except TimeoutError:
            self._log.warning("usb_scan_slow", reason="the plugged-in devices are not known yet")

    async def stop(self) -> None:
        """Stop following devices, and write the pools' table."""
        await self._watcher.stop()
        await self._store.close()

    async def reconfigure(self, config: GatewayConfig) -> None:
        """Use another configuration; `ports` then returns its ports."""
        if config.pools:
            await self._store.load()
        self._config = config
        self._assign()
        # A configuration with simulated boards only does not need the machine's own.
        needs_usb = config.pools or any(port.device.simulated is None for port in config.ports)
        if needs_usb and not self._is_watching:
            self._is_watching = True
            self._watcher.start()

    def ports(self) -> tuple[PortConfig, ...]:
        """Return the ports of the YAML, and of its pools those that have a device.

        A device keeps its port of a pool while it is unplugged.
        """
        members = (
            pool.port(tcp_port)
            for pool in self._config.pools
            for tcp_port in self._store.table.tcp_ports(pool.name, pool.tcp_ports)
        )
        return (*self._config.ports, *members)

    def locate(self, port: PortConfig) -> TtyLocation:
        """Return where a port's device is; raises DeviceError (lasting_port.Locate)."""
        path = self._path_of(port)
        if path is not None:
            return TtyLocation(path)
        if port.name in self._assignment.problems:
            raise DeviceError(self._assignment.problems[port.name])
        if port.device.paths == list(port.device.alternatives)[:1]:
            return TtyLocation(port.device.paths[0])  # opening it gives the reason
        raise DeviceAbsentError("not plugged in")

    def tty_of(self, port: PortConfig) -> UsbTty | None:
        """Return the USB device that a port has, None without one."""
        path = self._path_of(port) or ""
        return self._ttys_by_path.get(self._assignment.real_paths.get(path, ""))

    def not_served(self) -> dict[str, str]:
        """Return the USB devices that may be boards and that no port serves, with the reasons."""
        held = {tty.path for tty in (*self._assignment.held, *self._served.ttys.values())}
        jtag = [tty for tty in self._ttys if tty.is_jtag and tty.path not in held]
        return (
            {str(tty): jtag_note(tty) for tty in jtag}
            | self._not_served
            | {str(device): f"no tty: {device.reason}" for device in self._watcher.no_tty}
        )

    def _path_of(self, port: PortConfig) -> str | None:
        return self._assignment.paths.get(port.name) or self._pool_paths.get(port.name)

    def _plugged(self, ttys: list[UsbTty]) -> None:
        before, self._ttys = self._ttys, ttys
        self._assign()
        for tty in sorted(set(ttys) - set(before), key=in_order):
            self._log.info("usb_plugged_in", **_described(tty))
        for tty in sorted(set(before) - set(ttys), key=in_order):
            self._log.info("usb_unplugged", **_described(tty))
        self._is_scanned.set()

    def _assign(self) -> None:
        """Assign devices to ports, then report the ports that are concerned."""
        real_paths = real_paths_of(self._config, self._ttys)
        made_from = (self._config, self._ttys, real_paths)
        if made_from == self._made_from:
            return
        self._made_from = made_from
        choices = {port.name: port.device for port in self._config.ports}
        assignment = self._assignment = assign(choices, self._ttys, real_paths)
        self._ttys_by_path = {real_paths.get(tty.path, tty.path): tty for tty in self._ttys}
        has_other_ports = self._assign_pools()
        before, self._places = self._places, {}
        for port in self.ports():
            path = self._path_of(port) or ""
            tty = self._ttys_by_path.get(real_paths.get(path, ""))
            place = (
                path,
                real_paths.get(path, ""),
                tty and tty.instance,
                assignment.problems.get(port.name),
            )
            self._places[port.name] = place
            if before.get(port.name) != place:
                self._rescan(port.name)
        if has_other_ports:
            self._ports_changed()

    def _assign_pools(self) -> bool:
        """Return whether pools have other ports than before."""
        if not self._config.pools:
            self._served, self._pool_paths = Served(), {}
            return False
        before = self.ports()
        self._served, not_served = assign_pools(
            self._config, self._assignment, self._ttys, self._store.table
        )
        self._pool_paths = {
            pool_member_name(*place): tty.path for place, tty in self._served.ttys.items()
        }
        self._store.save()
        for record in self._served.replaced:
            port = pool_member_name(record.pool, record.tcp_port)
            self._log.warning("pool_port_reassigned", port=port, was=record.serial or record.socket)
        for tty, reason in not_served.items():
            if self._not_served.get(tty) != reason:
                self._log.warning("usb_not_served", usb=tty, reason=reason)
        self._not_served = not_served
        return before != self.ports()


def _described(tty: UsbTty) -> dict[str, object]:
    names = ("path", "usb", "location", "serial", "product")
    return {name: getattr(tty, name) for name in names}
