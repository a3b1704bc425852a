"""Which port of a pool belongs to which device, and the file that remembers it."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway.config.usb_match import UsbTty
from gateway.inputs import Content, read_regular_file
from gateway.usb import pools
from gateway.usb.pools import (
    FILE_NAME,
    MAX_BYTES,
    MAX_RECORDS,
    PoolStore,
    PoolTable,
    Record,
    Served,
    default_folder,
    read_table,
    write_table,
)
from tests.support.pty_board import LoopClock, turns, until

POOL = range(4100, 4110)
TODAY = 20_000
RECORD = Record("shelf", 4100, "10c4:a:1.0-port0", "c-usbv2-1:1.0-port0", TODAY)


def board(socket: str, serial: str = "", *, interface: int = 0, usb: int = 0x10C4) -> UsbTty:
    return UsbTty(
        path=f"/dev/tty-{socket}-{interface}",
        vendor_id=usb,
        product_id=0xEA60,
        location=f"1-{socket}",
        socket=f"c-usbv2-{socket}",
        interface=interface,
        serial=serial,
    )


def serve(table: PoolTable, *ttys: UsbTty, pool: range = POOL, day: int = TODAY) -> Served:
    return table.update({"shelf": pool}, {"shelf": ttys}, ttys, day)


def update(table: PoolTable, *ttys: UsbTty, pool: range = POOL, day: int = TODAY) -> dict[str, int]:
    """The port of each device, by its path."""
    served = serve(table, *ttys, pool=pool, day=day)
    return {tty.path: tcp_port for (_, tcp_port), tty in served.ttys.items()}


def test_new_devices_get_the_lowest_ports_in_their_order() -> None:
    table = PoolTable()
    assert list(update(table, board("1"), board("2"), board("3")).values()) == [4100, 4101, 4102]
    assert table.tcp_ports("shelf", POOL) == [4100, 4101, 4102]
    assert table.tcp_ports("other", POOL) == []


@pytest.mark.parametrize("serial", ["", "0001", "000000"])
def test_a_device_without_a_serial_number_is_recognised_by_its_socket(serial: str) -> None:
    table = PoolTable()
    update(table, board("1", serial), board("2", serial))
    for socket, tcp_port in (("2", 4101), ("3", 4102), ("1", 4100)):
        assert update(table, board(socket, serial)) == {board(socket).path: tcp_port}


def test_a_serial_number_that_two_devices_have_no_longer_counts() -> None:
    table = PoolTable()
    first, twin = board("1", "same"), board("2", "same")
    assert update(table, first) == {first.path: 4100}
    assert update(table, first, twin) == {first.path: 4100, twin.path: 4101}
    # From now on, in any order, and after a restart.
    assert update(table, twin) == {twin.path: 4101}
    assert update(table, first) == {first.path: 4100}
    assert update(PoolTable.from_json(table.to_json()), twin) == {twin.path: 4101}


def test_a_serial_number_of_a_device_outside_the_pool_does_not_count_either() -> None:
    table = PoolTable()
    inside, outside = board("1", "same"), board("2", "same")
    ranges = {"other": range(4200, 4210), "shelf": POOL}
    served = table.update(ranges, {"other": [], "shelf": [inside]}, [inside, outside], TODAY)
    assert served.ttys == {("shelf", 4100): inside}
    assert next(iter(table.records.values())).serial == ""


def test_each_tty_of_a_device_has_a_port() -> None:
    table = PoolTable()
    ttys = [board("1", "a", interface=0), board("1", "a", interface=1)]
    assert list(update(table, *ttys).values()) == [4100, 4101]
    assert table.shared == set()


def test_in_a_full_pool_the_device_gone_longest_is_replaced_and_none_that_is_there() -> None:
    table, pool = PoolTable(), range(4100, 4102)
    one, two, three = board("1", "a"), board("2", "b"), board("3", "c")
    update(table, one, pool=pool, day=TODAY)
    update(table, two, pool=pool, day=TODAY - 1)
    served = serve(table, three, pool=pool, day=TODAY + 1)
    assert served.ttys == {("shelf", 4101): three}
    assert [record.tcp_port for record in served.replaced] == [4101]
    served = serve(table, two, three, one, pool=pool)
    assert served.ttys == {("shelf", 4100): one, ("shelf", 4101): three}
    assert served.left_out == [("shelf", two)]


def test_a_wrong_clock_does_not_age_a_device() -> None:
    table = PoolTable()
    update(table, board("1", "a"), day=TODAY)
    update(table, board("1", "a"), day=0)
    assert table.records["shelf", 4100].day == TODAY


def test_a_pool_with_another_range_gives_new_ports_and_forgets_the_old() -> None:
    table = PoolTable()
    update(table, board("1", "a"), board("2", "b"))
    assert update(table, board("2", "b"), pool=range(5000, 5010)) == {board("2").path: 5000}
    assert update(table, board("1", "a")) == {board("1").path: 4100}
    assert sorted(table.records) == [("shelf", 4100), ("shelf", 5000)]


def test_the_number_of_records_is_bounded() -> None:
    records = (Record(f"pool{n}", 4100, f"s{n}", "x", day=n) for n in range(MAX_RECORDS + 10))
    table = PoolTable(records)
    update(table, board("1", "a"), day=10**6)
    assert len(table.records) == MAX_RECORDS
    assert ("shelf", 4100) in table.records
    assert ("pool0", 4100) not in table.records


def test_a_table_with_a_port_or_a_device_twice_keeps_the_first() -> None:
    records = [Record("p", tcp_port, serial, "x", 1) for tcp_port, serial in ((1, "a"), (1, "b"))]
    records.append(Record("p", 2, "a", "x", 1))
    assert list(PoolTable(records).records.values()) == records[:1]


def table_json(**changes: Any) -> dict[str, Any]:
    record = {"pool": "p", "tcp_port": 1, "serial": "", "socket": "", "day": 1} | changes
    return {"version": 1, "shared": [], "records": [record]}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {},
        table_json() | {"version": 2},
        table_json() | {"records": 5},
        table_json() | {"records": [{}]},
        table_json() | {"records": [[]]},
        table_json() | {"shared": [1]},
        table_json(tcp_port="4100"),
        table_json(tcp_port=True),
        table_json(pool="p" * 999),
    ],
)
def test_other_json_is_rejected(data: object) -> None:
    PoolTable.from_json(table_json())
    with pytest.raises(ValueError, match=r".+"):
        PoolTable.from_json(data)


BOARDS = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from(["", "0001", "a", "b", "c"])),
    min_size=1,
    max_size=6,
    unique_by=lambda each: each[0],
).map(lambda all_: [board(str(socket), serial) for socket, serial in all_])


@given(BOARDS, st.data())
def test_once_all_were_seen_together_each_keeps_its_port_in_any_order(
    boards: list[UsbTty], data: st.DataObject
) -> None:
    table = PoolTable()
    for tty in data.draw(st.lists(st.sampled_from(boards), max_size=4)):  # one by one before
        update(table, tty)
    home = update(table, *boards)
    assert len(set(home.values())) == len(boards)
    own = [tty for tty in boards if tty.serial_key and tty.serial_key not in table.shared]
    for _ in range(data.draw(st.integers(1, 5))):
        some = data.draw(st.lists(st.sampled_from(boards), unique_by=lambda tty: tty.path))
        if data.draw(st.booleans()):
            table = PoolTable.from_json(json.loads(json.dumps(table.to_json())))  # a restart
        before = table.to_json()
        assert update(table, *some) == {tty.path: home[tty.path] for tty in some}
        assert table.to_json() == before
    for tty in own:  # and in any socket, with a serial number of its own
        moved = replace(tty, socket=f"c-usbv2-{data.draw(st.integers(10, 12))}", path="/dev/new")
        assert update(table, moved) == {"/dev/new": home[tty.path]}


# --- the file


async def saved(folder: Path, *records: Record) -> None:
    store = PoolStore(folder, structlog.get_logger())
    await store.load()
    for record in records:
        store.table.records[record.pool, record.tcp_port] = record
    store.save()
    await store.close()


async def test_the_table_is_there_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    await saved(folder, RECORD)
    assert [path.name for path in folder.iterdir()] == [FILE_NAME]
    store = PoolStore(folder, structlog.get_logger())
    await store.load()
    assert list(store.table.records.values()) == [RECORD]
    assert read_table(folder).records == store.table.records
    await store.close()


async def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    await saved(tmp_path, RECORD)
    before = (tmp_path / FILE_NAME).stat()
    await saved(tmp_path)
    after = (tmp_path / FILE_NAME).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "data", [b"", b"\0\0", b"\xff\xfe", b"[" * 100_000, b"NaNa", b"[1]", b'{"version": 1}']
)
async def test_a_damaged_file_is_logged_kept_aside_and_replaced(
    tmp_path: Path, data: bytes
) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    assert read_table(tmp_path).records == {}
    with capture_logs() as logs:
        await saved(tmp_path, RECORD)
    assert [log["event"] for log in logs] == ["pool_state_read_failed"]
    assert (tmp_path / f"{FILE_NAME}.unreadable").read_bytes() == data
    assert list(read_table(tmp_path).records.values()) == [RECORD]


async def test_a_file_that_is_too_large_is_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / FILE_NAME).open("wb") as file:
        file.truncate(MAX_BYTES * 1000)
    with capture_logs() as logs:
        await saved(tmp_path)
    assert logs[0]["reason"] == f"more than {MAX_BYTES} bytes"


async def test_a_folder_that_is_not_writable_is_logged_once_and_tried_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"
    folder.write_text("in the way")
    store = PoolStore(folder, structlog.get_logger())
    with capture_logs() as logs, LoopClock() as clock:
        await store.load()
        store.table.records["shelf", 4100] = RECORD
        for _ in range(3):
            store.save()
            await until(lambda: store._saving and not store._changed.is_set())
        await until(lambda: len(logs) == 2)
        folder.unlink()
        while not folder.exists():
            await clock.advance(61.0)
    await store.close()
    assert list(read_table(folder).records.values()) == [RECORD]
    assert [(log["event"], log["reason"]) for log in logs] == [
        ("pool_state_read_failed", "Not a directory"),
        ("pool_state_write_failed", "File exists"),
    ]


async def test_the_end_tries_a_failed_write_once_more(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way")
    with capture_logs() as logs:
        store = PoolStore(tmp_path / "folder", structlog.get_logger())
        store.table.records["shelf", 4100] = RECORD
        store.save()
        await until(lambda: logs)
        (tmp_path / "folder").unlink()
        await store.close()
    assert list(read_table(tmp_path / "folder").records.values()) == [RECORD]


async def test_the_end_does_not_wait_for_a_folder_that_stays_unwritable(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way")
    with LoopClock(), capture_logs() as logs:  # no time passes
        store = PoolStore(tmp_path / "folder", structlog.get_logger())
        store.table.records["shelf", 4100] = RECORD
        store.save()
        await until(lambda: logs)
        await store.close()


async def test_a_table_that_is_read_slowly_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await saved(tmp_path, RECORD)
    door = threading.Event()

    def read(path: Path, max_bytes: int) -> Content:
        door.wait()
        return read_regular_file(path, max_bytes)

    monkeypatch.setattr(pools, "read_regular_file", read)
    store = PoolStore(tmp_path, structlog.get_logger())
    with LoopClock() as clock:
        loading = asyncio.create_task(store.load())
        while not loading.done():
            await clock.advance(1.0)
        store.save()
        await turns(20)
        door.set()
        await until(lambda: store.table.records)
    await store.close()
    assert list(read_table(tmp_path).records.values()) == [RECORD]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    write_table(tmp_path, table_json())

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os if fails == "fsync" else Path, fails, no_space)
        with pytest.raises(OSError, match="No space"):
            write_table(tmp_path, {})
    assert json.loads((tmp_path / FILE_NAME).read_text()) == table_json()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_a_file_is_on_the_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def noted_fsync(fd: int) -> None:
        steps.append("folder synced" if os.path.isdir(f"/proc/self/fd/{fd}") else "file synced")  # noqa: PTH112
        fsync(fd)

    def noted_rename(old: Path, new: Path) -> Path:
        steps.append("renamed")
        return rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    write_table(tmp_path, {})
    assert steps == ["file synced", "renamed", "folder synced"]


HOME = str(Path("~/.local/state/esp-gateway").expanduser())


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/esp-gateway"}, "/var/lib/esp-gateway"),
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
        ({"XDG_STATE_HOME": "/home/x/state"}, "/home/x/state/esp-gateway"),
        ({"XDG_STATE_HOME": "relative"}, HOME),
        ({}, HOME),
    ],
)
def test_the_folder_is_systemd_s_else_the_user_s(environment: dict[str, str], folder: str) -> None:
    assert default_folder(environment) == Path(folder)
