"""gensio's RFC 2217 client on the real service: gensiot at a terminal, and Debian's bindings."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from gateway.simulator.board import pattern
from tests.end_to_end.conftest import BoardOf
from tests.support.lab import LabBoard
from tests.support.peers import program, system_python_with
from tests.support.processes import run_tool
from tests.support.shim import build_shim
from tests.support.terminal import Terminal

SCRIPT = Path(__file__).parent.parent / "support" / "gensio_client.py"

ESCAPE = b"\x1c"  # Ctrl-\, gensiot's own

_LIMIT_S = 60


def address(board: LabBoard) -> str:
    return f"telnet(rfc2217),tcp,127.0.0.1,{board.tcp_port}"


def gensiot(board: LabBoard) -> Terminal:
    return Terminal([program("gensiot", "gensio-bin"), address(board)])


def test_gensiot_is_a_console_that_sets_the_port(board_of: BoardOf, tmp_path: Path) -> None:
    shim = build_shim(tmp_path)
    board = board_of("heartbeat_s=0", env=shim.env())
    with gensiot(board) as terminal:
        terminal.type(b"version\r")
        terminal.wait_for(b"simulated app")
        terminal.type(ESCAPE + b"d")
        terminal.wait_for(b"Signature: esp-serial-gateway")
        terminal.wait_for(b"Speed: 115200N81")
        terminal.type(ESCAPE + b"s74880\r")
        board.wait_for_state(host_baudrate=74880)
        for key in (b"e", b"7", b"2"):
            terminal.type(ESCAPE + key)
        terminal.type(ESCAPE + b"d")
        terminal.wait_for(b"Speed: 74880E72")
        terminal.type(ESCAPE + b"b")
        shim.wait_for_call("TIOCCBRK")
        terminal.type(ESCAPE + b"q")
        assert terminal.wait_until_ended() == 0
    board.wait_for_state(host_baudrate=115200)
    assert [call.name for call in shim.calls("TIOCSBRK", "TIOCCBRK")] == [
        "TIOCSBRK",
        "TIOCCBRK",
    ]
    assert board.boots() == ["app"]
    assert not board.warnings()


def test_bytes_of_all_values_pass_through_gensiot_unchanged(board_of: BoardOf) -> None:
    size_bytes = 20_000
    # What the app echoes as it comes: all but its own keys, and no more than a line.
    echoed = bytes(set(range(256)) - set(b"\r\n\b\x7f"))
    board = board_of("heartbeat_s=0")
    with subprocess.Popen(
        [program("gensiot", "gensio-bin"), "-i", "stdio(self)", address(board)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(f"bytes {size_bytes}\r".encode())
        client.stdin.flush()
        wanted = f"bytes {size_bytes}\r\n".encode() + pattern(size_bytes) + b"\r\nesp> "
        said = b""  # it may begin with the end of what the board says as it boots
        while not said.endswith(wanted):
            more = os.read(client.stdout.fileno(), 65536)
            assert more, said
            said += more
        client.stdin.write(echoed)
        client.stdin.flush()
        assert client.stdout.read(len(echoed)) == echoed
    assert client.returncode == 0


def test_gensios_own_client_sets_everything_and_is_answered_what_it_asked_for(
    board_of: BoardOf,
    tmp_path: Path,
) -> None:
    python = system_python_with("gensio", "python3-gensio")
    shim = build_shim(tmp_path)
    board = board_of("heartbeat_s=0", env=shim.env())
    done = run_tool([python, SCRIPT, str(board.tcp_port)], timeout_s=_LIMIT_S)
    assert done.returncode == 0, done.stderr
    *answers, (_, said, modemstates) = map(json.loads, done.stdout.splitlines())
    assert "simulated app" in said
    assert modemstates > 0
    in_force: dict[str, int] = {"baud": 115200, "iflowcontrol": 1}
    for name, value, answer in answers:
        if value != 0:
            in_force[name] = value
        assert answer == in_force[name], (name, value)
    speeds = [call.args for call in shim.calls("TCSETS2")]
    assert any("speed=250000" in args for args in speeds), shim.calls()
    # Asked for one by one, and once by a telnet BREAK.
    assert [call.name for call in shim.calls("TIOCSBRK", "TIOCCBRK")] == [
        "TIOCSBRK",
        "TIOCCBRK",
    ] * 2
    assert {call.args for call in shim.calls("tcflush")} >= {"TCIFLUSH", "TCOFLUSH"}
    lines = [(entry["dtr"], entry["rts"]) for entry in board.log() if entry["event"] == "lines"]
    assert lines[-4:] == [(True, False), (True, True), (True, False), (False, False)]
    assert board.boots() == ["app"]
    assert not board.warnings()
