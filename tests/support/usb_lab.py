"""A service whose boards a test plugs in and out: everything real but sysfs, /dev and udevd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.config.document import GatewayConfig
from gateway.config.reader import parse_config
from gateway.port.port import Port
from gateway.port_document import PortState
from gateway.service import Service
from gateway.usb.inventory import UsbSource
from gateway.usb.sysfs import Sysfs
from tests.support.fake_monitor import FakeMonitor
from tests.support.fake_sysfs import FakeUsb, Product
from tests.support.pty_board import until


class UsbLab:
    """Boards, the monitor that tells of them, and the service that serves them.

    `tmp_path` in the text of a configuration stands for the folder in which /dev is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.usb = FakeUsb(folder)
        self.monitor = FakeMonitor()
        self.service = self._new_service()

    async def start(self, *ports: str) -> None:
        """Serve these entries of `ports`, each a YAML mapping without its braces."""
        await self.service.start(self._parsed(ports))

    async def reload(self, *ports: str) -> None:
        """Serve these entries instead."""
        await self.service.reload(self._parsed(ports))

    async def restart(self, *ports: str) -> None:
        """The same after a reboot."""
        await self.service.stop()
        self.service = self._new_service()
        await self.start(*ports)

    def plug(self, product: Product, location: str) -> None:
        """A device appears, and udev tells of it."""
        for path in self.usb.plug(product, location):
            self.monitor.push(("add", Path(path).name))

    def unplug(self, location: str) -> None:
        """A device vanishes, and udev tells of it."""
        names = [Path(path).name for path in self.usb.tty_paths(location)]
        self.usb.unplug(location)
        self.monitor.push(*(("remove", name) for name in names))

    def device(self, name: str) -> Port:
        """The device of a port."""
        return next(port.port for port in self.service._ports if port.config.name == name)

    def tcp_port(self, name: str) -> int:
        """Where a port listens."""
        tcp_port = self.service.tcp_ports()[name]
        assert tcp_port is not None
        return tcp_port

    def states(self) -> dict[str, str]:
        """The state of each port's device."""
        return {port.config.name: port.port.state.value for port in self.service._ports}

    def opened(self) -> dict[str, str]:
        """Where each port's device is plugged in, of those that are open."""
        locations = {
            path: location
            for location in self.usb.locations
            for path in self.usb.tty_paths(location)
        }
        return {
            port.config.name: locations[_open_path(port.port)]
            for port in self.service._ports
            if port.port.state is PortState.IDLE
        }

    async def until_open(self, *names: str) -> None:
        """Wait until these ports' devices are open."""
        await self.until_states(names, "idle")

    async def until_states(self, names: Iterable[str], state: str) -> None:
        """Wait until these ports are there, and their devices in a state."""
        await until(lambda: all(self.states().get(name) == state for name in names))

    def _parsed(self, ports: Iterable[str]) -> GatewayConfig:
        entries = "".join(f"  - {{{port}}}\n" for port in ports)
        text = f"ports:\n{entries}".replace("tmp_path", str(self.folder))
        return parse_config(text, "test.yaml")

    def _new_service(self) -> Service:
        source = UsbSource(lambda: Sysfs(self.usb.sysfs, self.usb.dev), self.monitor.open)
        return Service(self.folder / "state", source)


@asynccontextmanager
async def usb_lab(folder: Path) -> AsyncIterator[UsbLab]:
    """A lab, not started; its service is stopped in the end and its boards unplugged."""
    lab = UsbLab(folder)
    with lab.usb:
        try:
            yield lab
        finally:
            await lab.service.stop()


def _open_path(device: Port) -> str:
    location = device._tty._location
    assert location is not None
    return location.path
