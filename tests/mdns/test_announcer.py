"""Announcements follow the served ports, as others discover them on loopback."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Self

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from gateway.config.document import MdnsConfig
from gateway.mdns import announcer, dns_sd
from gateway.mdns.announcer import RETRY_S, Announcer
from gateway.mdns.dns_sd import FoundPort, Host, PortFacts
from gateway.port_document import UsbDocument
from tests.support.mdns import find, find_all, gateway_name
from tests.support.pty_board import LoopClock, until

#: Several looks at the network, each of which may wait for a busy machine.
pytestmark = pytest.mark.timeout(400)

USB = UsbDocument("10c4:ea60", chip="CP2102N", serial="8a2f1c")
DESK = PortFacts("desk", ("127.0.0.1",), 4001, "rfc2217", usb=USB)
SHELF = PortFacts("shelf-4100", ("127.0.0.1",), 4100, "raw")


class Announced:
    """An announcer on loopback, and the ports that it announces."""

    def __init__(self, *ports: PortFacts, settle_s: float = 0.0) -> None:
        self.name = gateway_name()
        self.settings = MdnsConfig(self.name, ("lo",))
        self.ports = {port.name: port for port in ports}
        self.looks = 0
        self.announcer = Announcer(self._served, settle_s=settle_s)

    def _served(self) -> Iterator[PortFacts]:
        self.looks += 1
        yield from self.ports.values()

    async def find(
        self, is_there: Callable[[dict[str, FoundPort]], object]
    ) -> dict[str, FoundPort]:
        return await find(self.name, is_there)


@asynccontextmanager
async def announced(*ports: PortFacts, settle_s: float = 0.0) -> AsyncIterator[Announced]:
    each = Announced(*ports, settle_s=settle_s)
    each.announcer.follow(each.settings)
    try:
        yield each
    finally:
        await each.announcer.stop()


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announcer, "LOOK_EVERY_S", 0.05)


async def test_announcements_follow_the_ports() -> None:
    async with announced(DESK, SHELF) as gateway:
        found = await gateway.find(lambda ports: len(ports) == 2)
        assert list(found) == ["desk", "shelf-4100"]
        assert found["desk"].url == "rfc2217://127.0.0.1:4001"
        assert found["desk"].usb == USB
        assert found["shelf-4100"].url == "socket://127.0.0.1:4100"
        del gateway.ports["desk"]
        # Elsewhere, and as another kind of port: all of the old announcement is wrong.
        gateway.ports[SHELF.name] = replace(SHELF, tcp_port=4101, protocol="rfc2217")
        found = await gateway.find(
            lambda ports: list(ports) == [SHELF.name] and "rfc" in str(ports)
        )
        assert found["shelf-4100"].url == "rfc2217://127.0.0.1:4101"
    await gateway.find(lambda ports: not ports)


async def test_an_absent_board_is_announced_as_such_until_it_is_back() -> None:
    async with announced(DESK) as gateway:
        for is_present in (True, False, True):
            gateway.ports = {"desk": replace(DESK, is_present=is_present)}
            await gateway.find(
                lambda ports, wanted=is_present: (
                    "desk" in ports  # type: ignore[misc]
                    and ports["desk"].is_present is wanted
                )
            )


async def test_a_short_absence_is_not_announced() -> None:
    async with announced(DESK, settle_s=3600) as gateway:
        await gateway.find(lambda ports: "desk" in ports)
        gateway.ports = {"desk": replace(DESK, is_present=False)}
        seen = gateway.looks
        await until(lambda: gateway.looks > seen + 3)
        assert (await gateway.find(lambda ports: "desk" in ports))["desk"].is_present


async def test_other_settings_are_followed() -> None:
    async with announced(DESK) as gateway:
        await gateway.find(lambda ports: "desk" in ports)
        gateway.announcer.follow(None)
        await gateway.find(lambda ports: not ports)
        gateway.announcer.follow(gateway.settings)
        await gateway.find(lambda ports: "desk" in ports)
        other = gateway_name()
        gateway.announcer.follow(MdnsConfig(other, ("127.0.0.1",)))
        await find(other, lambda ports: "desk" in ports)
        await gateway.find(lambda ports: not ports)


async def test_two_gateways_of_one_name_are_both_found() -> None:
    async with announced(DESK) as first:
        await first.find(lambda ports: "desk" in ports)
        second = Announced(replace(DESK, tcp_port=4002))
        second.announcer.follow(first.settings)
        try:
            found = await find_all(first.name, lambda ports: len(ports) == 2)
        finally:
            await second.announcer.stop()
    assert [(port.name, port.tcp_port) for port in found] == [("desk", 4001), ("desk", 4002)]


async def test_names_that_are_equal_in_dns_are_all_announced() -> None:
    names = ["rack-1", "rack.1", "Rack-1", "Desk", "desk"]
    ports = [replace(DESK, name=name, tcp_port=4001 + n) for n, name in enumerate(names)]
    async with announced(*ports) as gateway:
        found = await gateway.find(lambda ports: len(ports) == len(names))
        tcp_ports = {name: port.tcp_port for name, port in found.items()}
        assert tcp_ports == {port.name: port.tcp_port for port in ports}
        # A port with a number gets its own name when it is free.
        del gateway.ports["rack-1"]
        await gateway.find(lambda ports: len(ports) == len(names) - 1)


async def test_a_port_that_can_not_be_announced_concerns_no_other_port() -> None:
    bad = replace(DESK, name="bell\a", tcp_port=4009)
    with capture_logs() as logs:
        async with announced(bad, DESK) as gateway:
            await gateway.find(lambda ports: list(ports) == ["desk"])
            gateway.ports[SHELF.name] = SHELF
            gateway.ports[bad.name] = replace(bad, name="bell")  # as it can be announced
            await gateway.find(lambda ports: len(ports) == 3)
    (line,) = [each for each in logs if each["event"] == "mdns_port_not_announced"]
    assert line["device"] == "bell\a"
    assert [each["event"] for each in logs].count("mdns_started") == 1


# --- names that another host has


class Rival:
    """Another host's announcements on loopback, which do not ask first whether a name is free."""

    ADDRESS = "127.0.0.77"

    def __init__(self) -> None:
        self._zeroconf = AsyncZeroconf(interfaces=["127.0.0.1"])

    async def announce(self, instance: str, server: str) -> None:
        info = ServiceInfo(
            "_rfc2217._tcp.local.",
            f"{instance}._rfc2217._tcp.local.",
            port=9,
            server=server,
            parsed_addresses=[self.ADDRESS],
        )
        await (await self._zeroconf.async_register_service(info, cooperating_responders=True))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._zeroconf.async_close()


