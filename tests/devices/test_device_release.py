"""A device whose tty is left to local tools: by command, or while no client is connected."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import serial
from structlog.testing import capture_logs

from gateway.config.document import OnAbsent, Opening, Sharing
from gateway.devices.device import Device, DeviceState
from gateway.errors import ClientError, DeviceAbsentError
from gateway.protocol.reset import BOTH, IDLE, RESET
from gateway.protocol.serial_settings import SerialSettings
from tests.devices.test_device import User, attached, events, nothing
from tests.support.pty_board import LoopClock, PtyBoard, device_of, turns, until

FAST = SerialSettings(baudrate=921600)


@asynccontextmanager
async def started(
    board: PtyBoard,
    opening: Opening = Opening.ALWAYS,
    *,
    grace_s: float = 0.0,
    on_absent: OnAbsent = OnAbsent.REFUSE,
    sharing: Sharing = Sharing.EXCLUSIVE,
) -> AsyncIterator[Device]:
    """A device for the board, past its first try; stopped in the end."""
    device = device_of(
        board, opening=opening, grace_s=grace_s, on_absent=on_absent, sharing=sharing
    )
    device.start()
    await until(lambda: device.state is not DeviceState.OPENING)
    try:
        yield device
    finally:
        await device.stop()


def is_free(board: PtyBoard) -> bool:
    """Whether a local tool that locks its tty gets this one."""
    with serial.Serial() as tool:
        tool.port, tool.exclusive = str(board.path), True
        try:
            tool.open()
        except serial.SerialException:
            return False
    return True


# --- release and resume


async def test_a_released_tty_is_closed_for_a_local_tool_until_it_is_resumed(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with started(board) as device:
            assert not is_free(board)
            await device.release("for esptool")
            assert (device.state, device.reason) == (DeviceState.RELEASED, "for esptool")
            assert not device.is_open
            assert device.tty_path == str(board.path)
            with serial.Serial(str(board.path), exclusive=True) as tool:
                await board.write(b"for the tool")
                assert tool.read(12) == b"for the tool"
            device.look_again()
            device.resume()
            assert device.state is DeviceState.OPENING
            await until(lambda: device.state is DeviceState.IDLE)
            user = await attached(device)
            await board.write(b"ours again")
            await until(lambda: user.received == b"ours again")
            device.detach(user)
            # Opened twice, each time from the kernel's (on, on) to rest in one step.
            assert board.lines == [BOTH, IDLE, BOTH, IDLE]
    assert events(logs)[:4] == [
        "device_opened",
        "device_released",
        "device_resumed",
        "device_opened",
    ]


async def test_release_returns_when_the_kernel_has_closed_the_tty(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            board.answers.clear()
            done: list[str] = []
            device.set_lines(lambda: done.append("lines"), rts=True)
            await turns(20)  # the control thread is in the kernel
            releasing = asyncio.create_task(device.release())
            await turns(20)
            assert device.state is DeviceState.RELEASED
            assert not releasing.done()
            assert not is_free(board)
            board.answers.set()
            await releasing
            assert is_free(board)
            assert not done


async def test_a_tty_that_is_resumed_before_it_is_closed_is_opened_behind_the_close(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            board.answers.clear()
            device.set_lines(nothing, rts=True)
            await turns(20)
            releasing = asyncio.create_task(device.release())
            await turns(20)
            device.resume()
            with pytest.raises(ClientError, match="desk: resumed before it was closed"):
                await releasing
            assert device.state is DeviceState.OPENING
            tries = board.tries
            board.answers.set()
            await until(lambda: device.state is DeviceState.IDLE)
            assert board.tries == tries + 1


async def test_a_device_in_use_is_not_released_unless_forced(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            with pytest.raises(ClientError, match=r"desk: in use by 10\.0\.0\.5:51234 since "):
                await device.release()
            assert device.state is DeviceState.IN_USE
            device.set_lines(nothing, rts=True)
            device.apply(FAST, nothing)
            device.write(b"last words")
            board.start_reading()
            await device.release("for esptool", force=True)
            assert user.said == ["attached", "lost: released for esptool"]
            device.detach(user)
            # What it had sent was sent, and nothing of it is left for the tool.
            await until(lambda: board.received == b"last words")
            assert board.lines[-1] == IDLE
            assert device.state.value == "released"
            assert is_free(board)


async def test_a_forced_release_does_not_wait_long_for_bytes_that_are_not_taken(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with started(board) as device:
            user = await attached(device)
            device.write(b"x" * 200_000)
            releasing = asyncio.create_task(device.release(force=True))
            await turns(20)
            assert device.state is DeviceState.RELEASING
            await clock.advance(0.5)
            await releasing
            device.detach(user)


async def test_a_client_that_has_just_left_is_waited_for(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            device.write(b"x" * 100_000)
            device.detach(user)
            assert device.state is DeviceState.RELEASING
            releasing = asyncio.create_task(device.release())
            await turns(20)
            assert device.state is DeviceState.RELEASING
            board.start_reading()
            await releasing
            await until(lambda: len(board.received) == 100_000)


async def test_who_watches_is_sent_away_as_well(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board, sharing=Sharing.PREEMPT) as device:
            monitor, flasher = User("monitor"), User("flasher")
            device.attach(monitor)
            await until(lambda: monitor.said)
            device.attach(flasher)
            await until(lambda: flasher.said)
            await device.release("for a tool", force=True)
            assert monitor.said[1:] == ["muted by flasher", "lost: released for a tool"]
            assert flasher.said[1:] == ["lost: released for a tool"]


async def test_clients_of_a_released_device_are_refused_with_the_reason(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            await device.release("to ann since 14:03")
            user = User()
            device.attach(user)
            assert user.said == ["refused: desk: released: to ann since 14:03"]


async def test_clients_that_wait_for_absent_boards_wait_for_released_ones(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with started(board, on_absent=OnAbsent.WAIT) as device:
            await device.release()
            user = User()
            device.attach(user)
            await clock.advance(60.0)
            assert user.said == []
            assert device.state is DeviceState.RELEASED
            device.resume()
            await until(lambda: user.said == ["attached"])
            device.detach(user)


async def test_an_absent_device_can_be_released_and_is_not_tried_meanwhile(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, plugged_in=False) as board, LoopClock() as clock:
        async with started(board) as device:
            assert device.state is DeviceState.ABSENT
            await device.release()
            assert device.state.value == "released"
            board.plug()
            tries = board.tries
            device.look_again()
            await clock.advance(60.0)
            assert (board.tries, device.state) == (tries, DeviceState.RELEASED)
            device.resume()
            await until(lambda: device.state is DeviceState.IDLE)


async def test_a_board_that_is_away_is_given_up_for_a_local_tool(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board, grace_s=60.0) as device:
            user = await attached(device)
            board.unplug()
            await until(lambda: device.state is DeviceState.AWAY)
            await device.release("for a tool", force=True)
            assert user.said[1:] == ["lost: released for a tool"]
            assert device.state is DeviceState.RELEASED


async def test_a_device_that_is_being_opened_is_released_when_it_has_been(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        board.answers.clear()
        device = device_of(board)
        device.start()
        await until(lambda: board.tries)
        user = User()
        device.attach(user)
        releasing = asyncio.create_task(device.release("for a tool"))
        await turns(20)
        assert user.said == ["refused: desk: released: for a tool"]
        assert not releasing.done()
        board.answers.set()
        await releasing
        assert is_free(board)
        await device.stop()


async def test_released_twice_is_released_once(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with started(board) as device:
            await asyncio.gather(device.release("for a"), device.release("for b"))
            await device.release("for c")
            assert device.reason == "for c"
            device.resume()
            device.resume()
            await until(lambda: device.state is DeviceState.IDLE)
    assert events(logs).count("device_released") == 1
    assert events(logs).count("device_resumed") == 1


async def test_a_stopped_device_can_not_be_released(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            board.answers.clear()
            device.set_lines(nothing, rts=True)
            await turns(20)
            releasing = asyncio.create_task(device.release())
            await turns(20)
            stopping = asyncio.create_task(device.stop())
            with pytest.raises(ClientError, match="desk: stopped"):
                await releasing
            board.answers.set()
            await stopping
            with pytest.raises(ClientError, match="desk: stopped"):
                await device.release()


async def test_nobody_knows_the_tty_of_a_device_that_is_nowhere(tmp_path: Path) -> None:
    def nowhere() -> None:
        raise DeviceAbsentError("not plugged in")

    with PtyBoard(tmp_path) as board:
        device = device_of(board)
        device._port._locate = nowhere  # type: ignore[assignment]
        with pytest.raises(DeviceAbsentError):
            _ = device.tty_path
        await device.stop()


# --- open: on_connect


async def test_the_tty_is_open_only_while_a_client_is_connected(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board, Opening.ON_CONNECT) as device:
            assert device.state is DeviceState.RELEASED
            assert device.reason == "until a client connects"
            assert board.tries == 0
            for _ in range(2):
                user = await attached(device)
                assert not is_free(board)
                device.apply(FAST, nothing)
                device.set_lines(nothing, rts=True)
                await board.write(b"hello\n")
                await until(lambda user=user: user.received == b"hello\n")  # type: ignore[misc]
                device.detach(user)
                await until(lambda: device.state is DeviceState.RELEASED)
                await until(lambda: is_free(board))
            assert board.lines == 2 * [BOTH, IDLE, RESET, IDLE]
            assert device.recorder.tail() == b"hello\nhello\n"


async def test_a_client_waits_until_the_tty_is_open_and_may_leave_before(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with started(board, Opening.ON_CONNECT) as device:
            board.answers.clear()
            user, left = User("stays"), User("leaves")
            device.attach(user)
            await clock.advance(5.0)
            assert user.said == []
            board.answers.set()
            await until(lambda: user.said == ["attached"])
            device.detach(user)
            await until(lambda: device.state is DeviceState.RELEASED)
            board.answers.clear()
            device.attach(left)
            await until(lambda: device.state is DeviceState.OPENING)
            device.detach(left)
            assert device.state is DeviceState.RELEASED
            board.answers.set()
            await until(lambda: is_free(board))
            assert left.said == []


async def test_a_client_is_told_that_a_local_tool_has_the_tty(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with started(board, Opening.ON_CONNECT) as device:
            fd = os.open(board.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            fcntl.flock(fd, fcntl.LOCK_EX)
            user = User()
            device.attach(user)
            await until(lambda: user.said)
            assert user.said == ["refused: desk: broken: in use by another program"]
            # The tool's lines are not disturbed by further tries.
            assert device.state is DeviceState.RELEASED
            lines = list(board.lines)
            await clock.advance(60.0)
            assert board.lines == lines == []
            os.close(fd)
            device.detach(await attached(device))


async def test_a_client_of_an_absent_board_is_told_so_or_waits(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, plugged_in=False) as board, LoopClock() as clock:
        async with started(board, Opening.ON_CONNECT) as device:
            user = User()
            device.attach(user)
            await until(lambda: user.said)
            assert user.said == ["refused: desk: absent: not plugged in"]
            assert device.state is DeviceState.RELEASED
        async with started(board, Opening.ON_CONNECT, on_absent=OnAbsent.WAIT) as device:
            user, impatient = User(), User()
            device.attach(user)
            device.attach(impatient)
            await until(lambda: device.state is DeviceState.ABSENT)
            device.detach(impatient)
            assert device.state is DeviceState.ABSENT
            await clock.advance(30.0)
            board.plug()
            await clock.advance(5.0)
            await until(lambda: user.said == ["attached"])
            device.detach(user)
            await until(lambda: device.state is DeviceState.RELEASED)
            board.unplug()
            device.attach(user)
            await until(lambda: device.state is DeviceState.ABSENT)
            device.detach(user)
            assert device.state.value == "released"


async def test_a_device_that_is_lost_in_use_is_released(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with started(board, Opening.ON_CONNECT) as device:
            user = await attached(device)
            board.unplug()
            await until(lambda: not user.has_device)
            assert device.state is DeviceState.RELEASED
            board.plug()
            tries = board.tries
            await clock.advance(60.0)
            assert board.tries == tries
            device.detach(await attached(device))


async def test_a_command_releases_what_is_closed_already(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board, Opening.ON_CONNECT) as device:
            await device.release("for a tool")
            user = User()
            device.attach(user)
            assert user.said == ["refused: desk: released: for a tool"]
            device.resume()
            assert device.reason == "until a client connects"
            assert board.tries == 0
            device.detach(await attached(device))


async def test_stopping_waits_until_a_released_tty_is_closed(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        device = device_of(board, opening=Opening.ON_CONNECT)
        device.start()
        threads = threading.active_count()
        device.detach(await attached(device))
        await device.stop()
        await until(lambda: threading.active_count() == threads)
        assert is_free(board)
