"""What a console asks for besides bytes: settings, lines, a break, a reset; as JSON, one at a time.

How it comes and is answered is `console`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import Any, Final

from gateway import clock
from gateway.errors import GatewayError, PortLostError
from gateway.inputs import parse_json
from gateway.port.claim import Claim
from gateway.port_document import plain
from gateway.protocol.reset import Starts
from gateway.protocol.serial_settings import Parity, SerialSettings, StopBits

#: How long one may take; then the next is heard all the same.
_LIMIT_S: Final = 15.0

_MAX_BAUDRATE: Final = 2**32 - 1

_NOT_IN_CONTROL: Final = "another client controls the port"


class CommandError(GatewayError):
    """For the client: why something is not done."""


async def carry_out(claim: Claim, text: str, flashed_by: str = "") -> dict[str, object]:
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
    if claim.is_suspended and not is_kept:
        raise CommandError(f"{kind}: {_NOT_IN_CONTROL}")
    try:
        async with clock.timeout(_LIMIT_S):
            await _COMMANDS[kind](claim, values)
    except TimeoutError:
        raise CommandError(f"{kind}: not done within {_LIMIT_S:.0f} s") from None
    except PortLostError as error:
        raise CommandError(f"{kind}: {error}") from None
    if claim.is_suspended and not is_kept:
        raise CommandError(f"{kind}: perhaps not done: {_NOT_IN_CONTROL}")
    return {"type": "done", "of": kind, **_in_force(claim)}


def _is_kept(kind: str, values: dict[str, Any]) -> bool:
    """Whether it is done as well while another client controls the port: settings, and no break.

    Settings are applied when control returns, and no break begins again then. Everything else is
    meant for the moment, and refused.
    """
    return kind == "settings" or (kind == "break" and values.get("on") is False)


def _in_force(claim: Claim) -> dict[str, object]:
    status = claim.status
    return {"settings": plain(status.settings), "lines": plain(status.lines)}


async def _apply(claim: Claim, values: dict[str, Any]) -> None:
    settings: SerialSettings = claim.status.settings
    changes: dict[str, Any] = {}
    for name, value in values.items():
        try:
            changes[name] = _SETTINGS[name](value)
        except (ValueError, TypeError):
            raise CommandError(f"settings: {name} can't be {str(value)[:40]!r}") from None
    await claim.set_settings(replace(settings, **changes))


async def _set_lines(claim: Claim, values: dict[str, Any]) -> None:
    for name in ("dtr", "rts"):
        if not isinstance(values.get(name, False), bool):
            raise CommandError(f"lines: {name} must be true or false")
    await claim.set_lines(**values)


async def _set_break(claim: Claim, values: dict[str, Any]) -> None:
    if not isinstance(values.get("on"), bool):
        raise CommandError("break: on must be true or false")
    await claim.set_break(values["on"])


async def _reset(claim: Claim, _: dict[str, Any]) -> None:
    await _start(claim, Starts.APP)


async def _enter_bootloader(claim: Claim, _: dict[str, Any]) -> None:
    await _start(claim, Starts.BOOTLOADER)


async def _start(claim: Claim, starts: Starts) -> None:
    # Where several control a port: never between two halves of what another has asked for.
    await claim.port.lines_settled()
    if not claim.is_suspended:
        await claim.port.start_board(starts)


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
