"""The real service is found on a network: by `esp-gateway discover` and by Avahi."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from gateway.config.reader import parse_config
from gateway.mdns.dns_sd import FoundPort
from tests.support.fake_sysfs import CP2102N
from tests.support.lan import ADDRESS, in_a_lan
from tests.support.mdns import find, gateway_name
from tests.support.processes import Service, free_tcp_port, run_tool
from tests.support.usb_lab import usb_lab

#: Several looks at the network, each of which may wait for a busy machine.
pytestmark = pytest.mark.timeout(400)

_LIMIT_S = 110.0

PORTS = """\
mdns: {instance_name: The lab}
ports:
  - {name: desk, tcp: 4001, host: 0.0.0.0, device: sim://esp32}
  - {name: pipe, tcp: 4002, host: 10.99.0.1, device: sim://esp32c3, protocol: raw}
  - {name: own, tcp: 4003, device: /dev/ttyUSB9}
"""

#: Starts the service and asks until two ports are found; on a busy machine, answers come late.
SESSION = """
"$PYTHON" -m gateway run --config "$CONFIG" --socket /run/status.sock 2> "$LOG" &
for i in 1 2 3 4 5 6 7 8 9 10; do
  found=$({ask})
  [ "$(printf '%s' "$found" | grep -c {line})" -lt {lines} ] || break
  sleep 1
done
printf '%s\\n' "$found"
"""


def found_in_a_lan(folder: Path, ask: str, line: str, lines: int, *, avahi: bool = False) -> str:
    """What a command says in a network in which the service runs."""
    config = folder / "gateway.yaml"
    config.write_text(PORTS)
    script = SESSION.format(ask=ask, line=line, lines=lines)
    env = {"PYTHON": sys.executable, "CONFIG": str(config), "LOG": str(folder / "log")}
    result = run_tool(in_a_lan("sh", "-c", script, avahi=avahi), _LIMIT_S, env)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_discover_finds_the_ports_that_others_can_reach(tmp_path: Path) -> None:
    ask = '"$PYTHON" -m gateway discover --json'
    ports = {port["name"]: port for port in json.loads(found_in_a_lan(tmp_path, ask, "url", 2))}
    assert {name: (port["gateway"], port["url"]) for name, port in ports.items()} == {
        "desk": ("The lab", f"rfc2217://{ADDRESS}:4001"),
        "pipe": ("The lab", f"socket://{ADDRESS}:4002"),
    }
    assert ports["desk"]["usb"]["ids"] == "10c4:ea60"
    assert ports["pipe"]["usb"]["chip"] == "USB-Serial/JTAG"
    (line,) = [
        line for line in (tmp_path / "log").read_text().splitlines() if "not_announced" in line
    ]
    assert json.loads(line)["device"] == "own"


def test_avahi_finds_them_too(tmp_path: Path) -> None:
    ask = "avahi-browse -rpt _rfc2217._tcp; avahi-browse -rpt _iostream._tcp"
    said = found_in_a_lan(tmp_path, ask, "^=", 2, avahi=True)
    resolved = [line.split(";", 9) for line in said.splitlines() if line.startswith("=")]
    rows = {line[3].partition("\\032")[0]: line for line in resolved}
    assert set(rows) == {"desk", "pipe"}
    *_, kind, domain, host, address, tcp_port, txt = rows["desk"]
    assert (kind, domain, address, tcp_port) == ("_rfc2217._tcp", "local", ADDRESS, "4001")
    assert re.fullmatch(r"the-lab-esp-[0-9a-f]{6}\.local", host)
    strings = re.findall(r'"([^"]*)"', txt)
    assert {"name=desk", "gateway=The lab", "protocol=rfc2217", "present=yes"} <= set(strings)
    assert rows["pipe"][4] == "_iostream._tcp"
    assert rows["pipe"][7:9] == [ADDRESS, "4002"]


#: Three machines of one name on one switch: two run a gateway, the third looks for ports.
ONE_NAME = """
ip link add switch type bridge
ip link set switch up
for number in 1 2 3; do
  ip netns add host$number
  ip link add port$number type veth peer name eth0 netns host$number
  ip link set port$number master switch
  ip link set port$number up
  ip -n host$number link set lo up
  ip -n host$number link set eth0 up
  ip -n host$number address add 10.98.0.$number/24 dev eth0
done
# Started at the same moment, three times.
for turn in 1 2 3; do
  gateways=
  for number in 1 2; do
    ip netns exec host$number "$PYTHON" -m gateway run --config "$CONFIG.$number" \\
      --socket /run/status$number.sock 2>> "$LOG" &
    gateways="$gateways $!"
  done
  for i in 1 2 3 4 5 6 7 8 9 10; do
    sleep 1
    found=$(ip netns exec host3 "$PYTHON" -m gateway discover --json)
    [ "$(printf '%s' "$found" | grep -c url)" -lt 4 ] || break
  done
  printf '%s\\n' "$found" | tr '\\n' ' '
  echo
  kill $gateways
  wait
done
"""


def test_gateways_on_hosts_of_one_name_are_each_found_at_their_own_address(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    for number in (1, 2):
        (tmp_path / f"gateway.yaml.{number}").write_text(
            "mdns: true\nports:\n"
            "  - {name: desk, tcp: 4001, host: 0.0.0.0, device: /dev/ttyUSB9}\n"
            f"  - {{name: only-{number}, tcp: 4002, host: 0.0.0.0, device: /dev/ttyUSB8}}\n"
        )
    env = {"PYTHON": sys.executable, "CONFIG": str(config), "LOG": str(tmp_path / "log")}
    done = run_tool(in_a_lan("sh", "-c", ONE_NAME), _LIMIT_S, env)
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(turns) == 3, done.stderr
    for ports in turns:
        urls = {(port["gateway_id"], port["name"]): port["url"] for port in ports}
        ids = {name: gateway_id for gateway_id, name in urls if name.startswith("only")}
        assert len({port["gateway"] for port in ports}) == 1
        assert urls == {
            (ids[f"only-{number}"], name): f"rfc2217://10.98.0.{number}:{tcp_port}"
            for number in (1, 2)
            for name, tcp_port in (("desk", 4001), (f"only-{number}", 4002))
        }
        assert all(len(port["addresses"]) == 1 for port in ports)


async def test_a_reload_is_followed_and_the_end_is_announced(tmp_path: Path) -> None:
    gateway = gateway_name()
    config = tmp_path / "gateway.yaml"
    head = f"mdns: {{instance_name: {gateway}, interfaces: [lo]}}\nports:\n"
    desk = f"  - {{name: desk, tcp: 0, device: {tmp_path}/a}}\n"
    config.write_text(head + desk + f"  - {{name: shelf, tcp: 0, device: {tmp_path}/b}}\n")

    async def until_found(*expected: str) -> None:
        found = await find(gateway, lambda ports: sorted(ports) == sorted(expected))
        assert all(not port.is_present for port in found.values())

    with Service(config, {"RUNTIME_DIRECTORY": str(tmp_path)}) as service:
        await until_found("desk", "shelf")
        config.write_text(head + desk)
        service.send_signal(signal.SIGHUP)
        await until_found("desk")
    await until_found()


async def test_a_board_of_a_pool_is_announced_with_its_serial_number(tmp_path: Path) -> None:
    gateway = gateway_name()
    first = free_tcp_port()
    text = f"""
mdns: {{instance_name: {gateway}, interfaces: [lo]}}
ports:
  - {{name: shelf, tcp: {first}-{first + 9}, device: {{usb: "10c4:*"}}}}
"""
    async with usb_lab(tmp_path) as lab:
        await lab.service.start(parse_config(text, "test.yaml"))
        lab.plug(CP2102N, "1-1.1")
        (port,) = (await find(gateway, len)).values()
        assert port.name == f"shelf-{first}"
        assert port.usb.ids == CP2102N.usb
        assert port.usb.chip.startswith("CP2102")
        assert port.usb.serial == CP2102N.serial
        lab.unplug("1-1.1")
        (port,) = (await find(gateway, lambda ports: not all_present(ports.values()))).values()
        assert port.name == f"shelf-{first}"


def all_present(ports: Iterable[FoundPort]) -> bool:
    return all(port.is_present for port in ports)
