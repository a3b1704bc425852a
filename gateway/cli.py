"""The command `esp-gateway`: arguments, exit codes, and what is printed for people."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import __version__, cli_flash, cli_lan
from gateway.cli_lan import print_help
from gateway.config.document import GatewayConfig, PortConfig, tcp_text
from gateway.config.reader import load_config
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from gateway.service import Service

#: Exit codes: something failed; the operator's file or arguments are wrong (argparse's code); ended
#: by a signal, whose number is added (as shells have it).
_FAILED = 1
_WRONG_INPUT = 2
_SIGNALLED = 128

#: Errors of writing to a file; the commands write to standard output only.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

#: Between two looks of `status --watch`.
_WATCH_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code.

    Raises SystemExit for wrong arguments, --help and --version.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run_command(_parser().parse_args(arguments))
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()  # here, where it can fail with a message
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C kills
        return _SIGNALLED + signal.SIGINT
    except BrokenPipeError:
        _drop_unwritten()
        return _SIGNALLED + signal.SIGPIPE
    except OSError as error:
        if _drop_unwritten() or error.errno in _DISK_ERRORS:
            error.filename = error.filename or "standard output"
        with contextlib.suppress(OSError):
            print(f"esp-gateway: {_reason(error)}", file=sys.stderr, flush=True)
        return _FAILED


def _run_command(parsed: argparse.Namespace) -> int:
    try:
        code: int = parsed.run(parsed)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return _WRONG_INPUT
    except GatewayError as error:
        print(f"esp-gateway: {error}", file=sys.stderr)
        return _FAILED
    return code


def _drop_unwritten() -> bool:
    """Drop buffered output that can't be written; the interpreter would try again at its end.

    Returns whether there was any.
    """
    failed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            failed = True
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
    return failed


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return text if error.filename is None else f"{error.filename}: {text}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="esp-gateway", description="RFC 2217 gateway for the ESP boards of a lab host"
    )
    parser.add_argument("--version", action="version", version=f"esp-gateway {__version__}")
    parser.set_defaults(run=lambda _: print_help(parser))
    commands = parser.add_subparsers(metavar="COMMAND")

    run = commands.add_parser("run", help="serve the ports of a configuration file")
    run.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file")
    run.add_argument("--verbose", action="store_true", help="log each change of the modem lines")
    run.add_argument("--socket", type=Path, metavar="PATH", help="where `status` is told")
    _add_state_dir(run)
    run.set_defaults(run=_run)

    check = commands.add_parser("check", help="validate a configuration file without serving it")
    check.add_argument("file", type=Path, metavar="FILE", help="YAML file")
    check.add_argument("--quiet", action="store_true", help="print mistakes and warnings only")
    check.set_defaults(run=_check)

    status = commands.add_parser("status", help="show the ports of the running service")
    status.add_argument("--json", action="store_true", help="as one line of JSON")
    status.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    status.add_argument("--socket", type=Path, metavar="PATH", help="where the service tells it")
    status.set_defaults(run=_status)

    devices = commands.add_parser("devices", help="list the USB serial devices that are plugged in")
    devices.add_argument("--config", type=Path, metavar="FILE", help="tell which port serves each")
    _add_state_dir(devices)
    form = devices.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--yaml", action="store_true", help="as entries for the configuration")
    devices.set_defaults(run=_devices)

    cli_lan.add_export(commands, _add_state_dir)
    cli_lan.add_discover(commands)
    cli_flash.add_flash(commands)

    demo = commands.add_parser("demo", help="serve simulated boards and print commands to try")
    demo.add_argument("--verbose", action="store_true", help="log each change of the modem lines")
    demo.set_defaults(run=_demo)
    return parser


def _add_state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where it is kept which port of a pool each board has"
        " (default: $STATE_DIRECTORY, else ~/.local/state/esp-gateway)",
    )


def _run(arguments: argparse.Namespace) -> int:
    _import_structlog()
    from gateway import service, status_socket  # noqa: PLC0415 - `check` needs neither

    serving = service.serve(
        load_config(arguments.config),
        load=lambda: load_config(arguments.config),
        status_path=arguments.socket or status_socket.default_path(),
        state_folder=arguments.state_dir,
    )
    _serve(serving, verbose=arguments.verbose)
    return 0


def _import_structlog() -> None:
    """Keep structlog from taking rich, where esptool has brought it: 5 MB and 30 ms for nothing."""
    rich = sys.modules.get("rich")
    sys.modules["rich"] = None  # type: ignore[assignment]  # Python's word for absent
    import structlog  # noqa: F401, PLC0415

    del sys.modules["rich"]
    if rich is not None:
        sys.modules["rich"] = rich


def _status(arguments: argparse.Namespace) -> int:
    from gateway import status, status_socket  # noqa: PLC0415 - only this command needs them

    path = arguments.socket or status_socket.find_path()
    try:
        while True:
            line = status_socket.ask(path)
            table = status.to_table(status.from_json(line)[1])
            shown = line if arguments.json else "\n".join([table, *status.notes_from_json(line)])
            print(shown, flush=True)
            if not arguments.watch:
                return 0
            time.sleep(_WATCH_S)
    except ValueError as error:
        raise status_socket.StatusError(f"{path}: {error}") from error


def _check(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.file)
    if not arguments.quiet:
        _print_summary(arguments.file, config)
    for warning in config.warnings:
        print(warning, file=sys.stderr)
    cli_lan.print_warnings(config)
    return 0


def _print_summary(file: Path, config: GatewayConfig) -> None:
    counted = _counted(len(config.ports), "port")
    if config.pools:
        counted += f", {_counted(len(config.pools), 'pool')}"
    print(f"{file}: no errors, {counted}")
    for port in config.ports:
        way_in = f"connects to {port.connect}" if port.connect else f"{port.host}:{port.tcp_port}"
        print(f"  {port.name}: {way_in}{_tls_text(port)} -> {port.device}")
    for pool in config.pools:
        way_in = f"{pool.pattern.host}:{tcp_text(pool.tcp_ports)}{_tls_text(pool.pattern)}"
        print(f"  {pool.name}: {way_in} -> each of {pool.pattern.device}")
    if config.http is not None:
        print(f"  HTTP: {config.http}")


def _tls_text(port: PortConfig) -> str:
    if port.tls is None:
        return ""
    has_names = port.connect is None and port.tls.client_ca is not None
    return " with TLS and client certificates" if has_names else " with TLS"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _devices(arguments: argparse.Namespace) -> int:
    from gateway.usb import device_list, pool_store, state_file, sysfs  # noqa: PLC0415 - as above

    config = GatewayConfig(())
    if arguments.config is not None:  # who looks at the boards need not be able to read the keys
        config = load_config(arguments.config, with_files=False)
    folder = arguments.state_dir or state_file.default_folder(os.environ)
    table = pool_store.read_table(folder)
    listed = device_list.listing(device_list.look(sysfs.Sysfs()), config, table)
    if arguments.json:
        print(device_list.to_json(listed))
    elif arguments.yaml:
        print(device_list.to_yaml(listed, config))
    else:
        print(device_list.to_table(listed))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from gateway import demo, service  # noqa: PLC0415 - only this command needs the first

    def started(serving: Service) -> None:
        print(demo.commands_to_try(serving.tcp_ports(), serving.http_port), flush=True)

    _serve(service.serve(demo.configuration(), started=started), verbose=arguments.verbose)
    return 0


def _serve(serving: Coroutine[None, None, None], *, verbose: bool) -> None:
    """Run the service, made by `service.serve`, until it ends."""
    import structlog  # noqa: PLC0415 - as below

    from gateway import event_loop, log  # noqa: PLC0415 - `check` needs neither
    from gateway.log_writer import LogWriter  # noqa: PLC0415

    writer = LogWriter(sys.stderr.fileno())
    log.configure(writer, verbose=verbose)

    async def serve() -> None:
        await serving
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Nothing is left to stop or to reload.
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    try:
        event_loop.run(serve())
    except OSError:
        structlog.get_logger().exception("service_failed")
        raise
    finally:
        serving.close()  # it has not begun if there is no loop to run it on
        writer.close()
