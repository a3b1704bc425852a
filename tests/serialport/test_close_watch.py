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

from gateway.config.document import Opening
from gateway.port_document import PortState
from gateway.serialport.close_watch import CloseWatch
from gateway.serialport.tty import Tty
from tests.support.claim_user import User
from tests.support.pty_board import PtyBoard, port_of, until


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


async def test_clients_of_a_port_that_opens_on_connect_do_not_have_a_held_tty_opened(
    tmp_path: Path, opens: list[str]
) -> None:
    with PtyBoard(tmp_path) as board, locked(board) as holder:
        device = port_of(board, opening=Opening.ON_CONNECT)
        device.start()
        for _ in range(5):
            user = User()
            user.ask(device)
            await until(lambda user=user: user.said)  # type: ignore[misc]
            assert user.said == ["refused: desk: broken: in use by another program"]
            assert device.state is PortState.RELEASED
        assert len(opens) == 1
        holder.close()
        user = User()
        user.ask(device)
        await until(lambda: user.said)
        assert user.said == ["granted"]
        assert len(opens) == 2
        user.leave()
        await device.stop()
