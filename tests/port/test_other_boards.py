"""Boards that are not ESPs behind a port: heard while no client is there, touched by clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.document import OnDisconnect, Sharing
from gateway.port_document import PortState
from gateway.protocol.access_server import RawPipe
from gateway.protocol.reset import BOTH, IDLE, RESET, Lines
from gateway.protocol.rfc2217 import Control
from gateway.protocol.serial_settings import SerialSettings
from tests.session.test_session import control, rfc2217_client
from tests.session.test_sharing_over_tcp import baudrate, told_baudrate, watching
from tests.support.pty_board import LoopClock, PtyBoard, Served, serving, turns, until
from tests.support.tcp_client import TcpClient

PICO = (0x2E8A, 0x000A)
FEATHER_M0 = (0x239A, 0x800B)
OTG = (0x303A, 0x4001)
UNKNOWN = (0x1234, 0x5678)

OPEN = control(Control.DTR_ON) + control(Control.RTS_ON)


def wire(board: PtyBoard, since: int) -> list[tuple[Lines, int]]:
    return list(zip(board.lines, board.rates, strict=True))[since:]


async def client_at_1200(served: Served) -> TcpClient:
    """As pyserial's open() is: settings first, then the lines."""
    client = await rfc2217_client(served)
    await client.send(baudrate(1200) + OPEN)
    await client.receive_wire(told_baudrate(1200))
    return client


@pytest.mark.parametrize("usb_ids", [PICO, FEATHER_M0, (0x239A, 0x8029), (0x0483, 0x374B)])
async def test_dtr_is_on_without_a_client_and_for_clients_without_lines(
    tmp_path: Path, usb_ids: tuple[int, int]
) -> None:
    with PtyBoard(tmp_path, usb_ids=usb_ids) as board:
        async with serving(board, converse=RawPipe) as served:
            assert board.lines == [BOTH, BOTH]  # the kernel's open, and where they rest
            await board.write(b"for the recorder")
            await until(lambda: served.port.recorder.tail() == b"for the recorder")
            with await TcpClient.connect(served.tcp_port):
                await served.session()
            await served.until_idle()
            assert set(board.lines) == {BOTH}


@pytest.mark.parametrize("usb_ids", [PICO, FEATHER_M0, OTG])
async def test_a_client_that_closes_at_1200_baud_has_touched_the_board(
    tmp_path: Path, usb_ids: tuple[int, int]
) -> None:
    with PtyBoard(tmp_path, usb_ids=usb_ids) as board, LoopClock() as clock:
        async with serving(board) as served:
            with await client_at_1200(served):
                before = len(board.lines)
            while board.lines[-1] != IDLE:
                await clock.advance(0.01)
            assert wire(board, before) == [(IDLE, 1200)]
            for _ in range(30):
                await clock.advance(0.01)
                assert wire(board, before) == [(IDLE, 1200)]
                assert board.baudrate == 1200
            await clock.advance(0.1)
            await served.until_idle()
            assert wire(board, before) == [(IDLE, 1200), (BOTH, 1200)]
            assert board.baudrate == 115200


async def test_a_board_that_is_not_known_keeps_its_rate_for_a_moment_too(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, usb_ids=UNKNOWN) as board, LoopClock() as clock:
        async with serving(board) as served:
            with await client_at_1200(served):
                await until(lambda: board.lines[-1] == BOTH)
                before = len(board.lines)
            await until(lambda: wire(board, before) == [(IDLE, 1200)])
            await clock.advance(0.3)
            assert board.baudrate == 1200
            await clock.advance(0.1)
            await served.until_idle()
            assert board.baudrate == 115200


async def test_a_client_that_takes_dtr_off_at_1200_baud_has_touched_the_board_once(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path, usb_ids=FEATHER_M0) as board:
        async with serving(board) as served:
            with await client_at_1200(served) as client:
                before = len(board.lines)
                await client.send(control(Control.DTR_OFF))
                await until(lambda: wire(board, before) == [(RESET, 1200)])
            await served.until_idle()
            assert wire(board, before) == [(RESET, 1200), (BOTH, 1200)]


async def test_a_client_that_is_suspended_at_1200_baud_touches_nothing(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, usb_ids=FEATHER_M0) as board:
        async with serving(board, sharing=Sharing.PREEMPT) as served:
            with await client_at_1200(served) as first:
                before = len(board.lines)
                with await rfc2217_client(served) as second:
                    await watching(first, by=second)
                    assert board.baudrate == 115200
                assert not [lines for lines in board.lines[before:] if not lines.dtr]


async def test_one_of_several_that_leaves_a_shared_board_at_1200_baud_touches_nothing(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path, usb_ids=FEATHER_M0) as board:
        async with serving(board, sharing=Sharing.SHARED) as served:
            with await rfc2217_client(served) as other:
                before = len(board.lines)
                with await client_at_1200(served):
                    pass
                await until(lambda: len(served.sessions) == 1)
                await other.send(b"goes on")
                board.start_reading()
                await until(lambda: board.received == b"goes on")
                assert not [lines for lines in board.lines[before:] if not lines.dtr]


async def test_a_touch_is_not_undone_by_on_disconnect(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, usb_ids=OTG) as board:
        async with serving(board, on_disconnect=OnDisconnect.RESET) as served:
            with await client_at_1200(served):
                before = len(board.lines)
            await served.until_idle()
            assert wire(board, before) == [(IDLE, 1200), (BOTH, 1200)]


async def test_a_board_that_leaves_the_bus_at_its_touch_and_is_back_is_not_touched_again(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path, usb_ids=FEATHER_M0) as board:
        async with serving(board, grace_s=30) as served:
            with await client_at_1200(served) as client:
                await client.send(control(Control.DTR_OFF))
                await until(lambda: board.lines[-1] == RESET)
                board.unplug()
                await until(lambda: served.port.state is PortState.OFFLINE)
                before = len(board.lines)
                board.plug()
                await until(lambda: served.port.state is PortState.IN_USE)
            await served.until_idle()
            assert set(board.lines[before:]) == {BOTH}


async def test_a_port_whose_own_rate_is_1200_baud_is_touched_by_no_client_that_sets_none(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path, usb_ids=FEATHER_M0) as board:
        async with serving(board, settings=SerialSettings(baudrate=1200)) as served:
            for _ in range(2):
                with await rfc2217_client(served) as client:
                    await client.send(baudrate(9600) + OPEN + baudrate(115200))
                    await client.receive_wire(told_baudrate(115200))
                await served.until_idle()
                await turns(5)
            with await rfc2217_client(served) as client:
                await client.send(OPEN)
            await served.until_idle()
            assert set(board.lines) == {BOTH}
