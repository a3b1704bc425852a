"""Clients whose machine is gone without a word: a real network is taken from under them."""

from __future__ import annotations

import re
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.cables import Cable, Machine, why_not
from tests.support.lab import Lab
from tests.support.processes import BackgroundProcess, run_tool

#: 14 s are documented. The rest is for a machine that is busy; the kernel alone may take 28 s.
FREED_S = 20.0

#: What the boards say meanwhile: nothing, much, and something after the kernel has begun to ask.
BOARDS = {"quiet": "heartbeat_s=0", "busy": "heartbeat_s=0.5", "late": "heartbeat_s=7"}

CLIENT = """
import socket, sys, time
client = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print("got", client.recv(6).hex(), *client.getsockname(), flush=True)
time.sleep(600)
"""
GREETED = r"got fffb01fffb03 \S+ (\d+)"


@pytest.fixture(scope="module", autouse=True)
def _cables() -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)


def client_on(machine: Machine, host: str, tcp_port: int) -> BackgroundProcess:
    return BackgroundProcess([*machine.enter, sys.executable, "-c", CLIENT, host, str(tcp_port)])


def lab_on(machine: Machine, folder: Path, boards: dict[str, str]) -> Lab:
    lab = Lab(folder, boards, keys={"host": "0.0.0.0"})
    lab.service.args = [*machine.enter, *lab.service.args]
    return lab


def seconds_until_freed(lab: Lab, name: str, cut_at: float) -> float:
    line = lab.service.wait_for_line(
        rf'.*"device": "{name}".*"event": "client_disconnected".*', limit_s=60.0
    )[0]
    found = re.search(r'"timestamp": "([^"]+)"', line)
    assert found is not None, line
    return datetime.fromisoformat(found[1]).timestamp() - cut_at


@pytest.mark.timeout(180)
def test_ports_of_a_machine_that_died_are_free_again_within_seconds(tmp_path: Path) -> None:
    with Machine() as host, Machine(beside=host) as desk, ExitStack() as clients:
        cable = Cable(host, desk, network=1)
        with lab_on(host, tmp_path, BOARDS) as lab:
            for board in lab.boards.values():
                client = client_on(desk, cable.near_address, board.tcp_port)
                client.start()
                clients.callback(client.kill)
                client.wait_for_line(GREETED)
            cable.pull()
            cut_at = time.time()
            freed_s = {name: seconds_until_freed(lab, name, cut_at) for name in BOARDS}
            assert max(freed_s.values()) < FREED_S, freed_s
            # Nobody waits for the network: others can have the boards.
            with Machine(beside=host) as shelf:
                other = Cable(host, shelf, network=2)
                for board in lab.boards.values():
                    client = client_on(shelf, other.near_address, board.tcp_port)
                    client.start()
                    clients.callback(client.kill)
                    client.wait_for_line(GREETED)


@pytest.mark.timeout(180)
def test_a_machine_that_was_power_cycled_has_its_port_again_at_once(tmp_path: Path) -> None:
    with Machine() as host, Machine(beside=host) as before, ExitStack() as clients:
        cable = Cable(host, before, network=1)
        with lab_on(host, tmp_path, {"quiet": "heartbeat_s=0"}) as lab:
            board = lab.boards["quiet"]
            client = client_on(before, cable.near_address, board.tcp_port)
            client.start()
            clients.callback(client.kill)
            client.wait_for_line(GREETED)
            with Machine(beside=host) as after:
                cable.move_to(after)
                script = CLIENT.replace("time.sleep(600)", "")
                args = ["-c", script, cable.near_address, str(board.tcp_port)]
                time.sleep(1.0)  # no machine boots faster
                # It comes once only: who is refused is told so.
                done = run_tool([*after.enter, sys.executable, *args], 60.0)
                assert re.match(GREETED, done.stdout), done.stdout + done.stderr
            end = lab.service.wait_for_line(".*client_disconnected.*")[0]
            assert '"reason": "connection reset by peer"' in end
