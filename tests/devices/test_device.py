"""A device over time: absent, open, in use, released, lost, broken, stopped."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import gateway.devices.sharing
from gateway.config.document import OnConnect, OnDisconnect, Recording, Sharing
from gateway.devices.device import Device, DeviceState
from gateway.errors import ClientError, DeviceError
from gateway.protocol.reset import BOTH, IDLE, RESET, STRAP
from gateway.protocol.rfc2217 import Modemstate
from gateway.protocol.serial_settings import SerialSettings
from gateway.tty.serial_states import PortStates
from tests.support.pty_board import LoopClock, PtyBoard, device_of, turns, until

SETTINGS = SerialSettings(baudrate=74880)


class User:
    """Who asks for a device, and what it is told."""

    def __init__(self, label: str = "10.0.0.5:51234") -> None:
        self.label = label
        self.origin = label.rpartition(":")[0]
        self.has_device = False
        self.said: list[str] = []
        self.received = b""
        self.board_is_busy = False
        self.on_attached: Callable[[], None] = lambda: None
        self.is_leaving = False

    def attached(self) -> None:
        self.has_device = True
        self.said.append("attached")
        self.on_attached()

    def refused(self, error: ClientError) -> None:
        self.said.append(f"refused: {error}")

    def muted(self, by: str) -> None:
        self.said.append(f"muted by {by}")

    def resumed(self) -> None:
        self.said.append("resumed")

    def replaced(self, by: str) -> None:
        self.said.append(f"replaced by {by}")

    def data_received(self, data: bytes) -> None:
        self.received += data

    def board_busy(self) -> None:
        self.board_is_busy = True

    def board_ready(self) -> None:
        self.board_is_busy = False

    def device_lost(self, error: DeviceError) -> None:
        self.has_device = False
        self.said.append(f"lost: {error}")


def nothing() -> None:
    pass


@asynccontextmanager
async def started(board: PtyBoard, grace_s: float = 0.0) -> AsyncIterator[Device]:
    """A device for the board: idle, where its tty is there, and stopped in the end."""
    device = device_of(board, settings=SETTINGS, grace_s=grace_s)
    device.start()
    await until(lambda: device.state is not DeviceState.OPENING)
    try:
        yield device
    finally:
        await device.stop()


async def attached(device: Device) -> User:
    user = User()
    device.attach(user)
    await until(lambda: user.said)
    assert user.said == ["attached"]
    return user


def events(logs: Iterable[Mapping[str, object]]) -> list[object]:
    return [entry["event"] for entry in logs]


# --- opening


async def test_an_absent_device_opens_when_its_tty_appears(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, plugged_in=False) as board, LoopClock() as clock:
        async with started(board) as device:
            assert device.state is DeviceState.ABSENT
            assert device.reason == "not plugged in"
            await clock.advance(4.0)
            await until(lambda: device.state is DeviceState.ABSENT)
            board.plug()
            await clock.advance(4.0)
            await until(lambda: device.state is DeviceState.IDLE)
            assert board.lines == [BOTH, IDLE]
            assert device.status.settings == SETTINGS


async def test_a_device_that_does_not_open_is_tried_ever_more_seldom_and_told_once(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock, capture_logs() as logs:
        board.open_error = OSError(errno.EBUSY, "busy")
        async with started(board) as device:
            assert device.state is DeviceState.BROKEN
            assert device.reason == "in use by another program"
            for tries, wait_s in enumerate([0.25, 0.5, 1.0, 2.0, 4.0, 4.0], 1):
                await clock.advance(wait_s * 0.9)
                assert (board.tries, device.state) == (tries, DeviceState.BROKEN)
                await clock.advance(wait_s * 0.11)
                await until(lambda tries=tries: board.tries > tries)  # type: ignore[misc]
                await until(lambda: device.state is DeviceState.BROKEN)
            assert events(logs) == ["device_not_open"]
            board.open_error = None
            await clock.advance(4.0)
            await until(lambda: device.state is DeviceState.IDLE)
            assert events(logs) == ["device_not_open", "device_opened"]


async def test_permissions_that_are_not_set_yet_are_waited_for(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock, capture_logs() as logs:
        board.open_error = PermissionError(errno.EACCES, "denied")
        device = device_of(board)
        device.start()
        for _ in range(10):
            await clock.advance(0.02)
        assert board.tries > 5
        assert device.state is DeviceState.OPENING
        board.open_error = None
        await clock.advance(0.02)
        await until(lambda: device.state is DeviceState.IDLE)
        assert events(logs) == ["device_opened"]
        await device.stop()


async def test_permissions_that_stay_as_they_are_break_the_device(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock, capture_logs() as logs:
        board.open_error = PermissionError(errno.EACCES, "denied")
        device = device_of(board)
        device.start()
        while device.state is DeviceState.OPENING:
            await clock.advance(0.1)
        assert device.state is DeviceState.BROKEN
        assert device.reason == "no permission (is the user in group dialout?)"
        assert events(logs) == ["device_not_open"]
        await device.stop()


async def test_another_reason_is_told_again(tmp_path: Path) -> None:
    with PtyBoard(tmp_path, plugged_in=False) as board, LoopClock() as clock:
        with capture_logs() as logs:
            async with started(board) as device:
                board.open_error = OSError(errno.EBUSY, "busy")
                board.plug()
                await clock.advance(4.0)
                await until(lambda: device.state is DeviceState.BROKEN)
        assert [entry["reason"] for entry in logs] == [
            "not plugged in",
            "in use by another program",
        ]


@pytest.mark.parametrize("plugged_in", [True, False])
async def test_who_asks_before_the_first_try_waits_for_it(tmp_path: Path, plugged_in: bool) -> None:
    with PtyBoard(tmp_path, plugged_in=plugged_in) as board, LoopClock():
        device = device_of(board)
        device.start()
        user = User()
        device.attach(user)
        assert user.said == []
        await until(lambda: user.said)
        assert user.said == (
            ["attached"] if plugged_in else ["refused: desk: absent: not plugged in"]
        )
        device.detach(user)
        await device.stop()


# --- who has it


async def test_a_second_user_is_told_who_has_the_device_and_since_when(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 3, 1, 14, 3, 22)
    monkeypatch.setattr(gateway.devices.sharing, "local_now", lambda: now)
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with started(board) as device:
            first = await attached(device)
            second = User("10.0.0.6:40000")
            device.attach(second)
            await clock.advance(0.45)
            assert second.said == []
            now = datetime(2026, 3, 1, 23, 59, 59)
            await clock.advance(0.06)
            assert second.said == ["refused: desk: in use by 10.0.0.5:51234 since 14:03:22"]
            now = datetime(2026, 3, 2, 0, 0, 0)
            third = User("10.0.0.7:40000")
            device.attach(third)
            await clock.advance(0.5)
            assert third.said == [
                "refused: desk: in use by 10.0.0.5:51234 since 2026-03-01 14:03:22"
            ]
            await board.write(b"for the first")
            await until(lambda: first.received == b"for the first")
            device.detach(first)


async def test_users_that_wait_are_served_in_their_order(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with started(board) as device:
            users = [User(str(number)) for number in range(4)]
            for user in users:
                device.attach(user)
            device.detach(users[2])
            for user in (users[0], users[1], users[3]):
                await until(lambda user=user: user.has_device)  # type: ignore[misc]
                assert device.state is DeviceState.IN_USE
                device.detach(user)
            # Their waiting is over, so is what would have ended it.
            await clock.advance(1.0)
            assert [user.said for user in users] == [["attached"]] * 2 + [[], ["attached"]]


async def test_a_user_may_leave_as_soon_as_it_has_the_device(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock():
        async with started(board) as device:
            user = User()
            user.on_attached = lambda: device.detach(user)
            device.attach(user)
            await until(lambda: device.state is DeviceState.IDLE)
            device.detach(await attached(device))


async def test_detaching_sends_what_was_written_then_restores_lines_and_settings(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            changed: list[str] = []
            device.apply(SerialSettings(baudrate=9600), lambda: changed.append("settings"))
            device.set_lines(lambda: changed.append("lines"), rts=True)
            await until(lambda: len(changed) == 2)
            assert device.status.settings.baudrate == 9600
            device.write(b"x" * 100_000)
            assert user.board_is_busy
            device.detach(user)
            await turns(50)
            assert device.state is DeviceState.RELEASING
            assert board.lines[-1] == RESET
            board.start_reading()
            await until(lambda: device.state is DeviceState.IDLE)
            await until(lambda: len(board.received) >= 100_000)
            assert board.received == b"x" * 100_000
            assert board.lines == [BOTH, IDLE, RESET, IDLE]
            assert device.status.settings == SETTINGS


async def test_who_comes_while_lines_and_settings_go_back_waits_as_long_as_that_takes(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with started(board) as device:
            user = await attached(device)
            changed: list[str] = []
            device.set_lines(lambda: changed.append("lines"), rts=True)
            await until(lambda: changed)
            board.answers.clear()
            device.detach(user)
            newcomer = User()
            device.attach(newcomer)
            for _ in range(4):
                await clock.advance(0.6)  # a user that stays is waited for 0.5 s
            assert device.state is DeviceState.RELEASING
            assert newcomer.said == []
            board.answers.set()
            await until(lambda: newcomer.said == ["attached"])
            device.detach(newcomer)


async def until_it_takes_no_more(device: Device) -> None:
    """Wait until the kernel has taken all that it will: it makes room in a pty a moment later."""
    unsent_bytes = -1
    while device.unsent_bytes != unsent_bytes:
        unsent_bytes = device.unsent_bytes
        await turns(200)


async def test_bytes_that_the_board_does_not_take_are_dropped_for_the_next(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock, capture_logs() as logs:
        async with started(board) as device:
            user = await attached(device)
            device.write(b"x" * 200_000)
            await until_it_takes_no_more(device)
            device.detach(user)
            await clock.advance(9.9)
            assert device.state is DeviceState.RELEASING
            await clock.advance(0.2)
            await until(lambda: device.state is DeviceState.IDLE)
            assert device.unsent_bytes == 0
    (dropped,) = [entry for entry in logs if entry["event"] == "unsent_dropped"]
    assert dropped["unsent_bytes"] > 100_000


async def test_what_the_board_says_to_nobody_is_dropped(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            device.hold_output(user, True)
            await board.write(b"x" * 3000)
            await until(lambda: board.unread_bytes == 3000)
            device.detach(user)
            await until(lambda: board.unread_bytes == 0)
            await until(lambda: device.state is DeviceState.IDLE)
            assert user.received == b""


async def test_the_gateway_resets_a_board_or_enters_its_bootloader(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            done: list[str] = []
            device.reset(lambda: done.append("reset"))
            await until(lambda: done == ["reset"])
            assert board.lines[2:] == [RESET, IDLE]
            device.enter_bootloader(lambda: done.append("bootloader"))
            await until(lambda: len(done) == 2)
            assert board.lines[4:] == [RESET, STRAP, IDLE]
            device.detach(user)


async def test_a_board_without_modem_lines_reports_none(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            states: list[PortStates] = []
            device.read_states(states.append)
            await until(lambda: states)
            assert states[0].modemstate == Modemstate(0)
            device.detach(user)


# --- lost


async def test_a_device_that_is_lost_in_use_is_told_once_and_opened_again(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with started(board) as device:
            user = await attached(device)
            board.unplug()
            await until(lambda: not user.has_device)
            assert user.said[1].startswith("lost: stopped working")
            device.detach(user)
            await until(lambda: device.state is DeviceState.ABSENT)
            board.plug()
            await until(lambda: device.state is DeviceState.IDLE)
            device.detach(await attached(device))
    assert events(logs) == ["device_opened", "device_lost", "device_not_open", "device_opened"]


async def test_a_device_that_is_lost_while_it_is_released_is_opened_again(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            device.write(b"x" * 200_000)
            device.detach(user)
            board.unplug()
            await until(lambda: device.state is DeviceState.ABSENT)
            board.plug()
            await until(lambda: device.state is DeviceState.IDLE)
            assert user.said == ["attached"]


async def test_lines_that_fail_lose_the_device(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock():
        async with started(board) as device:
            user = await attached(device)
            board.lines_error = OSError(errno.EIO, "Input/output error")
            device.set_lines(nothing, rts=True)
            await until(lambda: not user.has_device)
            assert device.state is DeviceState.BROKEN
            assert "Input/output error" in device.reason


async def test_a_device_is_not_lost_because_the_gateway_was_held_up(tmp_path: Path) -> None:
    done: list[str] = []
    with PtyBoard(tmp_path) as board, capture_logs() as logs, LoopClock() as clock:
        async with started(board) as device:
            user = await attached(device)
            board.answers.clear()
            device.set_lines(lambda: done.append("lines"), dtr=True, rts=True)
            await turns(3)
            clock.jump(60.0)  # neither the loop nor the thread had a turn
            await turns(3)
            assert user.has_device
            board.answers.set()
            await until(lambda: done)
            device.detach(user)
            while device.state is not DeviceState.IDLE:
                await clock.advance(0.1)
    assert "device_lost" not in [entry["event"] for entry in logs]


async def test_a_lost_device_can_not_be_used(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock():
        async with started(board) as device:
            user = await attached(device)
            board.unplug()
            await until(lambda: not user.has_device)
            with pytest.raises(RuntimeError, match="was used while it is not open"):
                device.write(b"x")


async def test_a_user_that_came_while_the_board_was_prepared_has_it_with_the_first(
    tmp_path: Path,
) -> None:
    with PtyBoard(tmp_path) as board:
        device = device_of(board, on_connect=OnConnect.RESET, sharing=Sharing.SHARED)
        device.start()
        await until(lambda: device.state is DeviceState.IDLE)
        with LoopClock() as clock:
            first, second = User("first"), User("second")
            device.attach(first)
            device.attach(second)
            assert first.said == second.said == []
            while not first.said:
                await clock.advance(0.01)
            assert first.said == second.said == ["attached"]
            device.detach(first)
            device.detach(second)
        await device.stop()


# --- away


async def test_a_user_is_kept_while_the_board_leaves_the_bus_and_comes_back(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board, grace_s=10.0) as device:
            with LoopClock() as clock:
                user = await attached(device)
                done: list[str] = []
                device.apply(SerialSettings(baudrate=921600), lambda: done.append("settings"))
                await until(lambda: done)
                board.unplug()
                await until(lambda: device.state is DeviceState.AWAY)
                device.write(b"are you back?")
                late = User("10.0.0.6:40000")
                device.attach(late)
                await clock.advance(0.5)
                assert late.said[0].startswith("refused: desk: in use by 10.0.0.5:51234 since ")
                board.plug()
                while device.state is DeviceState.AWAY:
                    await clock.advance(0.05)
                assert device.state is DeviceState.IN_USE
                board.start_reading()
                await until(lambda: board.received == b"are you back?")
                await board.write(b"yes")
                await until(lambda: user.received == b"yes")
                await until(lambda: device.status.settings.baudrate == 921600)
                assert user.said == ["attached"]
                device.detach(user)
                await until(lambda: device.state is DeviceState.IDLE)
                assert device.status.settings == SETTINGS


async def test_a_user_is_told_when_the_board_stays_away(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board, grace_s=10.0) as device:
            with LoopClock() as clock:
                user = await attached(device)
                board.unplug()
                await until(lambda: device.state is DeviceState.AWAY)
                for _ in range(99):
                    await clock.advance(0.1)
                assert user.has_device
                await clock.advance(0.2)
                assert user.said[1].endswith("; not back within 10 s")
                assert not user.has_device


async def test_a_board_lost_in_use_is_not_waited_for_without_a_user(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with started(board, grace_s=10.0) as device:
            with LoopClock() as clock:
                await attached(device)
                board.unplug()
                await until(lambda: device.state is DeviceState.AWAY)
                while device.state is DeviceState.AWAY:
                    await clock.advance(0.5)
                board.plug()
                while device.state is not DeviceState.IDLE:
                    await clock.advance(0.5)
                board.unplug()
                await until(lambda: device.state is not DeviceState.IDLE)
                assert device.state in {DeviceState.ABSENT, DeviceState.BROKEN}
    assert events(logs).count("device_lost") == 2


async def test_a_user_may_leave_while_the_board_is_away(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, capture_logs() as logs:
        async with started(board, grace_s=10.0) as device:
            user = await attached(device)
            board.unplug()
            await until(lambda: device.state is DeviceState.AWAY)
            device.write(b"gone with its sender")
            device.detach(user)
            board.plug()
            await until(lambda: device.state is DeviceState.IDLE)
            board.start_reading()
            next_user = await attached(device)
            device.write(b"fresh")
            await until(lambda: board.received == b"fresh")
            device.detach(next_user)
    assert "unsent_dropped" in events(logs)


async def test_the_lines_of_a_board_that_is_away_are_seen_to_when_it_is_back(
    tmp_path: Path,
) -> None:
    """As if its user had left while it was there: a reset at the end of raw ports included."""
    with PtyBoard(tmp_path) as board:
        device = device_of(board, grace_s=60.0, on_disconnect=OnDisconnect.RESET)
        device.start()
        await until(lambda: device.state is DeviceState.IDLE)
        user = await attached(device)
        board.unplug()
        await until(lambda: device.state is DeviceState.AWAY)
        device.set_lines(nothing, dtr=True, rts=True)
        device.apply(SerialSettings(baudrate=921600), nothing)
        device.detach(user)
        next_user = User("next")
        device.attach(next_user)
        assert device.state is DeviceState.AWAY
        board.lines.clear()
        board.plug()
        await until(lambda: next_user.said == ["attached"])
        assert board.lines == [BOTH, IDLE, RESET, IDLE]  # opened, then reset
        assert device.status.settings == SerialSettings()
        device.detach(next_user)
        await device.stop()


async def test_a_tty_that_was_lent_is_taken_back_for_its_user(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            closed: list[bool] = []
            device.lend("lent to a tool", lambda: closed.append(True))
            await until(lambda: closed)
            assert device.state is DeviceState.AWAY
            device.take_back()
            await until(lambda: device.state is DeviceState.IN_USE)
            assert user.said == ["attached"]
            device.detach(user)


async def test_a_board_that_nobody_has_any_more_is_not_waited_for_long(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board, grace_s=60.0) as device:
            with LoopClock() as clock:
                user = await attached(device)
                board.unplug()
                await until(lambda: device.state is DeviceState.AWAY)
                device.detach(user)
                waiting = User()
                device.attach(waiting)
                for _ in range(49):
                    await clock.advance(0.1)
                assert device.state is DeviceState.AWAY
                assert waiting.said == []
                await clock.advance(0.2)
                assert device.state.value == "absent"
                assert waiting.said == ["refused: desk: absent: not plugged in"]
                board.plug()
                while not device.idle.is_set():
                    await clock.advance(0.1)
                # It has been plugged in anew: nothing is owed to it.
                assert board.lines == 2 * [BOTH, IDLE]


async def test_a_board_that_leaves_while_it_is_seen_to_is_not_waited_for(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board, grace_s=60.0) as device:
            user = await attached(device)
            board.unplug()
            await until(lambda: device.state is DeviceState.AWAY)
            device.detach(user)
            board.plug()
            await until(lambda: device.state is DeviceState.RELEASING)
            board.unplug()
            await until(lambda: device.state is DeviceState.ABSENT)


async def test_stopping_while_the_board_is_away_ends(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        device = device_of(board, grace_s=10.0)
        device.start()
        await until(lambda: device.state is DeviceState.IDLE)
        user = await attached(device)
        board.unplug()
        await until(lambda: device.state is DeviceState.AWAY)
        device.detach(user)
        await device.stop()
        board.plug()
        tries = board.tries
        await clock.advance(60.0)
        await turns(20)
        assert (device.state, board.tries) == (DeviceState.STOPPED, tries)


# --- stopping


async def test_stopping_waits_until_the_lines_are_released(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            device.set_lines(nothing, rts=True)
            await until(lambda: board.lines[-1] == RESET)
            device.detach(user)
            await device.stop()
            assert board.lines[-2:] == [RESET, IDLE]
            assert device.state is DeviceState.STOPPED


async def test_stopping_releases_the_lines_of_a_board_that_takes_no_bytes(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            device.set_lines(nothing, rts=True)
            await until(lambda: board.lines[-1] == RESET)
            device.write(b"x" * 200_000)
            device.detach(user)
            await device.stop()
            assert board.lines[-2:] == [RESET, IDLE]


@pytest.mark.parametrize("hangs_at", ["open", "lines"])
async def test_stopping_leaves_a_kernel_that_does_not_answer_behind(
    tmp_path: Path, hangs_at: str
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        device = device_of(board)
        if hangs_at == "open":
            board.answers.clear()
        device.start()
        await until(lambda: board.tries)
        if hangs_at == "lines":
            user = await attached(device)
            board.answers.clear()
            device.set_lines(nothing, rts=True)
            device.detach(user)
        threads = threading.active_count()
        stopping = asyncio.create_task(device.stop())
        began = clock.now_s
        while not stopping.done():
            await clock.advance(0.1)
            assert clock.now_s - began < 2.0
        await stopping
        assert device.state is DeviceState.STOPPED
        # Once the kernel lets go, the thread ends.
        board.answers.set()
        await until(lambda: threading.active_count() < threads)


async def test_a_stopped_device_refuses_and_is_not_opened_again(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        board.open_error = OSError(errno.EBUSY, "busy")
        device = device_of(board)
        device.start()
        await until(lambda: device.state is DeviceState.BROKEN)
        await device.stop()
        board.open_error = None
        await clock.advance(60.0)
        await turns(20)
        assert board.tries == 1
        user = User()
        device.attach(user)
        assert user.said == ["refused: desk: the gateway is shutting down"]


async def test_a_device_that_opens_after_it_was_stopped_is_closed_again(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        board.answers.clear()
        device = device_of(board)
        device.start()
        await until(lambda: board.tries)
        stopping = asyncio.create_task(device.stop())
        await clock.advance(0.5)
        await stopping
        threads = threading.active_count()
        board.answers.set()
        await until(lambda: threading.active_count() < threads)
        assert board.lines == [BOTH, IDLE]
        assert device.state is DeviceState.STOPPED


async def test_who_waits_when_the_device_stops_is_refused(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board, LoopClock():
        async with started(board) as device:
            first = await attached(device)
            second = User()
            device.attach(second)
            stopping = asyncio.create_task(device.stop())
            await until(lambda: second.said)
            assert second.said == ["refused: desk: the gateway is shutting down"]
            device.detach(first)
            await stopping


# --- what is kept of the board's output


async def test_what_the_board_says_is_kept_whether_somebody_is_there_or_not(
    tmp_path: Path,
) -> None:
    recording = Recording(record_kib=1, log_file=str(tmp_path / "desk.log"))
    with PtyBoard(tmp_path) as board:
        device = device_of(board, recording=recording)
        device.start()
        await until(lambda: device.state is DeviceState.IDLE)
        await board.write(b"x" * 2000 + b"boot\n")
        await until(lambda: device.received_bytes == 2005)
        user = await attached(device)
        await board.write(b"more\n")
        await until(lambda: user.received == b"more\n")
        assert device.recorder.tail() == (b"x" * 2000 + b"boot\nmore\n")[-1024:]
        device.detach(user)
        await device.stop()
    lines = (tmp_path / "desk.log").read_bytes().splitlines()
    assert [line.split(b" ", 2)[2][-4:] for line in lines] == [b"boot", b"more"]


async def test_a_break_has_ended_when_the_device_can_be_had_again(tmp_path: Path) -> None:
    with PtyBoard(tmp_path) as board:
        async with started(board) as device:
            user = await attached(device)
            device.set_break(True, nothing)
            device.detach(user)
            await until(lambda: device.state is DeviceState.IDLE)
            assert not device.status.break_on
