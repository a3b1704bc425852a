"""Programs of other fields on the real service: C-Kermit, conserver, avrdude."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.conftest import BoardOf
from tests.support.peers import program
from tests.support.played_ttys import Stk500Board
from tests.support.processes import START_LIMIT_S, Service, free_tcp_port, run_tool
from tests.support.terminal import Terminal

_LIMIT_S = 100

#: C-Kermit is an RFC 2217 client of its own. Its defaults ask for carrier detect and for CTS, which
#: most boards don't have.
KERMIT = """\
set telopt com-port-control required
set carrier-watch off
set flow none
set host 127.0.0.1 {tcp_port} /telnet
if fail exit 1
set speed 115200
show communications
output version\\13
input 30 simulated app
if fail exit 2
exit 0
"""

CONSERVER = """\
default full {{ rw *; }}
access localhost {{ trusted 127.0.0.1; }}
console desk {{
  include full;
  master localhost;
  type host;
  host 127.0.0.1;
  port {tcp_port};
  protocol telnet;
}}
"""


def test_kermit_sets_the_port_and_talks_to_the_board(board_of: BoardOf, tmp_path: Path) -> None:
    kermit = program("kermit", "ckermit")
    board = board_of()
    script = tmp_path / "desk.ksc"
    script.write_text(KERMIT.format(tcp_port=board.tcp_port))
    done = run_tool([kermit, script], timeout_s=_LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Signature            : esp-serial-gateway" in done.stdout
    assert "Speed                : 115200" in done.stdout


@contextmanager
def conserver(tmp_path: Path, tcp_port: int) -> Iterator[int]:
    """Debian's conserver with one console, on the port that is given."""
    config = tmp_path / "conserver.cf"
    config.write_text(CONSERVER.format(tcp_port=tcp_port))
    main_port, group_port = free_tcp_port(), free_tcp_port()
    log = tmp_path / "conserver.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                *(program("conserver", "conserver-server"), "-C", config, "-M", "127.0.0.1"),
                *("-p", str(main_port), "-b", str(group_port)),
            ],
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", main_port), START_LIMIT_S).close()
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    pytest.fail(log.read_text())
                time.sleep(0.05)
        yield main_port
    finally:
        process.terminate()
        process.wait()


def test_conserver_keeps_a_board_as_one_of_its_consoles(board_of: BoardOf, tmp_path: Path) -> None:
    console = program("console", "conserver-client")
    board = board_of("heartbeat_s=0")
    with conserver(tmp_path, board.tcp_port) as main_port:
        command = [console, "-C", "/dev/null", "-M", "127.0.0.1", "-p", str(main_port), "desk"]
        with Terminal(command) as terminal:
            terminal.wait_for(b"help]")
            for count in (1, 2):
                terminal.type(b"version\r")
                terminal.wait_for(b"desk simulated app", count)
            # One Enter is one line to the board: a second would be answered by a prompt.
            between = terminal.screen.split(b"desk simulated app")[1]
            assert between.count(b"esp> ") == 1
            terminal.type(b"\x05c.")
            assert terminal.wait_until_ended() == 0


def test_avrdude_writes_and_verifies_an_arduino_on_a_raw_port(tmp_path: Path) -> None:
    avrdude = program("avrdude", "avrdude")
    image = tmp_path / "sketch.bin"
    image.write_bytes(random.Random(17).randbytes(3000))
    tcp_port = free_tcp_port()
    config = tmp_path / "gateway.yaml"
    with Stk500Board() as board:
        config.write_text(
            f"ports:\n  - name: uno\n    tcp: {tcp_port}\n    device: {board.tty_path}\n"
            "    protocol: raw\n    reset: none\n"
        )
        with Service(config) as service:
            service.wait_for_line("device_opened")
            done = run_tool(
                [
                    *(avrdude, "-c", "arduino", "-p", "m328p", "-P", f"net:127.0.0.1:{tcp_port}"),
                    *("-D", "-U", f"flash:w:{image}:r"),
                ],
                timeout_s=_LIMIT_S,
            )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "3000 bytes of flash verified" in done.stdout + done.stderr
        assert bytes(board.flash[:3000]) == image.read_bytes()
