"""Commands that serve ports until a signal ends them: `run` and `demo`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.ports import add_socket, add_state_dir

if TYPE_CHECKING:
    from gateway.config.document import GatewayConfig
    from gateway.service import Service

_DEMO_HOST = "127.0.0.1"
_DEMO_TCP_PORT = 4001  # of the first board
_DEMO_HTTP_PORT = 8080
_DEMO_BOARDS = {"desk": "sim://esp32?name=desk", "shelf": "sim://esp32?name=shelf&en_rise_ms=10"}

_COMMANDS_TO_TRY = """
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


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `run` and `demo`."""
    run = commands.add_parser("run", help="serve the ports of a configuration file")
    run.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file")
    _add_verbose(run)
    add_socket(run, "where `esp-gateway status` finds the service")
    add_state_dir(run)
    run.set_defaults(run=_run)

    demo = commands.add_parser("demo", help="serve simulated boards and print commands to try")
    _add_verbose(demo)
    demo.set_defaults(run=_demo)


def _add_verbose(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbose", action="store_true", help="log each change of the modem lines")


def _run(arguments: argparse.Namespace) -> int:
    _import_structlog()
    from gateway import service, status
    from gateway.config.reader import load_config

    serving = service.serve(
        load_config(arguments.config),
        load=lambda: load_config(arguments.config),
        status_path=arguments.socket or status.default_path(),
        state_folder=arguments.state_dir,
    )
    _serve(serving, verbose=arguments.verbose)
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from gateway import service

    def started(running: Service) -> None:
        print(commands_to_try(running.tcp_ports(), running.http_port), flush=True)

    _serve(service.serve(demo_configuration(), started=started), verbose=arguments.verbose)
    return 0


def demo_configuration() -> GatewayConfig:
    """Return two simulated boards, each at its default TCP port or, if that is taken, a free one.

    They have an HTTP page if the packages that it needs are installed.
    """
    from gateway.config.checks import HTTP_PACKAGES
    from gateway.config.reader import parse_config
    from gateway.net.acceptor import is_free

    def free(tcp_port: int) -> int:
        return tcp_port if is_free(_DEMO_HOST, tcp_port) else 0

    lines = ["ports:"]
    if all(importlib.util.find_spec(name) is not None for name in HTTP_PACKAGES):
        lines.insert(0, f"http: {_DEMO_HOST}:{free(_DEMO_HTTP_PORT)}")
    for tcp_port, (name, url) in enumerate(_DEMO_BOARDS.items(), _DEMO_TCP_PORT):
        lines += [f"  - name: {name}", f"    host: {_DEMO_HOST}"]
        lines += [f"    tcp: {free(tcp_port)}", f"    device: {url}"]
    return parse_config("\n".join(lines), "demo")


def commands_to_try(tcp_ports: dict[str, int | None], http_port: int | None) -> str:
    """Return commands for the TCP ports that the boards have got; `http_port` None: no page."""
    boards = "\n".join(
        f"Simulated ESP32 {name!r} is served at rfc2217://{_DEMO_HOST}:{tcp_port}"
        for name, tcp_port in tcp_ports.items()
    )
    first = next(iter(tcp_ports.values()))
    if http_port is None:
        page = "There is no page: it needs pip install 'esp-serial-gateway[web]'"
    else:
        page = f"The page with them is at http://{_DEMO_HOST}:{http_port}/"
    url = f"rfc2217://{_DEMO_HOST}:{first}"
    return _COMMANDS_TO_TRY.format(
        boards=boards, page=page, url=url, host=_DEMO_HOST, tcp_port=first
    ).strip("\n")


def _serve(serving: Coroutine[None, None, None], *, verbose: bool) -> None:
    """Run the coroutine that `service.serve` has returned to its end, with the log configured."""
    import structlog

    from gateway import log, runtime

    writer = log.LogWriter(sys.stderr.fileno())
    log.configure(writer, verbose=verbose)

    async def serve() -> None:
        await serving
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Nothing is left to stop or to reload.
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    try:
        runtime.run(serve())
    except OSError:
        structlog.get_logger().exception("service_failed")
        raise
    finally:
        serving.close()  # never started if there is no event loop to run it on
        writer.close()


def _import_structlog() -> None:
    """Import structlog without rich, which it uses if it is there: 5 MB and 30 ms for nothing."""
    rich = sys.modules.get("rich")
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes an import of it fail
    import structlog  # noqa: F401

    del sys.modules["rich"]
    if rich is not None:
        sys.modules["rich"] = rich
