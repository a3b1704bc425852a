"""The pools' table on the disk: read, written when it changes, and lost without harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.usb.pool_store import FILE_NAME, PoolStore
from gateway.usb.pool_table import Record
from tests.support.pty_board import LoopClock, until

RECORD = Record("shelf", 4100, "10c4:a:1.0-port0", "c-usbv2-1:1.0-port0", 20_000)


def store(folder: Path) -> PoolStore:
    return PoolStore(folder, structlog.get_logger())


async def saved(folder: Path, *records: Record) -> None:
    kept = store(folder)
    await kept.load()
    for record in records:
        kept.table.records[record.pool, record.tcp_port] = record
    kept.save()
    await kept.close()


async def test_the_table_is_there_after_a_restart(tmp_path: Path) -> None:
    await saved(tmp_path / "new", RECORD)
    again = store(tmp_path / "new")
    await again.load()
    assert list(again.table.records.values()) == [RECORD]
    await again.close()


async def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    await saved(tmp_path, RECORD)
    before = (tmp_path / FILE_NAME).stat()
    again = store(tmp_path)
    await again.load()
    again.save()
    await again.close()
    after = (tmp_path / FILE_NAME).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0", b"[1, 2]", b'{"version": 1}'])
async def test_a_damaged_file_is_told_kept_and_begun_anew(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    with capture_logs() as logs:
        await saved(tmp_path, RECORD)
    assert [log["event"] for log in logs] == ["pool_state_not_read"]
    assert (tmp_path / f"{FILE_NAME}.unreadable").read_bytes() == data
    assert json.loads((tmp_path / FILE_NAME).read_text())["records"]


async def test_a_folder_that_can_not_be_written_to_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with capture_logs() as logs:
        kept = store(tmp_path / "file")
        await kept.load()
        for _ in range(3):
            kept.save()
            await until(lambda: logs)
            await until(lambda: kept._written is None)
        await kept.close()
    assert [(log["event"], log["reason"]) for log in logs] == [
        ("pool_state_not_read", "Not a directory"),
        ("pool_state_not_written", "File exists"),
    ]


async def test_a_table_that_could_not_be_written_is_tried_again(tmp_path: Path) -> None:
    blocker = tmp_path / "folder"
    blocker.write_text("in the way")
    kept = store(blocker)
    with LoopClock() as clock:
        kept.table.records["shelf", 4100] = RECORD
        kept.save()
        await until(lambda: kept._retry is not None)
        blocker.unlink()
        await clock.advance(61.0)
        await until((blocker / FILE_NAME).exists)
    await kept.close()
