"""What is plugged in, and which port of the YAML has it: asked by devices, followed by the service.

Joins the watcher, the assignment and the pools' table. Devices are told to look again when what
concerns them has changed; which ports run is `service`'s matter, which are wanted is told here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from gateway import clock
from gateway.config.document import GatewayConfig, PortConfig, pool_member_name
from gateway.config.usb_match import UsbTty
from gateway.errors import DeviceAbsentError, DeviceError
from gateway.tty.serial_tty import TtyLocation
from gateway.usb.assignment import Assignment, assign, jtag_note
from gateway.usb.hotplug import Monitor, Watcher, open_udev_monitor
from gateway.usb.pool_store import PoolStore, today
from gateway.usb.pool_table import Served
from gateway.usb.sysfs import Sysfs, existing

#: How long the start waits to know what is plugged in; devices are told later otherwise.
_FIRST_LOOK_LIMIT_S = 2.0


class InventoryOwner(Protocol):
    """Whom the inventory reports to; every call is made on the loop."""

    def look_again(self, name: str) -> None:
        """For the port of this name there is a device, another one, none, or one too many now."""

    def ports_changed(self) -> None:
        """A pool has other ports than before."""


@dataclass(frozen=True, slots=True)
class UsbSource:
    """Where it is read what is plugged in, and heard that it has changed."""

    sysfs: Callable[[], Sysfs] = Sysfs
    open_monitor: Callable[[], Monitor | None] = open_udev_monitor


class Inventory:
    """See the module; made and used on the loop."""

    def __init__(
        self,
        owner: InventoryOwner,
        state_folder: Path,
        log: structlog.typing.FilteringBoundLogger,
        source: UsbSource,
    ) -> None:
        self._owner = owner
        self._log = log
        self._config = GatewayConfig(())
        self._watcher = Watcher(source.sysfs(), self._plugged, log, source.open_monitor)
        self._watching = False
        self._store = PoolStore(state_folder, log)
        self._looked = asyncio.Event()  # what is plugged in is known
        self._ttys: list[UsbTty] = []
        self._assigned: tuple[object, ...] = ()  # what the assignment was worked out from
        self._real_paths: dict[str, str] = {}  # of what is plugged in, and of paths in the YAML
        self._ttys_by_path: dict[str, UsbTty] = {}  # by real path
        self._pool_paths: dict[str, str] = {}  # by the port's name
        self._assignment = Assignment()
        self._served = Served()
        self._places: dict[str, tuple[object, ...]] = {}  # what was told last, by port
        self._not_served: dict[str, str] = {}

    async def start(self, config: GatewayConfig) -> None:
        """Find out what is plugged in, and follow it; bounded."""
        await self.reconfigure(config)
        if not self._watching:
            return
        try:
            async with clock.timeout(_FIRST_LOOK_LIMIT_S):
                await self._looked.wait()
        except TimeoutError:
            self._log.warning("usb_scan_slow", reason="what is plugged in is not known yet")

    async def stop(self) -> None:
        """Follow it no more; what is to be remembered is written."""
        await self._watcher.stop()
        await self._store.close()

    async def reconfigure(self, config: GatewayConfig) -> None:
        """Go by another configuration; `ports` tells the ports that it wants."""
        if config.pools:
            await self._store.load()
        self._config = config
        self._assign()
        # Who has simulated boards only is not bothered with the machine's own.
        if not self._watching and _needs_usb(config):
            self._watching = True
            self._watcher.start()

    def ports(self) -> tuple[PortConfig, ...]:
        """The ports to serve now: those of the YAML, and of its pools those that have a device.

        A device keeps its port of a pool while it is not plugged in.
        """
        members = (
            pool.port(tcp_port)
            for pool in self._config.pools
            for tcp_port in self._store.table.tcp_ports(pool.name, pool.tcp_ports)
        )
        return (*self._config.ports, *members)

    def locate(self, port: PortConfig) -> TtyLocation:
        """Where the device of a port is now. Raises DeviceError (lasting_port.Locate)."""
        path = self._path_of(port)
        if path is not None:
            return TtyLocation(path)
        if port.name in self._assignment.problems:
            raise DeviceError(self._assignment.problems[port.name])
        if port.device.paths == list(port.device.alternatives)[:1]:
            return TtyLocation(port.device.paths[0])  # opening it tells why it can't be
        raise DeviceAbsentError("not plugged in")

    def tty_of(self, port: PortConfig) -> UsbTty | None:
        """The USB device that a port has, None if it is none or is not plugged in."""
        return self._ttys_by_path.get(self._real_paths.get(self._path_of(port) or "", ""))

    def not_served(self) -> dict[str, str]:
        """The USB devices that no port serves although a board may be on them, and why."""
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
        before, self._ttys = {tty: tty for tty in self._ttys}, ttys
        self._assign()
        for tty in ttys:
            if before.pop(tty, None) is None:
                self._log.info("usb_plugged_in", **_described(tty))
        for tty in before:
            self._log.info("usb_unplugged", **_described(tty))
        self._looked.set()

    def _assign(self) -> None:
        """Work out who has what, then tell whom it concerns."""
        choices = {port.name: port.device for port in self._config.ports}
        paths = [tty.path for tty in self._ttys]
        paths += [path for choice in choices.values() for path in choice.paths]
        real_paths = existing(paths)
        if (self._config, self._ttys, real_paths) == self._assigned:
            return
        self._assigned = (self._config, self._ttys, real_paths)
        self._real_paths = real_paths
        self._ttys_by_path = {real_paths.get(tty.path, tty.path): tty for tty in self._ttys}
        self._assignment = assign(choices, self._ttys, real_paths)
        has_other_ports = self._serve_pools(self._assignment)
        self._tell_devices(real_paths)
        if has_other_ports:
            self._owner.ports_changed()

    def _serve_pools(self, assignment: Assignment) -> bool:
        """Give the pools what no port has; True when there is a port more or less."""
        if not self._config.pools:
            self._served, self._pool_paths = Served(), {}
            return False
        wanted: dict[str, list[UsbTty]] = {pool.name: [] for pool in self._config.pools}
        left_out: dict[str, str] = {}
        # Records of these are dropped: no pool serves them.
        not_for_pools = list(assignment.held)
        for tty in assignment.free:
            fitting = [pool.name for pool in self._config.pools if pool.pattern.device.fits(tty)]
            if len(fitting) == 1:
                wanted[fitting[0]].append(tty)
            elif fitting:
                left_out[str(tty)] = f"fits the pools {', '.join(fitting)}"
            elif tty.is_jtag and any(
                match.describes(tty)
                for pool in self._config.pools
                for match in pool.pattern.device.matches
            ):
                left_out[str(tty)] = jtag_note(tty)
                not_for_pools.append(tty)
        before = self.ports()
        ranges = {pool.name: pool.tcp_ports for pool in self._config.pools}
        self._served = self._store.table.update(ranges, wanted, self._ttys, today(), not_for_pools)
        self._pool_paths = {
            pool_member_name(*place): tty.path for place, tty in self._served.ttys.items()
        }
        self._store.save()
        left_out |= {str(tty): f"the pool {pool} is full" for pool, tty in self._served.left_out}
        self._tell_left_out(left_out)
        return before != self.ports()

    def _tell_left_out(self, left_out: dict[str, str]) -> None:
        for record in self._served.replaced:
            port = pool_member_name(record.pool, record.tcp_port)
            self._log.warning("pool_port_reassigned", port=port, was=record.serial or record.socket)
        for tty, reason in left_out.items():
            if self._not_served.get(tty) != reason:
                self._log.warning("usb_not_served", usb=tty, reason=reason)
        self._not_served = left_out

    def _tell_devices(self, real_paths: dict[str, str]) -> None:
        instances = {tty.path: tty.instance for tty in self._ttys}
        places: dict[str, tuple[object, ...]] = {}
        for port in self.ports():
            path = self._path_of(port)
            real_path = real_paths.get(path or "", "")
            instance = instances.get(path or "", 0)
            places[port.name] = (
                path,
                real_path,
                instance,
                self._assignment.problems.get(port.name),
            )
        before, self._places = self._places, places
        for name, place in places.items():
            if before.get(name) != place:
                self._owner.look_again(name)


def _needs_usb(config: GatewayConfig) -> bool:
    return bool(config.pools) or any(port.device.simulated is None for port in config.ports)


def _described(tty: UsbTty) -> dict[str, object]:
    return {
        "path": tty.path,
        "usb": tty.usb,
        "location": tty.location,
        "serial": tty.serial,
        "product": tty.product,
    }
