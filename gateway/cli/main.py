"""Parse the arguments of `esp-gateway`, run the command, and turn errors into exit codes.

Each family of commands has a module that adds its arguments here. They import the rest of the
gateway only when a command runs: `--help` and `status` need no YAML reader.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import signal
import sys

from gateway import __version__
from gateway.cli import flash, ports, serving
from gateway.errors import ConfigError, GatewayError

#: Exit codes: a failure; wrong file or arguments (argparse uses it too); standard output closed,
#: as a shell shows an end by SIGPIPE.
_FAILED = 1
_WRONG_INPUT = 2
_OUTPUT_CLOSED = 128 + signal.SIGPIPE

#: Errors of writing to a file; the commands write to standard output only.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code.

    Raises SystemExit for wrong arguments, --help and --version.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be text
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run_command(_parser().parse_args(arguments))
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()  # here, where a failure can be reported
    except BrokenPipeError:
        _drop_unwritten()
        return _OUTPUT_CLOSED
    except OSError as error:
        if _drop_unwritten() or error.errno in _DISK_ERRORS:
            error.filename = error.filename or "standard output"
        with contextlib.suppress(OSError):
            print(f"esp-gateway: {_reason(error)}", file=sys.stderr, flush=True)
        return _FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="esp-gateway", description="RFC 2217 gateway for the ESP boards of a lab host"
    )
    parser.add_argument("--version", action="version", version=f"esp-gateway {__version__}")
    parser.set_defaults(run=None, alone=parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    serving.add_commands(commands)
    ports.add_commands(commands)
    flash.add_commands(commands)
    return parser


def _run_command(parsed: argparse.Namespace) -> int:
    if parsed.run is None:  # only the name of a group of commands
        parsed.alone.print_help()
        return 0
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
    """Drop buffered output that can't be written: the interpreter would try again at its end.

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
