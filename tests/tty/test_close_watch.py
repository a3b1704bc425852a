"""A tty that another program has locked, and how often it is opened meanwhile."""

from __future__ import annotations

import fcntl
import os
import pty
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.config.document import Opening
from gateway.devices.device import DeviceState
from gateway.tty import serial_tty
from gateway.tty.close_watch import CloseWatch
from gateway.tty.serial_tty import Tty
from tests.devices.test_device import User
from tests.support.pty_board import LoopClock, PtyBoard, device_of, turns, until
from tests.tty.test_lasting_port import lasting


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all ttys that the gateway has tried to open."""
    paths: list[str] = []
    really_open = Tty.open

    def counted(self: Tty) -> None:
        paths.append(str(self.port))
        really_open(self)

    monkeypatch.setattr(Tty, "open", counted)
    return paths


@pytest.fixture
def started_threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all threads that were started."""
    names: list[str] = []
    really_start = threading.Thread.start

    def counted(self: threading.Thread) -> None:
        names.append(self.name)
        really_start(self)

    monkeypatch.setattr(threading.Thread, "start", counted)
    return names


class Holder:
    """Another program that has locked a tty, as pyserial does with `exclusive=True`."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def locked(board: PtyBoard) -> Iterator[Holder]:
    """Another program has locked the board's tty, until the end or until it closes it."""
    holder = Holder(board.path)
    try:
        yield holder
    finally:
        holder.close()


# --- the watch


def test_a_watch_tells_that_a_tty_was_closed() -> None:
    far, near = pty.openpty()
    path = os.ttyname(near)
    watch = CloseWatch(path)
    try:
        assert not watch.has_news()
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(fd)
        os.write(fd, b"written")
        assert os.read(far, 100) == b"written"
        assert not watch.has_news()
        os.close(fd)
        assert watch.has_news()
        assert not watch.has_news()
    finally:
        watch.close()
        watch.close()
        os.close(near)
        os.close(far)


def test_a_watch_of_a_link_tells_of_what_it_leads_to_and_of_its_end(tmp_path: Path) -> None:
    node, link = tmp_path / "node", tmp_path / "link"
    node.touch()
    link.symlink_to(node)
    watch = CloseWatch(str(link))
    try:
        node.unlink()
        assert watch.has_news()
    finally:
        watch.close()


def test_what_is_not_there_can_t_be_watched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CloseWatch(str(tmp_path / "absent"))


# --- a port whose tty is held


async def test_a_tty_that_another_program_has_locked_is_opened_once_until_that_closes_it(
    tmp_path: Path, opens: list[str]
) -> None:
    with (
        PtyBoard(tmp_path) as board,
        LoopClock() as clock,
        capture_logs() as logs,
        locked(board),
    ):
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["lost"])
            assert str(owner.errors[0]) == "in use by another program"
            for _ in range(60):
                await clock.advance(5.0)
            port.look_again(in_use=False)  # a udev event of its device
            await turns(20)
            assert len(opens) == 1
    assert [entry["reason"] for entry in logs if entry["event"] == "device_not_open"] == [
        "in use by another program"
    ]


