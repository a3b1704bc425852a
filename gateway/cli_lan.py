"""Commands of `esp-gateway` that tell other machines of the ports, or find those of others."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.config.document import GatewayConfig
from gateway.config.reader import load_config
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.labgrid_export import Export

#: What `add_subparsers` returns; argparse's own name for it is private.
Commands = Any


class NothingToExportError(GatewayError):
    """For the operator: why no port can be exported."""


def add_export(
    commands: Commands, add_state_dir: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add `export`, which has a subcommand for each program that is told of the ports."""
    export = commands.add_parser(
        "export", help="write the ports as another program's configuration"
    )
    export.set_defaults(run=lambda _: print_help(export))
    kinds = export.add_subparsers(metavar="KIND")
    labgrid = kinds.add_parser("labgrid", help="resources for labgrid-exporter")
    labgrid.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="the gateway's configuration (default: the running service is asked)",
    )
    labgrid.add_argument(
        "--host", type=_host, help="the name by which other machines reach this one"
    )
    labgrid.add_argument("--socket", type=Path, metavar="PATH", help="where the service tells it")
    add_state_dir(labgrid)
    labgrid.set_defaults(run=_export_labgrid)


def add_discover(commands: Commands) -> None:
    """Add `discover`."""
    discover = commands.add_parser("discover", help="find the ports of all gateways on the network")
    discover.add_argument("--json", action="store_true", help="for programs")
    discover.add_argument(
        "--timeout", type=_seconds, default=3.0, metavar="S", help="how long to listen (default: 3)"
    )
    discover.add_argument(
        "--interface",
        action="append",
        default=[],
        metavar="NAME",
        help="network interface to ask on, by name or IP address (default: all)",
    )
    discover.set_defaults(run=_discover)


def print_help(parser: argparse.ArgumentParser) -> int:
    """Print what a command that was given alone can do."""
    parser.print_help()
    return 0


def print_warnings(config: GatewayConfig) -> None:
    """Tell the operator what in a valid file will not do what it may be meant to."""
    from gateway.mdns import network  # noqa: PLC0415 - `run` tells it in its log

    for warning in network.warnings(config):
        print(f"warning: {warning}", file=sys.stderr)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"invalid time {text!r}: expected 0.1 to 3600 seconds")
    return seconds


def _host(text: str) -> str:
    if not text.isprintable() or not text or " " in text:
        raise argparse.ArgumentTypeError(f"invalid host {text!r}: expected a name or an address")
    return text


def _export_labgrid(arguments: argparse.Namespace) -> int:
    from gateway import labgrid_export  # noqa: PLC0415 - only this command needs it

    export = _exported(arguments)
    if not export.ports:
        raise NothingToExportError("\n  ".join(["no port can be exported", *export.left_out]))
    print(labgrid_export.to_yaml(export), end="")
    for reason in export.left_out:
        print(f"esp-gateway: left out: {reason}", file=sys.stderr)
    return 0


def _exported(arguments: argparse.Namespace) -> Export:
    from gateway import labgrid_export, status, status_socket  # noqa: PLC0415 - as above
    from gateway.usb import pool_store, state_file  # noqa: PLC0415 - as above

    host, is_given = arguments.host or socket.gethostname(), arguments.host is not None
    if arguments.file is not None:
        config = load_config(arguments.file)
        folder = arguments.state_dir or state_file.default_folder(os.environ)
        table = pool_store.read_table(folder)
        return labgrid_export.from_config(config, table, host, is_given=is_given)
    path = arguments.socket or status_socket.find_path()
    try:
        _, ports = status.from_json(status_socket.ask(path))
    except ValueError as error:
        raise status_socket.StatusError(f"{path}: {error}") from error
    return labgrid_export.from_service(ports, host, is_given=is_given)


def _discover(arguments: argparse.Namespace) -> int:
    from gateway.mdns import browser  # noqa: PLC0415 - as above

    ports = asyncio.run(browser.discover(arguments.timeout, arguments.interface))
    print(browser.to_json(ports) if arguments.json else browser.to_table(ports))
    return 0
