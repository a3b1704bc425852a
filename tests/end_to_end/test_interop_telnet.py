"""Telnet clients as consoles: inetutils telnet and telnetlib3's client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.end_to_end.conftest import BoardOf
from tests.support.lab import LabBoard
from tests.support.peers import program
from tests.support.processes import run_tool
from tests.support.shim import build_shim
from tests.support.terminal import Terminal

QUIT = b"\x1d"  # Ctrl-]

_LIMIT_S = 60

#: telnetlib3's own API as an RFC 2217 client: it asks who the server is, and reads on.
TELNETLIB3_CLIENT = """
import asyncio, sys, telnetlib3
from telnetlib3.telopt import BINARY, COM_PORT_OPTION, DO, WILL

async def main(tcp_port):
    reader, writer = await telnetlib3.open_connection("127.0.0.1", tcp_port, encoding=False)
    writer.iac(DO, COM_PORT_OPTION)
    writer.iac(DO, BINARY)
    writer.iac(WILL, BINARY)
    writer.write(b"version\\r")
    said = await reader.readuntil(b"esp> ")
    while b"simulated app" not in said:
        said += await reader.readuntil(b"esp> ")
    print(writer.ctx.comport_data["signature"])
    print("binary" if writer.inbinary and writer.outbinary else "not binary")
    writer.close()

asyncio.run(main(int(sys.argv[1])))
"""


def telnet(board: LabBoard, *options: str) -> Terminal:
    command = program("telnet", "inetutils-telnet")
    return Terminal([command, *options, "127.0.0.1", str(board.tcp_port)])


def order(terminal: Terminal, *lines: bytes) -> None:
    """Say something to telnet itself, while it passes each character on."""
    for line in lines:
        tell(terminal, line)
        # Between a command and its own mode it would take a key for the beginning of a line.
        terminal.wait_until_raw()


def tell(terminal: Terminal, line: bytes) -> None:
    """Say something to telnet itself."""
    prompts = terminal.screen.count(b"telnet>")
    terminal.type(QUIT)
    terminal.wait_for(b"telnet>", prompts + 1)
    terminal.type(line + b"\r")


def test_telnets_send_commands_do_what_a_terminal_server_does(
    board_of: BoardOf, tmp_path: Path
) -> None:
    shim = build_shim(tmp_path)
    board = board_of("heartbeat_s=0", env=shim.env())
    with telnet(board) as terminal:
        terminal.type(b"version\r")
        terminal.wait_for(b"simulated app")
        order(terminal, b"send brk")
        shim.wait_for_call("TIOCCBRK")
        order(terminal, b"send ip", b"send el")
        terminal.type(b"|\r")
        terminal.wait_for(b"? \x03\x15|")  # Ctrl-C and Ctrl-U, for the app to make sense of
        terminal.type(b"abc")
        terminal.wait_for(b"abc")
        order(terminal, b"send ec")
        terminal.wait_for(b"\b \b")
        terminal.type(b"\r")
        terminal.wait_for(b"? ab\r\n")
        order(terminal, b"send synch", b"send nop", b"send ga", b"send eor", b"send escape")
        terminal.type(b"\r")
        terminal.wait_for(b"? \x1d\r\n")
        order(terminal, b"send ayt")
        terminal.wait_for(b"desk: 115200 8N1")
        tell(terminal, b"quit")
        assert terminal.wait_until_ended() == 0
    assert [call.name for call in shim.calls("TIOCSBRK", "TIOCCBRK")] == [
        "TIOCSBRK",
        "TIOCCBRK",
    ]
    assert board.boots() == ["app"]


def test_telnet_is_a_console_with_characters_as_they_are_typed(board_of: BoardOf) -> None:
    board = board_of()
    with telnet(board) as terminal:
        terminal.wait_for(b"heartbeat")  # came behind the negotiation: telnet has seen that
        terminal.type(b"ver")
        terminal.wait_for(b"ver")  # the board's echo: no line was ended yet
        terminal.type(b"sion\r")
        terminal.wait_for(b"simulated app")
        assert terminal.screen.count(b"version") == 1
        tell(terminal, b"quit")
        assert terminal.wait_until_ended() == 0
    assert board.boots() == ["app"]


def test_telnet_may_edit_its_lines_itself_and_go_back(board_of: BoardOf) -> None:
    board = board_of("heartbeat_s=0")
    with telnet(board) as terminal:
        terminal.type(b"\r")
        terminal.wait_for(b"esp> ")
        order(terminal, b"toggle options")
        tell(terminal, b"mode line")
        terminal.type(b"versiom\x7fn\r")
        terminal.wait_for(b"simulated app")
        tell(terminal, b"mode character")
        terminal.wait_for(b"RCVD WILL ECHO")  # until then telnet echoes itself
        terminal.type(b"hel")
        terminal.wait_for(b"hel")  # the board's echo: no line was ended yet
        terminal.type(b"p\r")
        terminal.wait_for(b"this list")
        assert terminal.screen.count(b"hel") == 2  # once more in the app's own list
        tell(terminal, b"quit")
        assert terminal.wait_until_ended() == 0


@pytest.mark.parametrize("options", [(), ("-8",), ("-L",)])
def test_telnet_passes_8_bit_characters(board_of: BoardOf, options: Sequence[str]) -> None:
    text = "Grüße, ÿ".encode("latin-1") + "€".encode()
    board = board_of("heartbeat_s=0")
    with telnet(board, *options) as terminal:
        terminal.type(b"\r")
        terminal.wait_for(b"esp> ")
        terminal.type(text + b"\r")
        terminal.wait_for(b"? " + text + b"\r\n")
        tell(terminal, b"quit")
        assert terminal.wait_until_ended() == 0


def test_telnetlib3s_client_is_a_console(board_of: BoardOf) -> None:
    board = board_of("heartbeat_s=0")
    command = [sys.executable, "-c", "import telnetlib3.client as c; c.main()"]
    with Terminal([*command, "127.0.0.1", str(board.tcp_port)]) as terminal:
        terminal.wait_for(b"Escape character")
        terminal.type(b"\r")
        terminal.wait_for(b"esp> ")
        terminal.type(b"ver")
        terminal.wait_for(b"ver")
        terminal.type(b"sion\r")
        terminal.wait_for(b"simulated app")
        assert terminal.screen.count(b"version") == 1
        terminal.type(QUIT)
        assert terminal.wait_until_ended() == 0
    assert board.boots() == ["app"]
    assert not board.warnings()


def test_telnetlib3s_api_finds_an_rfc_2217_server(board_of: BoardOf) -> None:
    board = board_of("heartbeat_s=0")
    command = [sys.executable, "-c", TELNETLIB3_CLIENT, str(board.tcp_port)]
    done = run_tool(command, timeout_s=_LIMIT_S)
    assert done.returncode == 0, done.stderr
    signature, binary = done.stdout.splitlines()
    assert signature.startswith("esp-serial-gateway")
    assert binary == "binary"
    assert not board.warnings()


def test_a_pipe_to_the_port_is_a_console(board_of: BoardOf) -> None:
    board = board_of("heartbeat_s=0")
    # With -t nc refuses each telnet option; without, and socat: test_line_ends.
    command = [program("nc", "netcat-openbsd"), "-t", "127.0.0.1", str(board.tcp_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"version\n")
        client.stdin.flush()
        said = b""
        while b"version\r\ndesk simulated app" not in said:
            byte = client.stdout.read(1)
            assert byte, said
            said += byte
        client.terminate()
    assert board.boots() == ["app"]
    assert not board.warnings()
