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
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.flash import store as module
from gateway.flash.plan import FlashImage, FlashPlan, Outcome
from gateway.flash.store import ImageStores, NoRoomError, NotStoredError
from tests.support.pty_board import until

DATA = bytes(range(256)) * 10000


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of all stores; a test leaves nothing in it."""
    folder = tmp_path / "stores"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())


def plan_for(*images: bytes) -> FlashPlan:
    return FlashPlan(
        tuple(
            FlashImage(number << 24, len(data), hashlib.sha256(data).hexdigest(), f"{number}.bin")
            for number, data in enumerate(images)
        )
    )


async def chunks(data: bytes, size: int = 60000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def store_image(stores: ImageStores, *images: bytes) -> None:
    """Allocate room for images and store the first."""
    async with stores.store(plan_for(*images)) as store:
        await store.add(0, chunks(images[0]))


def disk_that_is_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_images_are_there_in_a_private_folder_until_the_end(folder: Path) -> None:
    async with ImageStores(folder).store(plan_for(DATA, b"small")) as store:
        await store.add(0, chunks(DATA))
        await store.add(1, chunks(b"small"))
        assert store.folder.parent == folder
        assert store.folder.stat().st_mode & 0o777 == 0o700
        assert (store.folder / store.file(0)).read_bytes() == DATA
        assert store.read(1, 1, 10) == b"mall"
        assert (store.file(0), store.file(1)) == ("0x0.bin", "0x1000000.bin")


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (DATA[:-1], "0.bin: 2559999 of its 2560000 bytes came"),
        (DATA + b"x", "0.bin: more than its 2560000 bytes came"),
        (b"x" + DATA[1:], "0.bin was damaged on its way"),
        (b"", "0.bin: 0 of its 2560000 bytes came"),
    ],
)
async def test_what_is_not_the_image_of_the_plan_is_rejected_and_removed(
    folder: Path, sent: bytes, reason: str
) -> None:
    with pytest.raises(NotStoredError, match=reason) as error:
        async with ImageStores(folder).store(plan_for(DATA)) as store:
            await store.add(0, chunks(sent))
    assert error.value.outcome is Outcome.NOT_STORED


async def test_without_room_nothing_is_begun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    with pytest.raises(NoRoomError, match="2560000 bytes are needed, 1000 are free"):
        await store_image(ImageStores(folder), DATA)


async def test_of_several_at_once_those_that_fit_get_their_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with room for one and a half; each has two images."""
    allocate = os.posix_fallocate
    disk_bytes = 3 * len(DATA)

    def allocate_on_small_disk(fd: int, offset: int, length: int) -> None:
        if usage(folder).free < length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(fd, offset, length)

    def usage(_: Path) -> Any:
        left = disk_bytes - sum(path.stat().st_size for path in folder.glob("*/*.bin"))
        return shutil._ntuple_diskusage(disk_bytes, disk_bytes - left, left)

    monkeypatch.setattr(os, "posix_fallocate", allocate_on_small_disk)
    monkeypatch.setattr(shutil, "disk_usage", usage)
    stores = ImageStores(folder)
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
    await until(lambda: len(list(folder.glob("*/*.bin"))) == 2)
    # The others are refused while nothing of the first has come.
    assert await asyncio.gather(*(upload() for _ in range(3))) == [False] * 3
    images_come.set()
    assert await first
    assert await upload()


async def test_what_the_disk_refuses_in_the_midst_of_a_plan_is_free_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = os.posix_fallocate

    def allocate_one(fd: int, offset: int, length: int) -> None:
        if len(list(folder.glob("*/*.bin"))) > 1:
            disk_that_is_full()
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", allocate_one)
    with pytest.raises(NoRoomError, match="can't store the images: No space left on device"):
        await store_image(ImageStores(folder), DATA, DATA)


async def test_a_disk_that_becomes_full_is_told_and_cleared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_write", disk_that_is_full)
    with pytest.raises(NoRoomError, match="can't store the images: No space left on device"):
        await store_image(ImageStores(folder), DATA)


async def test_all_images_together_are_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_STORED_BYTES", 2 * len(DATA))
    stores = ImageStores(folder)
    async with stores.store(plan_for(DATA)), stores.store(plan_for(DATA)):
        with pytest.raises(NoRoomError, match="2560000 bytes are needed, 0 are free"):
            await store_image(stores, DATA)
    await store_image(stores, DATA)


async def test_a_file_system_that_can_t_allocate_takes_images_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    await store_image(ImageStores(folder), DATA)


async def test_a_client_that_leaves_while_its_room_is_allocated_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = os.posix_fallocate
    begun, go_on = threading.Event(), threading.Event()

    def slowly(fd: int, offset: int, length: int) -> None:
        begun.set()
        assert go_on.wait(60)
        allocate(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", slowly)
    storing = asyncio.ensure_future(store_image(ImageStores(folder), DATA))
    await asyncio.to_thread(begun.wait)
    storing.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await storing


async def test_a_client_that_leaves_in_the_midst_leaves_nothing(folder: Path) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield DATA[:100]
        begun.set()
        await asyncio.Event().wait()

    async def store_it() -> None:
        async with ImageStores(folder).store(plan_for(DATA)) as store:
            await store.add(0, endless())

    storing = asyncio.ensure_future(store_it())
    await begun.wait()
    storing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await storing


async def test_what_killed_gateways_have_left_is_removed_and_what_is_in_use_stays(
    tmp_path: Path,
) -> None:
    old = time.time() - 3600
    for name in ("left", "used", "new"):
        left = tmp_path / f"esp-gateway-flash-{name}"
        left.mkdir()
        (left / "0x0.bin").write_bytes(b"x")
        if name != "new":
            os.utime(left, (old, old))
    (tmp_path / "another").mkdir()
    lock = os.open(tmp_path / "esp-gateway-flash-used", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        await store_image(ImageStores(tmp_path), DATA)
    finally:
        os.close(lock)
    names = set(os.listdir(tmp_path))  # noqa: PTH208 - names
    assert names == {"another", "esp-gateway-flash-used", "esp-gateway-flash-new"}