def in_use(logs: list[EventDict]) -> list[EventDict]:
    return [line for line in logs if line["event"] == "mdns_name_in_use"]


async def test_a_host_name_in_use_is_not_taken() -> None:
    gateway = Announced(DESK)
    own = dns_sd.own_addresses(["lo"])
    before = dns_sd.announced(Host(gateway.name, own.host_id, own.addresses), DESK)
    assert before is not None
    with capture_logs() as logs:
        async with Rival() as rival:
            await rival.announce(f"{gateway.name}-rival", before.server)
            gateway.announcer.follow(gateway.settings)
            try:
                found = await gateway.find(lambda ports: "desk" in ports)
            finally:
                await gateway.announcer.stop()
    assert found["desk"].host != before.server.rstrip(".")
    assert Rival.ADDRESS not in found["desk"].addresses
    (line,) = in_use(logs)
    assert line["used_by"] == Rival.ADDRESS


async def test_a_host_name_that_another_host_takes_later_is_given_up() -> None:
    with capture_logs() as logs:
        async with Rival() as rival, announced(DESK) as gateway:
            before = (await gateway.find(lambda ports: "desk" in ports))["desk"]
            await rival.announce(f"{gateway.name}-rival", f"{before.host}.")
            found = await gateway.find(
                lambda ports: "desk" in ports and ports["desk"].host != before.host
            )
    assert found["desk"].addresses == before.addresses == ("127.0.0.1",)
    assert len(in_use(logs)) == 1


async def test_a_port_keeps_its_place_when_another_host_takes_its_name_at_the_same_time() -> None:
    with capture_logs() as logs:
        async with Rival() as rival, announced(DESK) as gateway:
            first = await gateway.find(lambda ports: "desk" in ports)
            await rival.announce(f"desk on {gateway.name}", "rival.local.")
            await until(lambda: in_use(logs))
            assert await gateway.find(lambda ports: "desk" in ports) == first
    (line,) = in_use(logs)
    assert line["device"] == "desk"


async def test_an_unreachable_port_is_logged_once() -> None:
    with capture_logs() as logs:
        async with announced(DESK, replace(SHELF, addresses=("127.0.0.2",))) as gateway:
            await gateway.find(lambda ports: list(ports) == ["desk"])
            await until(lambda: gateway.looks > 5)
    (line,) = [each for each in logs if each["event"] == "mdns_port_not_announced"]
    assert line["device"] == "shelf-4100"
    assert line["reason"] == "listens at 127.0.0.2, where nothing is announced"


async def test_a_missing_package_is_logged_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with capture_logs() as logs:
        async with announced(DESK):
            await until(lambda: logs)
    (line,) = logs
    assert line["log_level"] == "error"
    assert "pip install 'esp-serial-gateway[mdns]'" in line["reason"]


async def test_a_network_that_is_not_up_is_tried_every_10_s_and_logged_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries = 0
    own_addresses = dns_sd.own_addresses

    def not_yet(interfaces: tuple[str, ...]) -> dns_sd.OwnAddresses:
        nonlocal tries
        tries += 1
        return own_addresses(interfaces if tries > 3 else ("nosuch0",))

    monkeypatch.setattr(dns_sd, "own_addresses", not_yet)
    with capture_logs() as logs, LoopClock() as clock:
        async with announced(DESK):
            await until(lambda: tries == 1)
            for tried in (2, 3, 4):
                await clock.advance(RETRY_S - 0.1)
                assert tries == tried - 1
                await clock.advance(0.2)
                await until(lambda wanted=tried: tries >= wanted)  # type: ignore[misc]
            await until(lambda: any(line["event"] == "mdns_started" for line in logs))
    assert RETRY_S == 10.0
    assert [line["event"] for line in logs] == ["mdns_not_announced", "mdns_started"]
    assert "no address of lo" in logs[0]["reason"]
