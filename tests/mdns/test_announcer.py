"""What is served is announced, seen by those who look for it on loopback."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Self

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict
from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from gateway.config.document import MdnsConfig
from gateway.mdns import announcer, network, records
from gateway.mdns.announcer import Announcer
from gateway.mdns.records import Host, PortFacts
from tests.support.mdns import find, find_all, gateway_name
from tests.support.pty_board import until

#: Several looks at the network, each of which may wait for a busy machine.
pytestmark = pytest.mark.timeout(400)

DESK = PortFacts("desk", ("127.0.0.1",), 4001, "rfc2217", chip="CP2102N", serial="8a2f1c")
SHELF = PortFacts("shelf-4100", ("127.0.0.1",), 4100, "raw")


class Announced:
    """An announcer on loopback, and the ports that it is told of."""

    def __init__(self, *ports: PortFacts, settle_s: float = 0.0) -> None:
        self.name = gateway_name()
        self.settings = MdnsConfig(self.name, ("lo",))
        self.ports = {port.name: port for port in ports}
        self.looks = 0
        self.announcer = Announcer(self._told, settle_s=settle_s)

    def _told(self) -> Iterator[PortFacts]:
        self.looks += 1
        yield from self.ports.values()


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


async def test_ports_are_found_with_their_urls_and_boards() -> None:
    async with announced(DESK, SHELF) as gateway:
        found = await find(gateway.name, lambda ports: len(ports) == 2)
    assert list(found) == ["desk", "shelf-4100"]
    assert found["desk"].url == "rfc2217://127.0.0.1:4001"
    assert (found["desk"].chip, found["desk"].serial) == ("CP2102N", "8a2f1c")
    assert found["shelf-4100"].url == "socket://127.0.0.1:4100"


async def test_ports_that_come_and_go_are_announced_and_taken_back() -> None:
    async with announced(DESK) as gateway:
        await find(gateway.name, lambda ports: list(ports) == ["desk"])
        gateway.ports = {SHELF.name: SHELF}
        await find(gateway.name, lambda ports: list(ports) == ["shelf-4100"])
        # Elsewhere, and as another kind of port: nothing of what was said before is right.
        gateway.ports = {SHELF.name: replace(SHELF, tcp_port=4101, protocol="rfc2217")}
        found = await find(gateway.name, lambda ports: "rfc2217" in str(ports))
        assert found["shelf-4100"].url == "rfc2217://127.0.0.1:4101"


async def test_a_board_that_is_gone_is_told_of_and_one_that_is_back() -> None:
    async with announced(DESK) as gateway:
        await find(gateway.name, lambda ports: "desk" in ports and ports["desk"].is_present)
        gateway.ports = {"desk": replace(DESK, is_present=False, chip="")}
        await find(gateway.name, lambda ports: "desk" in ports and not ports["desk"].is_present)
        gateway.ports = {"desk": DESK}
        await find(gateway.name, lambda ports: "desk" in ports and ports["desk"].is_present)


async def test_a_board_that_is_gone_for_a_moment_is_no_news() -> None:
    async with announced(DESK, settle_s=3600) as gateway:
        await find(gateway.name, lambda ports: "desk" in ports)
        gateway.ports = {"desk": replace(DESK, is_present=False)}
        seen = gateway.looks
        await until(lambda: gateway.looks > seen + 3)
        found = await find(gateway.name, lambda ports: "desk" in ports)
        assert found["desk"].is_present


async def test_all_is_taken_back_at_the_end_and_when_it_is_switched_off() -> None:
    async with announced(DESK) as gateway:
        await find(gateway.name, lambda ports: "desk" in ports)
        gateway.announcer.follow(None)
        await find(gateway.name, lambda ports: not ports)
        gateway.announcer.follow(gateway.settings)
        await find(gateway.name, lambda ports: "desk" in ports)
    await find(gateway.name, lambda ports: not ports)


async def test_other_settings_are_followed() -> None:
    async with announced(DESK) as gateway:
        await find(gateway.name, lambda ports: "desk" in ports)
        other = gateway_name()
        gateway.announcer.follow(MdnsConfig(other, ("127.0.0.1",)))
        await find(other, lambda ports: "desk" in ports)
        await find(gateway.name, lambda ports: not ports)


async def test_two_gateways_of_one_name_are_both_found() -> None:
    async with announced(DESK) as first:
        await find(first.name, lambda ports: "desk" in ports)
        second = Announced(replace(DESK, tcp_port=4002))
        second.announcer.follow(first.settings)
        try:
            found = await find_all(first.name, lambda ports: len(ports) == 2)
        finally:
            await second.announcer.stop()
    assert [(port.name, port.tcp_port) for port in found] == [("desk", 4001), ("desk", 4002)]


async def test_names_that_dns_takes_for_one_are_all_announced() -> None:
    names = ["rack-1", "rack.1", "Rack-1", "Desk", "desk"]
    ports = [replace(DESK, name=name, tcp_port=4001 + n) for n, name in enumerate(names)]
    async with announced(*ports) as gateway:
        found = await find(gateway.name, lambda ports: len(ports) == len(names))
        assert {name: port.tcp_port for name, port in found.items()} == {
            port.name: port.tcp_port for port in ports
        }
        # One that has given way gets the name back when it is free.
        gateway.ports = {port.name: port for port in ports if port.name != "rack-1"}
        await find(gateway.name, lambda ports: len(ports) == len(names) - 1)


async def test_a_port_that_can_not_be_announced_costs_no_other_port() -> None:
    bad = replace(DESK, name="bell\a", tcp_port=4009)
    with capture_logs() as logs:
        async with announced(bad, DESK) as gateway:
            await find(gateway.name, lambda ports: list(ports) == ["desk"])
            gateway.ports[SHELF.name] = SHELF
            await find(gateway.name, lambda ports: len(ports) == 2)
            # What it was refused for has gone.
            gateway.ports[bad.name] = replace(bad, name="bell")
            await find(gateway.name, lambda ports: len(ports) == 3)
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


async def test_a_host_name_that_another_host_has_is_not_taken() -> None:
    name = gateway_name()
    own = network.own_addresses(["lo"])
    before = records.announced(Host(name, network.host_id(own), own.addresses), DESK)
    assert before is not None
    with capture_logs() as logs:
        async with Rival() as rival:
            await rival.announce(f"{name}-rival", before.server)
            gateway = Announced(DESK)
            gateway.announcer.follow(MdnsConfig(name, ("lo",)))
            try:
                found = await find(name, lambda ports: "desk" in ports)
            finally:
                await gateway.announcer.stop()
    assert found["desk"].host != before.server.rstrip(".")
    assert Rival.ADDRESS not in found["desk"].addresses
    (line,) = in_use(logs)
    assert line["used_by"] == Rival.ADDRESS


async def test_a_host_name_that_another_host_takes_later_is_given_up() -> None:
    with capture_logs() as logs:
        async with Rival() as rival, announced(DESK) as gateway:
            before = (await find(gateway.name, lambda ports: "desk" in ports))["desk"]
            await rival.announce(f"{gateway.name}-rival", f"{before.host}.")
            found = await find(
                gateway.name,
                lambda ports: "desk" in ports and ports["desk"].host != before.host,
            )
    assert found["desk"].addresses == before.addresses == ("127.0.0.1",)
    assert len(in_use(logs)) == 1


async def test_two_hosts_that_take_a_port_s_name_at_one_moment_both_keep_their_port() -> None:
    with capture_logs() as logs:
        async with Rival() as rival, announced(DESK) as gateway:
            first = await find(gateway.name, lambda ports: "desk" in ports)
            await rival.announce(f"desk on {gateway.name}", "rival.local.")
            await until(lambda: in_use(logs))
            again = await find(gateway.name, lambda ports: "desk" in ports)
    assert again == first
    (line,) = in_use(logs)
    assert line["device"] == "desk"


async def test_a_port_that_can_not_be_reached_there_is_named_once_in_the_log() -> None:
    with capture_logs() as logs:
        elsewhere = replace(SHELF, listens_at=("127.0.0.2",))
        async with announced(DESK, elsewhere) as gateway:
            await find(gateway.name, lambda ports: list(ports) == ["desk"])
            await until(lambda: gateway.looks > 5)
    (line,) = [each for each in logs if each["event"] == "mdns_port_not_announced"]
    assert line["device"] == "shelf-4100"
    assert line["reason"] == "listens at 127.0.0.2, where nothing is announced"


async def test_without_the_package_the_operator_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with capture_logs() as logs:
        async with announced(DESK):
            await until(lambda: logs)
    (line,) = logs
    assert line["log_level"] == "error"
    assert "pip install 'esp-serial-gateway[mdns]'" in line["reason"]


async def test_a_network_that_is_not_there_yet_is_tried_again_and_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(announcer, "_RETRY_S", 0.01)
    tries = 0
    own_addresses = network.own_addresses

    def not_yet(interfaces: tuple[str, ...]) -> network.OwnAddresses:
        nonlocal tries
        tries += 1
        return own_addresses(interfaces if tries > 3 else ("nosuch0",))

    monkeypatch.setattr(network, "own_addresses", not_yet)
    with capture_logs() as logs:
        async with announced(DESK) as gateway:
            await until(lambda: any(line["event"] == "mdns_started" for line in logs))
    assert [line["event"] for line in logs] == ["mdns_not_announced", "mdns_started"]
    assert "no address of lo" in logs[0]["reason"]
    assert gateway.looks >= 1
