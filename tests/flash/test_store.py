"""Images on the gateway's disk: whole, right, and only while they are needed."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.flash import store as module
from gateway.flash.plan import FlashImage, FlashPlan
from gateway.flash.store import ImageStores, NoRoomError, NotStoredError, _Writer
from tests.support.pty_board import until

DATA = bytes(range(256)) * 10000


def plan_for(*images: bytes) -> FlashPlan:
    return FlashPlan(
        tuple(
            FlashImage(number << 24, len(data), hashlib.sha256(data).hexdigest(), f"{number}.bin")
            for number, data in enumerate(images)
        )
    )


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def chunks(data: bytes, size: int = 60000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def test_images_are_there_in_a_private_folder_until_the_end(tmp_path: Path) -> None:
    async with ImageStores(tmp_path).store(plan_for(DATA, b"small")) as store:
        await store.add(0, chunks(DATA))
        await store.add(1, chunks(b"small"))
        assert store.folder.parent == tmp_path
        assert store.folder.stat().st_mode & 0o777 == 0o700
        assert (store.folder / store.file(0)).read_bytes() == DATA
        assert (store.folder / store.file(1)).read_bytes() == b"small"
        assert (store.file(0), store.file(1)) == ("0x0.bin", "0x1000000.bin")
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (DATA[:-1], "0.bin: 2559999 of its 2560000 bytes came"),
        (DATA + b"x", "0.bin: more than its 2560000 bytes came"),
        (b"x" + DATA[1:], "0.bin was damaged on its way"),
        (b"", "0.bin: 0 of its 2560000 bytes came"),
    ],
)
async def test_what_is_not_the_image_of_the_plan_is_refused_and_removed(
    tmp_path: Path, sent: bytes, reason: str
) -> None:
    with pytest.raises(NotStoredError) as refused:
        async with ImageStores(tmp_path).store(plan_for(DATA)) as store:
            await store.add(0, chunks(sent))
    assert reason in str(refused.value)
    assert names_in(tmp_path) == set()


async def test_without_room_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage

    def full(path: Path) -> Any:
        return real(path)._replace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(NotStoredError, match="2560000 bytes are needed, 1000 are free"):
        async with ImageStores(tmp_path).store(plan_for(DATA)):
            pytest.fail("there was no room")
    assert names_in(tmp_path) == set()


async def test_of_several_at_once_those_that_fit_get_their_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with room for one and a half; each has two images."""
    allocate = os.posix_fallocate
    disk_bytes = 3 * len(DATA)

    def allocate_on_small_disk(fd: int, offset: int, length: int) -> None:
        if usage(tmp_path).free < length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(fd, offset, length)

    def usage(_: Path) -> Any:
        left = disk_bytes - sum(path.stat().st_size for path in tmp_path.glob("*/*.bin"))
        return shutil._ntuple_diskusage(disk_bytes, disk_bytes - left, left)

    monkeypatch.setattr(os, "posix_fallocate", allocate_on_small_disk)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    stores = ImageStores(tmp_path)
    plan = plan_for(DATA, DATA)

    async def upload() -> bool:
        try:
            async with stores.store(plan) as store:
                await images_come.wait()
                for number in range(2):
                    await store.add(number, chunks(DATA))
        except NoRoomError as error:
            return f"{2 * len(DATA)} bytes are needed, {len(DATA)} are free" not in str(error)
        return True

    images_come = asyncio.Event()
    first = asyncio.ensure_future(upload())
    await until(lambda: len(list(tmp_path.glob("*/*.bin"))) == 2)
    # The others are refused while nothing of the first has come.
    assert await asyncio.gather(*(upload() for _ in range(3))) == [False] * 3
    images_come.set()
    assert await first
    assert names_in(tmp_path) == set()
    assert await upload()


async def test_what_the_disk_refuses_in_the_midst_of_a_plan_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = os.posix_fallocate

    def allocate_one(fd: int, offset: int, length: int) -> None:
        if len(list(tmp_path.glob("*/*.bin"))) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate_one)
    with pytest.raises(NoRoomError, match="can't store the images: No space left on device"):
        async with ImageStores(tmp_path).store(plan_for(DATA, DATA)):
            pytest.fail("there was no room")
    assert names_in(tmp_path) == set()


async def test_all_images_together_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STORED_BYTES", 2 * len(DATA))
    stores = ImageStores(tmp_path)
    async with stores.store(plan_for(DATA)), stores.store(plan_for(DATA)):
        with pytest.raises(NoRoomError, match="2560000 bytes are needed, 0 are free"):
            async with stores.store(plan_for(DATA)):
                pytest.fail("there was no room")
    async with stores.store(plan_for(DATA)):
        pass


async def test_a_file_system_that_can_t_allocate_takes_images_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    async with ImageStores(tmp_path).store(plan_for(DATA)) as store:
        await store.add(0, chunks(DATA))


async def test_a_client_that_goes_while_its_room_is_allocated_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = os.posix_fallocate
    begun, go_on = threading.Event(), threading.Event()

    def slowly(fd: int, offset: int, length: int) -> None:
        begun.set()
        assert go_on.wait(60)
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", slowly)

    async def store_it() -> None:
        async with ImageStores(tmp_path).store(plan_for(DATA)):
            pytest.fail("it has left")

    storing = asyncio.ensure_future(store_it())
    await asyncio.to_thread(begun.wait)
    storing.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await storing
    assert names_in(tmp_path) == set()


async def test_a_disk_that_becomes_full_is_told_and_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _Writer.write

    def write(writer: Any, data: bytes) -> None:
        real(writer, data[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_Writer, "write", write)
    with pytest.raises(NotStoredError, match="can't store the images: No space left on device"):
        async with ImageStores(tmp_path).store(plan_for(DATA)) as store:
            await store.add(0, chunks(DATA))
    assert names_in(tmp_path) == set()


async def test_a_client_that_goes_in_the_midst_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield DATA[:100]
        begun.set()
        await asyncio.Event().wait()

    async def store_it() -> None:
        async with ImageStores(tmp_path).store(plan_for(DATA)) as store:
            await store.add(0, endless())

    storing = asyncio.ensure_future(store_it())
    await begun.wait()
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing
    assert names_in(tmp_path) == set()


async def test_what_killed_gateways_have_left_is_removed_and_what_is_in_use_stays(
    tmp_path: Path,
) -> None:
    old = time.time() - 3600
    for name in ("left", "used", "new"):
        folder = tmp_path / f"esp-gateway-flash-{name}"
        folder.mkdir()
        (folder / "0x0.bin").write_bytes(b"x")
        if name != "new":
            os.utime(folder, (old, old))
    (tmp_path / "another").mkdir()
    lock = os.open(tmp_path / "esp-gateway-flash-used", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        async with ImageStores(tmp_path).store(plan_for(DATA)):
            pass
    finally:
        os.close(lock)
    assert names_in(tmp_path) == {"another", "esp-gateway-flash-used", "esp-gateway-flash-new"}
