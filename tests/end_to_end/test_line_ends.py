"""What Enter and other line ends come to between real terminals, pipes and a board."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from tests.support.peers import program
from tests.support.pty_board import Served, until
from tests.support.terminal import Terminal

pytestmark = pytest.mark.timeout(300)

#: A person's terminals, and the Debian packages that have them.
TERMINALS = {
    "telnet": (["telnet", "127.0.0.1", "{port}"], "inetutils-telnet"),
    "telnet -8": (["telnet", "-8", "127.0.0.1", "{port}"], "inetutils-telnet"),
    "telnet -L": (["telnet", "-L", "127.0.0.1", "{port}"], "inetutils-telnet"),
    "PuTTY": (["plink", "-telnet", "-P", "{port}", "127.0.0.1"], "putty-tools"),
}

#: Programs that pass on what comes in at their stdin and print what comes back.
PIPES = {
    "nc": (["nc", "127.0.0.1", "{port}"], "netcat-openbsd"),
    "socat": (["socat", "-", "TCP:127.0.0.1:{port}"], "socat"),
}


def command_of(entry: tuple[list[str], str], tcp_port: int) -> list[str]:
    words, package = entry
    return [program(words[0], package), *(word.format(port=tcp_port) for word in words[1:])]


@pytest.mark.parametrize("name", TERMINALS)
async def test_enter_is_one_cr_for_the_board(desk: Served, name: str) -> None:
    def type_at(command: list[str], typed: bytes, shown: bytes) -> None:
        with Terminal(command) as terminal:
            terminal.wait_for(b"board says hello")
            terminal.wait_until_raw()
            terminal.type(typed)
            terminal.wait_for(shown)

    board = desk.board
    board.start_reading()
    command = command_of(TERMINALS[name], desk.tcp_port)
    typing = asyncio.create_task(
        asyncio.to_thread(type_at, command, b"help\r\rversion\r", b"that was all")
    )
    session = await desk.session()
    # Terminals that agree to binary data have said so by then.
    await until(lambda: session.received_bytes >= 9)
    await board.write(b"board says hello\r\n")
    await until(lambda: board.received.count(b"\r") == 3)
    await board.write(b"that was all\r\n")
    await typing
    assert bytes(board.received) == b"help\r\rversion\r"


@pytest.mark.parametrize("name", PIPES)
async def test_a_pipe_passes_text_both_ways_as_it_is(desk: Served, name: str) -> None:
    sent = b"AT\r\nline\nraw \r\0\x01\xfe" + "grün\r".encode()
    said = b"\x1b[31mred\x1b[0m 50 %\r60 %\r\n\0\x80 " + "grün".encode() + b"\r"
    board = desk.board
    board.start_reading()
    pipe = await asyncio.create_subprocess_exec(
        *command_of(PIPES[name], desk.tcp_port),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert pipe.stdin is not None
    assert pipe.stdout is not None
    pipe.stdin.write(sent)
    await pipe.stdin.drain()
    await until(lambda: len(board.received) >= len(sent))
    assert bytes(board.received) == sent
    await board.write(said + b"\xff|end")
    shown = await pipe.stdout.readuntil(b"|end")
    # The gateway's offers come first; 255 alone would be a command for a telnet client.
    assert shown == b"\xff\xfb\x01\xff\xfb\x03\xff\xfd\x00" + said + b"\xff\xff|end"
    pipe.stdin.close()
    pipe.terminate()
    await pipe.wait()