async def test_a_tty_is_opened_a_second_after_the_other_program_has_closed_it(
    tmp_path: Path, opens: list[str]
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock, locked(board) as holder:
        async with lasting(board) as (_, owner):
            await until(lambda: owner.reports == ["lost"])
            for _ in range(10):
                await clock.advance(5.0)
            holder.close()
            await turns(20)
            await clock.advance(0.9)
            assert len(opens) == 1
            await clock.advance(0.2)
            await until(lambda: owner.reports == ["lost", "opened"])
            assert len(opens) == 2


async def test_a_tty_that_the_next_program_has_locked_is_watched_again(
    tmp_path: Path, opens: list[str]
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock, locked(board) as holder:
        async with lasting(board) as (_, owner):
            await until(lambda: owner.reports == ["lost"])
            holder.close()
            with locked(board) as next_holder:
                for _ in range(10):
                    await clock.advance(5.0)
                assert len(opens) == 2
                next_holder.close()
                await clock.advance(1.1)
                await until(lambda: owner.reports[-1] == "opened")
            assert len(opens) == 3


async def test_clients_of_a_port_that_opens_on_connect_do_not_have_a_held_tty_opened(
    tmp_path: Path, opens: list[str]
) -> None:
    with PtyBoard(tmp_path) as board, locked(board) as holder:
        device = device_of(board, opening=Opening.ON_CONNECT)
        device.start()
        for _ in range(5):
            user = User()
            device.attach(user)
            await until(lambda user=user: user.said)  # type: ignore[misc]
            assert user.said == ["refused: desk: broken: in use by another program"]
            assert device.state is DeviceState.RELEASED
        assert len(opens) == 1
        holder.close()
        user = User()
        device.attach(user)
        await until(lambda: user.said)
        assert user.said == ["attached"]
        assert len(opens) == 2
        device.detach(user)
        await device.stop()


async def test_a_board_that_comes_back_locked_is_opened_when_it_is_free(
    tmp_path: Path, opens: list[str]
) -> None:
    """ModemManager, for instance, is faster than the gateway."""
    with PtyBoard(tmp_path) as board:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            board.unplug()
            await until(lambda: owner.reports[-1] == "away")
            opens.clear()
            with LoopClock() as clock:
                board.plug()
                with locked(board) as holder:
                    for _ in range(20):
                        await clock.advance(0.05)
                    assert len(opens) == 1
                    holder.close()
                    await clock.advance(0.05)
                    await until(lambda: owner.reports[-1] == "back")
                    assert len(opens) == 2


async def test_where_nothing_can_be_watched_a_held_tty_is_opened_once_a_minute(
    tmp_path: Path, opens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_watch_left(path: str) -> None:
        raise OSError(24, "Too many open files", path)

    monkeypatch.setattr(serial_tty, "CloseWatch", no_watch_left)
    with PtyBoard(tmp_path) as board, LoopClock() as clock, locked(board):
        async with lasting(board) as (_, owner):
            await until(lambda: owner.reports == ["lost"])
            for _ in range(29):
                await clock.advance(10.0)
            assert len(opens) == 5


async def test_a_close_that_the_watch_has_missed_costs_ten_minutes(
    tmp_path: Path, opens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CloseWatch, "has_news", lambda _: False)
    with PtyBoard(tmp_path) as board, LoopClock() as clock, locked(board):
        async with lasting(board) as (_, owner):
            await until(lambda: owner.reports == ["lost"])
            await clock.advance(599.0)
            assert len(opens) == 1
            await clock.advance(2.0)
            await until(lambda: len(opens) == 2)


async def test_another_device_is_opened_though_the_former_one_is_held(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with PtyBoard(tmp_path / "a") as first, PtyBoard(tmp_path / "b") as second, locked(first):
        place = first
        async with lasting(first, lambda: place.location) as (port, owner):
            await until(lambda: owner.reports == ["lost"])
            place = second
            port.look_again(in_use=False)
            await until(lambda: owner.reports == ["lost", "opened"])


# --- threads


async def test_a_board_that_is_away_is_looked_for_on_one_thread(
    tmp_path: Path, opens: list[str], started_threads: list[str]
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        async with lasting(board) as (port, owner):
            await until(lambda: owner.reports == ["opened"])
            port.grace_s = 60.0
            board.unplug()
            await until(lambda: owner.reports[-1] == "away")
            opens.clear()
            started_threads.clear()
            for _ in range(60):
                await clock.advance(0.05)
            assert 55 <= len(opens) <= 61
            opens.clear()
            for _ in range(60):
                await clock.advance(0.05)
            assert 10 <= len(opens) <= 15  # boards come back sooner
            board.plug()
            await clock.advance(0.25)
            await until(lambda: owner.reports[-1] == "back")
            assert len(started_threads) == 1


async def test_an_absent_board_is_looked_for_on_one_thread_which_ends_when_it_is_not_wanted(
    tmp_path: Path, opens: list[str], started_threads: list[str]
) -> None:
    before = threading.active_count()
    with PtyBoard(tmp_path, plugged_in=False) as board, LoopClock() as clock:
        async with lasting(board) as (port, owner):
            for _ in range(30):
                await clock.advance(4.0)
            assert len(opens) > 20
            assert len(started_threads) == 1
            assert set(owner.reports) == {"lost"}
            closed: list[bool] = []
            port.release(lambda: closed.append(True))
            assert closed
            await until(lambda: threading.active_count() == before)


async def test_a_thread_that_is_stuck_is_not_used_again(
    tmp_path: Path, started_threads: list[str]
) -> None:
    with PtyBoard(tmp_path) as board, LoopClock() as clock:
        board.answers.clear()
        async with lasting(board) as (_, owner):
            await until(lambda: board.tries == 1)
            await clock.advance(35.1)
            await clock.advance(1.0)  # a loop that was held up that long gives it another second
            await until(lambda: owner.reports == ["lost"])
            assert "did not answer" in str(owner.errors[0])
            board.answers.set()
            await clock.advance(1.0)
            await until(lambda: owner.reports[-1] == "opened")
            assert len(started_threads) == 2
