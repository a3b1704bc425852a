"""Commands for the configuration, ports and devices: `check`, `schema`, `status`, `devices`, ..."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.config.document import GatewayConfig, PortConfig
    from gateway.labgrid_export import Export

#: Interval of `status --watch`.
_WATCH_S = 1.0


class NothingToExportError(GatewayError):
    """No port can be exported; the text gives the reason for each."""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands of this module."""
    check = commands.add_parser("check", help="validate a configuration file without serving it")
    check.add_argument("file", type=Path, metavar="FILE", help="YAML file")
    check.add_argument("--quiet", action="store_true", help="print mistakes and warnings only")
    check.set_defaults(run=_check)

    schema = commands.add_parser("schema", help="print the JSON Schema of the configuration file")
    schema.set_defaults(run=_schema)

    status = commands.add_parser("status", help="show the ports of the running service")
    status.add_argument("--json", action="store_true", help="as one line of JSON")
    status.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    add_socket(status)
    status.set_defaults(run=_status)

    devices = commands.add_parser("devices", help="list the USB serial devices that are plugged in")
    devices.add_argument("--config", type=Path, metavar="FILE", help="name the port of each device")
    add_state_dir(devices)
    form = devices.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--yaml", action="store_true", help="as entries for the configuration")
    devices.set_defaults(run=_devices)

    _add_export(commands)
    _add_discover(commands)


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export", help="write the ports as another program's configuration"
    )
    export.set_defaults(alone=export)
    labgrid = export.add_subparsers(metavar="KIND").add_parser(
        "labgrid", help="resources for labgrid-exporter"
    )
    labgrid.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="FILE",
        help="the gateway's configuration (default: ask the running service)",
    )
    labgrid.add_argument(
        "--host", type=_host, help="the name by which other machines reach this one"
    )
    add_socket(labgrid)
    add_state_dir(labgrid)
    labgrid.set_defaults(run=_export_labgrid)


def _add_discover(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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


def add_socket(
    parser: argparse.ArgumentParser, meaning: str = "where the running service is found"
) -> None:
    """Add --socket, the path of the status socket."""
    parser.add_argument("--socket", type=Path, metavar="PATH", help=meaning)


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    """Add --state-dir, the folder of the pools' table, which is kept over a restart."""
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="folder of the table that keeps each board's port of a pool"
        " (default: $STATE_DIRECTORY, else ~/.local/state/esp-gateway)",
    )


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


def _check(arguments: argparse.Namespace) -> int:
    from gateway.config.reader import load_config
    from gateway.mdns import dns_sd

    config = load_config(arguments.file)
    if not arguments.quiet:
        _print_summary(arguments.file, config)
    for warning in config.warnings:
        print(warning, file=sys.stderr)
    for text in dns_sd.warnings(config):
        print(f"warning: {text}", file=sys.stderr)
    return 0


def _schema(_: argparse.Namespace) -> int:
    from gateway.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _print_summary(file: Path, config: GatewayConfig) -> None:
    from gateway.config.document import tcp_text

    counted = _counted(len(config.ports), "port")
    if config.pools:
        counted += f", {_counted(len(config.pools), 'pool')}"
    print(f"{file}: no errors, {counted}")
    for port in config.ports:
        address = f"connects to {port.connect}" if port.connect else f"{port.host}:{port.tcp_port}"
        print(f"  {port.name}: {address}{_tls_text(port)} -> {port.device}")
    for pool in config.pools:
        address = f"{pool.pattern.host}:{tcp_text(pool.tcp_ports)}{_tls_text(pool.pattern)}"
        print(f"  {pool.name}: {address} -> each of {pool.pattern.device}")
    if config.http is not None:
        print(f"  HTTP: {config.http}")


def _tls_text(port: PortConfig) -> str:
    if port.tls is None:
        return ""
    has_names = port.connect is None and port.tls.client_ca is not None
    return " with TLS and client certificates" if has_names else " with TLS"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _status(arguments: argparse.Namespace) -> int:
    from gateway import status

    while True:
        line = status.ask(arguments.socket or status.find_path())
        ports, not_served = status.parse(line)
        notes = [f"{device}: {reason}" for device, reason in not_served.items()]
        print(line if arguments.json else "\n".join([status.to_table(ports), *notes]), flush=True)
        if not arguments.watch:
            return 0
        time.sleep(_WATCH_S)


def _devices(arguments: argparse.Namespace) -> int:
    from gateway.config.document import GatewayConfig
    from gateway.config.reader import load_config
    from gateway.usb import device_list, pools, sysfs

    config = GatewayConfig(())
    if arguments.config is not None:  # a user who may not read the keys can list devices
        config = load_config(arguments.config, with_files=False)
    folder = arguments.state_dir or pools.default_folder(os.environ)
    table = pools.read_table(folder)
    listed = device_list.listing(sysfs.Sysfs(), config, table)
    if arguments.json:
        print(device_list.to_json(listed))
    elif arguments.yaml:
        print(device_list.to_yaml(listed, config))
    else:
        print(device_list.to_table(listed))
    return 0


def _export_labgrid(arguments: argparse.Namespace) -> int:
    from gateway import labgrid_export

    export = _exported(arguments)
    if not export.resources:
        raise NothingToExportError("\n  ".join(["no port can be exported", *export.left_out]))
    print(labgrid_export.to_yaml(export), end="")
    for reason in export.left_out:
        print(f"esp-gateway: left out: {reason}", file=sys.stderr)
    return 0


def _exported(arguments: argparse.Namespace) -> Export:
    from gateway import labgrid_export, status
    from gateway.config.reader import load_config
    from gateway.usb import pools

    host, is_given = arguments.host or socket.gethostname(), arguments.host is not None
    if arguments.file is not None:
        config = load_config(arguments.file)
        folder = arguments.state_dir or pools.default_folder(os.environ)
        table = pools.read_table(folder)
        return labgrid_export.from_config(config, table, host, is_given=is_given)
    ports, _ = status.parse(status.ask(arguments.socket or status.find_path()))
    return labgrid_export.from_service(ports, host, is_given=is_given)


def _discover(arguments: argparse.Namespace) -> int:
    from gateway.mdns import dns_sd

    ports = asyncio.run(dns_sd.discover(arguments.timeout, arguments.interface))
    print(dns_sd.to_json(ports) if arguments.json else dns_sd.to_table(ports))
    return 0
