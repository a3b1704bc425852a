"""What a console asks for besides bytes: settings, lines, a break, a reset; as JSON, one at a time.

How it comes and is answered is `console`'s matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any, Final

from gateway import clock
from gateway.devices.device import Device
from gateway.errors import GatewayError
from gateway.inputs import parse_json
from gateway.protocol.serial_settings import Parity, SerialSettings, StopBits
from gateway.sessions.seat import Seat

#: How long one may take; then the next is heard all the same.
_LIMIT_S: Final = 15.0

_MAX_BAUDRATE: Final = 2**32 - 1

_NOT_IN_CONTROL: Final = "another client controls the port"


class CommandError(GatewayError):
    """For the client: why something is not done."""


async def carry_out(
    seat: Seat, device: Device, text: str, flashed_by: str = ""
) -> dict[str, object]:
    """Do what a message asks for; returns the answer. Raises CommandError.

    `flashed_by` names the flasher while the board is flashed, on a `shared` port for instance.
    """
    try:
        asked = parse_json(text)
    except ValueError as error:
        raise CommandError(f"this is not JSON: {error}") from None
    kind = asked.get("type") if isinstance(asked, dict) else None
    if not isinstance(kind, str) or kind not in _COMMANDS:
        raise CommandError(f"the type must be one of {', '.join(_COMMANDS)}")
    values = {name: value for name, value in asked.items() if name != "type"}
    known = _KEYS[kind]
    if unknown := sorted(values.keys() - set(known)):
        raise CommandError(f"{kind} has no {unknown[0][:40]!r} ({', '.join(known) or 'nothing'})")
    is_kept = _is_kept(kind, values)
    if flashed_by and not is_kept:
        raise CommandError(f"{kind}: the board is being flashed by {flashed_by}")
    if seat.is_muted and not is_kept:
        raise CommandError(f"{kind}: {_NOT_IN_CONTROL}")
    done = asyncio.Event()
    was_suspended = False

    def finished() -> None:
        nonlocal was_suspended
        was_suspended = seat.is_muted
        done.set()

    _COMMANDS[kind](seat, device, values, finished)
    try:
        async with clock.timeout(_LIMIT_S):
            await done.wait()
    except TimeoutError:
        raise CommandError(f"{kind}: not done within {_LIMIT_S:.0f} s") from None
    if was_suspended and not is_kept:
        raise CommandError(f"{kind}: perhaps not done: {_NOT_IN_CONTROL}")
    return {"type": "done", "of": kind, **_in_force(seat)}


def _is_kept(kind: str, values: dict[str, Any]) -> bool:
    """Whether it is done as well while another client controls the port: settings, and no break.

    Settings are applied when control returns, and no break begins again then. Everything else is
    meant for the moment, and refused.
    """
    return kind == "settings" or (kind == "break" and values.get("on") is False)


def _in_force(seat: Seat) -> dict[str, object]:
    status = seat.status
    return {
        "settings": str(status.settings),
        "baud": status.settings.baudrate,
        "dtr": status.lines.dtr,
        "rts": status.lines.rts,
    }


_Done = Callable[[], None]


def _apply(seat: Seat, _: Device, values: dict[str, Any], done: _Done) -> None:
    settings: SerialSettings = seat.status.settings
    changes: dict[str, Any] = {}
    for name, value in values.items():
        try:
            changes[name] = _SETTINGS[name](value)
        except (ValueError, TypeError):
            raise CommandError(f"settings: {name} can't be {str(value)[:40]!r}") from None
    seat.apply(replace(settings, **changes), done)


def _set_lines(seat: Seat, _: Device, values: dict[str, Any], done: _Done) -> None:
    for name in ("dtr", "rts"):
        if not isinstance(values.get(name, False), bool):
            raise CommandError(f"lines: {name} must be true or false")
    seat.set_lines(done, **values)


def _set_break(seat: Seat, _: Device, values: dict[str, Any], done: _Done) -> None:
    if not isinstance(values.get("on"), bool):
        raise CommandError("break: on must be true or false")
    seat.set_break(values["on"], done)


def _reset(_: Seat, device: Device, __: dict[str, Any], done: _Done) -> None:
    _play(device, device.reset, done)


def _enter_bootloader(_: Seat, device: Device, __: dict[str, Any], done: _Done) -> None:
    _play(device, device.enter_bootloader, done)


def _play(device: Device, play: Callable[[_Done], None], done: _Done) -> None:
    # Where several drive a port: never between two halves of what another has asked for.
    device.when_lines_settled(lambda: play(done))


def _number(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value

    return read


def _word(words: type[Enum]) -> Callable[[object], Enum]:
    by_word = {str(member.value): member for member in words}

    def read(value: object) -> Enum:
        if str(value) not in by_word:
            raise ValueError
        return by_word[str(value)]

    return read


_SETTINGS: Final[dict[str, Callable[[object], object]]] = {
    "baudrate": _number(1, _MAX_BAUDRATE),
    "bytesize": _number(5, 8),
    "parity": _word(Parity),
    "stopbits": _word(StopBits),
}

_COMMANDS: Final = {
    "settings": _apply,
    "lines": _set_lines,
    "break": _set_break,
    "reset": _reset,
    "bootloader": _enter_bootloader,
}

_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "settings": tuple(_SETTINGS),
    "lines": ("dtr", "rts"),
    "break": ("on",),
    "reset": (),
    "bootloader": (),
}
