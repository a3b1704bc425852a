"""`esp-gateway demo`: simulated boards only, and the commands to try on them."""

from __future__ import annotations

import importlib.util

from gateway.config.document import GatewayConfig
from gateway.config.http import PACKAGES
from gateway.config.reader import parse_config
from gateway.tcp.acceptor import is_free

_HOST = "127.0.0.1"
_FIRST_TCP_PORT = 4001
_HTTP_PORT = 8080
_BOARDS = {"desk": "sim://esp32?name=desk", "shelf": "sim://esp32?name=shelf&en_rise_ms=10"}

_COMMANDS = """
{boards}
{page}

Try, in another terminal (the tools: pip install esptool esp-idf-monitor pyserial):

  esptool --port {url} flash-id
  esptool --port {url} write-flash 0x10000 README.md
  python -m esp_idf_monitor --port {url} --no-reset -d
  pyserial-miniterm {url} 115200
  telnet {host} {tcp_port}

A plain RFC 2217 client takes its time: flash-id needs about 20 s over any server. Ctrl-C ends.
"""


def configuration() -> GatewayConfig:
    """Two simulated boards, on the default TCP ports or, where taken, on free ones.

    The page with them is served where the packages are there that it needs.
    """
    lines = ["ports:"]
    if all(importlib.util.find_spec(name) is not None for name in PACKAGES):
        http_port = _HTTP_PORT if is_free(_HOST, _HTTP_PORT) else 0
        lines.insert(0, f"http: {_HOST}:{http_port}")
    for number, (name, url) in enumerate(_BOARDS.items()):
        tcp_port = _FIRST_TCP_PORT + number
        lines += [
            f"  - name: {name}",
            f"    host: {_HOST}",
            f"    tcp: {tcp_port if is_free(_HOST, tcp_port) else 0}",
            f"    device: {url}",
        ]
    return parse_config("\n".join(lines), "demo")


def commands_to_try(tcp_ports: dict[str, int | None], http_port: int | None) -> str:
    """What to type, with the TCP ports that the boards have got, and the page if there is one."""
    boards = "\n".join(
        f"Simulated ESP32 {name!r} is served at rfc2217://{_HOST}:{tcp_port}"
        for name, tcp_port in tcp_ports.items()
    )
    first = next(iter(tcp_ports.values()))
    if http_port is None:
        page = "There is no page: it needs pip install 'esp-serial-gateway[web]'"
    else:
        page = f"The page with them is at http://{_HOST}:{http_port}/"
    return _COMMANDS.format(
        boards=boards, page=page, url=f"rfc2217://{_HOST}:{first}", host=_HOST, tcp_port=first
    ).strip("\n")
