"""A client whose machine may be gone, and another that comes from its address: over real TCP."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from gateway.config.document import Sharing
from gateway.net.client_socket import TcpLink
from gateway.session import liveness as client_doubt
from tests.support.pty_board import LoopClock, PtyBoard, pass_silence, serving, until
from tests.support.quiet_client import quiet_client
from tests.support.tcp_client import GREETING, SPEAKS_TELNET, TcpClient


def reasons(logs: list[EventDict]) -> list[object]:
    return [entry["reason"] for entry in logs if entry["event"] == "client_disconnected"]


@pytest.mark.parametrize("sends", [True, False])
async def test_who_comes_from_the_address_of_a_dead_client_gets_its_port(
    tmp_path: Path, sends: bool
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await quiet_client(served) as dead:
                dead.fall_silent()
                if sends:
                    await board.write(b"into the void")
                with await TcpClient.connect(served.tcp_port) as newcomer:
                    await newcomer.receive_wire(GREETING)
                    await board.write(b"hello")
                    await newcomer.receive(lambda: newcomer.data.endswith(b"hello"))
                    assert (await served.session()).label == newcomer.name
            await served.until_idle()
    assert reasons(logs)[0] == "no answer while another client connected from its address"


async def test_a_client_that_lives_keeps_its_port_however_quiet_it_is(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board) as served:
            with await quiet_client(served) as quiet:
                for _ in range(2):  # it does not matter how often it is asked
                    with await TcpClient.connect(served.tcp_port) as newcomer:
                        said = await newcomer.receive_to_end()
                        assert said.startswith(f"desk: in use by {quiet.name} since".encode())
                assert not served.port.arbiter.are_probed
                await board.write(b"still here")
                await quiet.receive_data(b"still here")
            await served.until_idle()
    assert reasons(logs) == ["left"]


async def test_a_client_that_answers_late_keeps_its_port(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await quiet_client(served) as late:
                late.fall_silent()
                with await TcpClient.connect(served.tcp_port) as newcomer:
                    await until(lambda: served.port.arbiter.are_probed)
                    late.hear_again()
                    assert b"in use by" in await newcomer.receive_to_end()
                await board.write(b"still here")
                await late.receive_data(b"still here")


async def test_who_comes_from_elsewhere_is_refused_and_raises_no_doubt(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await quiet_client(served) as dead:
                dead.fall_silent()
                with await TcpClient.connect(served.tcp_port, source="127.0.0.2") as newcomer:
                    assert b"in use by" in await newcomer.receive_to_end()
                assert len(served.active) == 1


class Kernel:
    """What the kernel knows of a client, and what it is told to ask."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, silence_s: float) -> None:
        self.silence_s = silence_s
        self.unanswered = 0
        self.asked: list[bool] = []
        monkeypatch.setattr(client_doubt, "tcp_link", self._link)
        monkeypatch.setattr(client_doubt, "probe_every_second", lambda _, on: self.asked.append(on))

    def _link(self, connection: socket.socket) -> TcpLink:
        assert connection.fileno() >= 0
        return TcpLink(self.silence_s, self.unanswered, is_unacked=False, unsent_bytes=0)


async def test_a_client_that_was_just_heard_of_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(monkeypatch, silence_s=0.9)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                with await TcpClient.connect(served.tcp_port) as newcomer:
                    assert b"in use by" in await newcomer.receive_to_end()
                assert len(served.active) == 1
    assert not kernel.asked


@pytest.mark.parametrize(("unanswered", "is_dead"), [(1, False), (2, True)])
async def test_one_answer_that_is_missing_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unanswered: int, is_dead: bool
) -> None:
    kernel = Kernel(monkeypatch, silence_s=2.0)
    with PtyBoard(tmp_path) as board:
        async with serving(board) as served:
            with await TcpClient.connect(served.tcp_port) as client:
                await client.receive_wire(GREETING)
                session = await served.session()
                with LoopClock() as clock, await TcpClient.connect(served.tcp_port):
                    await until(lambda: len(served.sessions) == 2)
                    await pass_silence(lambda: served.sessions)
                    await until(lambda: served.port.arbiter.are_probed)
                    kernel.unanswered = unanswered
                    for _ in range(32):
                        kernel.silence_s += 0.1
                        await clock.advance(0.1)
                    assert not served.port.arbiter.are_probed
                    assert (session in served.active) is not is_dead
    assert kernel.asked == ([True] if is_dead else [True, False])


async def test_where_a_newcomer_takes_the_port_anyway_nobody_is_doubted(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with serving(board, sharing=Sharing.TAKEOVER) as served:
            with await quiet_client(served) as replaced:
                newcomer = await TcpClient.connect(served.tcp_port)
                await newcomer.send(SPEAKS_TELNET)
                await newcomer.receive_wire(GREETING)
                assert b"takes the port over" in await replaced.receive_to_end()
                newcomer.close()
    assert "takes the port over" in str(reasons(logs)[0])
