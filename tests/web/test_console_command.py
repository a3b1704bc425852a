"""What a console asks for besides bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.port.claim import Claim
from gateway.port_document import plain
from gateway.protocol.reset import BOTH
from gateway.protocol.serial_settings import SerialSettings, StopBits
from gateway.web import console_command
from gateway.web.console_command import CommandError, carry_out
from tests.support.claim_user import User
from tests.support.pty_board import PtyBoard, Served, serving


def a_claim(served: Served) -> Claim:
    """The claim of a client that controls the port."""
    user = User()
    user.ask(served.port)
    return user.claim


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        ("[]", "the type must be one of settings, lines, break, reset, bootloader"),
        ("{}", "the type must be one of settings, lines, break, reset, bootloader"),
        ('{"type": ["reset"]}', "the type must be one of settings, lines, break, reset"),
        ('{"type": "reset", "force": true}', "reset has no 'force' (nothing)"),
        ('{"type": "lines", "cts": true}', "lines has no 'cts' (dtr, rts)"),
        ('{"type": "lines", "dtr": 1}', "lines: dtr must be true or false"),
        ('{"type": "break"}', "break: on must be true or false"),
        ('{"type": "settings", "baudrate": 0}', "settings: baudrate can't be '0'"),
        ('{"type": "settings", "baudrate": true}', "settings: baudrate can't be 'True'"),
        ('{"type": "settings", "baudrate": "fast"}', "settings: baudrate can't be 'fast'"),
        ('{"type": "settings", "bytesize": 9}', "settings: bytesize can't be '9'"),
        ('{"type": "settings", "parity": "E"}', "settings: parity can't be 'E'"),
        ('{"type": "settings", "stopbits": null}', "settings: stopbits can't be 'None'"),
    ],
)
async def test_what_can_t_be_done_is_told(text: str, reason: str, board: PtyBoard) -> None:
    async with serving(board) as served:
        with pytest.raises(CommandError) as raised:
            await carry_out(a_claim(served), text)
        assert str(raised.value).startswith(reason)
        assert served.port.status.settings.baudrate == 115200


async def test_all_settings_are_set_at_once(board: PtyBoard) -> None:
    async with serving(board) as served:
        command = {"type": "settings", "baudrate": 9600, "stopbits": 2}
        answer = await carry_out(a_claim(served), json.dumps(command))
        assert answer["settings"] == plain(SerialSettings(9600, stopbits=StopBits.TWO))


async def test_both_lines_are_one_step(board: PtyBoard) -> None:
    async with serving(board) as served:
        before = len(board.lines)
        command = json.dumps({"type": "lines", "dtr": True, "rts": True})
        answer = await carry_out(a_claim(served), command)
        assert answer["lines"] == {"dtr": True, "rts": True}
        assert board.lines[before:] == [BOTH]


async def test_a_kernel_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_command, "_LIMIT_S", 0.01)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            board.answers.clear()
            with pytest.raises(CommandError, match="reset: not done within 0 s"):
                await carry_out(a_claim(served), '{"type": "reset"}')
            board.answers.set()
