"""A watch that reports that a tty was closed by another program."""

from __future__ import annotations

import os
import pty
import tty
from pathlib import Path

import pytest

from gateway.serialport.close_watch import CloseWatch


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
