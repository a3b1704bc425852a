"""The command `esp-gateway`: arguments, exit codes, and what is printed for people."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.config import GatewayConfig, load_config
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from gateway.service import Service

#: Exit codes: something failed; the operator's file or arguments are wrong (argparse's code).
_FAILED = 1
_WRONG_INPUT = 2

#: Between two looks of `status --watch`.
_WATCH_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return _WRONG_INPUT
    except GatewayError as error:
        print(f"esp-gateway: {error}", file=sys.stderr)
        return _FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="esp-gateway", description="RFC 2217 gateway for the ESP boards of a lab host"
    )
    parser.add_argument(
        "--version", action="version", version=f"esp-gateway {version('esp-serial-gateway')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="serve the ports of a configuration file")
    run.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file")
    run.add_argument("--verbose", action="store_true", help="log each change of the modem lines")
    run.add_argument("--socket", type=Path, metavar="PATH", help="where `status` is told")
    run.set_defaults(run=_run)

    check = commands.add_parser("check", help="validate a configuration file without serving it")
    check.add_argument("file", type=Path, metavar="FILE", help="YAML file")
    check.set_defaults(run=_check)

    status = commands.add_parser("status", help="show the ports of the running service")
    status.add_argument("--json", action="store_true", help="as one line of JSON")
    status.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    status.add_argument("--socket", type=Path, metavar="PATH", help="where the service tells it")
    status.set_defaults(run=_status)

    demo = commands.add_parser("demo", help="serve simulated boards and print commands to try")
    demo.add_argument("--verbose", action="store_true", help="log each change of the modem lines")
    demo.set_defaults(run=_demo)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from gateway import status_socket  # noqa: PLC0415 - `check` does not need it

    _serve(
        load_config(arguments.config),
        load=lambda: load_config(arguments.config),
        status_path=arguments.socket or status_socket.default_path(),
        verbose=arguments.verbose,
    )
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from gateway import status, status_socket  # noqa: PLC0415 - only this command needs them

    path = arguments.socket or status_socket.find_path()
    try:
        while True:
            line = status_socket.ask(path)
            print(
                line if arguments.json else status.to_table(status.from_json(line)[1]), flush=True
            )
            if not arguments.watch:
                return 0
            time.sleep(_WATCH_S)
    except KeyboardInterrupt:
        return 0
    except ValueError as error:
        raise status_socket.StatusError(f"{path}: {error}") from error


def _check(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.file)
    ports = "1 port" if len(config.ports) == 1 else f"{len(config.ports)} ports"
    print(f"{arguments.file}: no errors, {ports}")
    for port in config.ports:
        way_in = f"connects to {port.connect}" if port.connect else f"{port.host}:{port.tcp_port}"
        print(f"  {port.name}: {way_in} -> {port.device}")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from gateway import demo  # noqa: PLC0415 - only this command needs it

    def started(service: Service) -> None:
        print(demo.commands_to_try(service.tcp_ports()), flush=True)

    _serve(demo.configuration(), verbose=arguments.verbose, started=started)
    return 0


def _serve(
    config: GatewayConfig,
    *,
    verbose: bool,
    load: Callable[[], GatewayConfig] | None = None,
    status_path: Path | None = None,
    started: Callable[[Service], None] = lambda _: None,
) -> None:
    from gateway import log, service  # noqa: PLC0415 - `check` needs neither

    log.configure(sys.stderr, verbose=verbose)

    async def serve() -> None:
        await service.serve(config, load=load, status_path=status_path, started=started)
        for number in (signal.SIGINT, signal.SIGTERM):
            # A second Ctrl-C finds nothing left to stop.
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    asyncio.run(serve())
