"""The command `flash`: read the arguments and images, then have the gateway write them."""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.flash.display import Display

#: Instead of --http and --token-file.
ADDRESS_VARIABLE = "ESP_GATEWAY_HTTP"
TOKEN_VARIABLE = "ESP_GATEWAY_TOKEN"  # noqa: S105 - where it is, not what

_MAX_TOKEN_BYTES = 4096

#: Fields of FlashOptions that have an option of the same name, None if it is not given.
_OPTIONS = (
    "chip",
    "baudrate",
    "flash_mode",
    "flash_freq",
    "flash_size",
    "before",
    "after",
    "erase_all",
    "compress",
    "stub",
    "force",
)

_EPILOG = """\
examples:
  esp-gateway flash lab:4001 build/
  esp-gateway flash lab:4001 0x1000 bootloader.bin 0x8000 partitions.bin 0x10000 app.bin
  esp-gateway flash lab:4001,4002,4003 merged.bin
  esp-gateway flash --http https://lab:8443 --token-file ~/.lab-token lab/desk build/
exit codes are in docs/remote-flashing.md
"""


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `flash`."""
    flash = commands.add_parser(
        "flash",
        help="flash boards with the gateway's own esptool",
        description="Sends images to a gateway, which writes them with its own esptool.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flash.add_argument("target", metavar="HOST:PORT", help="boards: lab:4001,4002 or lab/desk")
    flash.add_argument(
        "images",
        nargs="+",
        metavar="IMAGES",
        help="OFFSET FILE pairs, an ESP-IDF build folder, its flasher_args.json, a merged image",
    )
    _add_gateway_options(flash)
    _add_esptool_options(flash)
    shown = flash.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="a line of JSON for each event")
    shown.add_argument("--verbose", action="store_true", help="show what esptool prints")
    flash.set_defaults(run=_flash)


def _add_gateway_options(flash: argparse.ArgumentParser) -> None:
    flash.add_argument(
        "--http",
        metavar="ADDRESS",
        default=os.environ.get(ADDRESS_VARIABLE),
        help=f"the gateway's HTTP address (default: ${ADDRESS_VARIABLE}, else HOST:8080)",
    )
    flash.add_argument(
        "--token-file", type=Path, metavar="FILE", help=f"its token (default: ${TOKEN_VARIABLE})"
    )
    flash.add_argument(
        "--ca", type=Path, metavar="FILE", help="certificates to trust instead of the system's"
    )
    flash.add_argument(
        "--disconnect",
        action="store_true",
        help="disconnect other clients of the port, whatever its `sharing`",
    )


def _add_esptool_options(flash: argparse.ArgumentParser) -> None:
    options = flash.add_argument_group("as for esptool")
    options.add_argument(
        "--chip", help="default: the chip that the images are for, else the one that answers"
    )
    options.add_argument(
        "--baud", dest="baudrate", type=int, metavar="RATE", help="default: 460800"
    )
    for name in ("mode", "freq", "size"):
        options.add_argument(f"--flash-{name}", help="default: as in the image")
    options.add_argument("--before", help="default-reset, usb-reset, no-reset")
    options.add_argument("--after", help="hard-reset, no-reset, watchdog-reset")
    options.add_argument("--erase-all", action="store_true", default=None)
    options.add_argument("--compress", action=argparse.BooleanOptionalAction)
    options.add_argument("--no-stub", dest="stub", action="store_false", default=None)
    options.add_argument(
        "--force",
        action="store_true",
        default=None,
        help="write images that the gateway or esptool would refuse",
    )


def _flash(arguments: argparse.Namespace) -> int:
    from gateway.flash.client import (
        Boards,
        GatewayClient,
        find_names,
        read_address,
        read_target,
    )
    from gateway.flash.files import read_images
    from gateway.flash.image_checks import check_images
    from gateway.flash.plan import FlashError

    given = {name: value for name in _OPTIONS if (value := getattr(arguments, name)) is not None}
    try:
        target = read_target(arguments.target)
        address = read_address(arguments.http, target.host)
        images = read_images(arguments.images, given, _label())
        check_images(images.plan, images.read)
        client = GatewayClient(address, _token(arguments.token_file), arguments.ca)
        names = find_names(target, client.ports(), str(address))
    except FlashError as error:
        print(f"esp-gateway: {error}", file=sys.stderr)
        return error.outcome.exit_code
    display = _display(arguments, names)
    boards = Boards(client, images, display, disconnect=arguments.disconnect)
    return boards.flash(names)


def _display(arguments: argparse.Namespace, names: list[str]) -> Display:
    from gateway.flash.display import JsonLines, Lines

    if arguments.json:
        return JsonLines(sys.stdout)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return Lines(names, sys.stdout, columns=columns, verbose=arguments.verbose)


def _token(file: Path | None) -> str:
    """Return the gateway's token; never given on the command line, where all users can see it."""
    from gateway.flash.plan import WrongInputError

    if file is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    try:
        with file.open(encoding="ascii") as opened:
            token = opened.read(_MAX_TOKEN_BYTES).strip()
    except (OSError, ValueError) as error:
        raise WrongInputError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    if not token or not token.isprintable():
        raise WrongInputError(f"{file}: no token in it: expected one line of text")
    return token


def _label() -> str:
    """Return the name under which other clients see that this user flashes the board."""
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):  # no such user in this container
        user = f"uid {os.getuid()}"
    # An environment variable may hold any bytes.
    return f"{user}@{socket.gethostname()}".encode(errors="replace").decode()
