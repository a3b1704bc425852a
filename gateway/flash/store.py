"""Store the images that a client sends on the gateway's disk: whole and right, or not at all.

Their room is allocated before the first byte of them is read, so that of several uploads at once
those that fit succeed and the others are rejected at their plan. They lie in a private folder that
is removed in any case; the next store removes what a killed gateway has left. Nothing here blocks
the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from pathlib import Path
from typing import Final

from gateway.flash.plan import FlashError, FlashImage, FlashPlan, Outcome
from gateway.runtime import uncancelled

_PREFIX: Final = "esp-gateway-flash-"

#: This much is collected before it is written, in another thread.
_WRITE_BYTES: Final = 1 << 18

#: All images of all ports: 16 boards of the largest plan, 256 of 4 MB. $TMPDIR is in memory on many
#: hosts.
MAX_STORED_BYTES: Final = 1 << 30

#: An unlocked folder that is older was left by a killed gateway: a new one is locked at once.
_STALE_S: Final = 60.0


class NotStoredError(FlashError):
    """Why the images are not on the gateway."""

    def __init__(self, message: str) -> None:
        super().__init__(Outcome.NOT_STORED, message)


class NoRoomError(NotStoredError):
    """The gateway's disk is full or does not work; for its operator as well."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the gateway can't store the images: {reason}")


class ImageStore:
    """The images of one plan; open only within `ImageStores.store`."""

    def __init__(self, plan: FlashPlan) -> None:
        self.folder = Path()
        self._plan = plan
        self._is_made = False
        self._lock: int | None = None  # a descriptor of the folder, locked while it is in use

    def file(self, number: int) -> str:
        """Return the name of an image's file in the folder."""
        return f"{self._plan.images[number].offset:#x}.bin"

    def read(self, number: int, at: int, n_bytes: int) -> bytes:
        """Return bytes of an image that was added, fewer at its end; blocks."""
        with (self.folder / self.file(number)).open("rb") as file:
            file.seek(at)
            return file.read(n_bytes)

    async def add(self, number: int, chunks: AsyncIterable[bytes]) -> None:
        """Store an image. Raises NotStoredError when it is not the one of the plan."""
        image = self._plan.images[number]
        path = self.folder / self.file(number)
        digest = hashlib.sha256()
        n_bytes = 0
        begun = bytearray()

        def write(data: bytes) -> None:
            _write(path, n_bytes, data)
            digest.update(data)

        async for chunk in chunks:
            begun += chunk
            if n_bytes + len(begun) > image.size:
                raise NotStoredError(f"{image.name}: more than its {image.size} bytes came")
            if len(begun) >= _WRITE_BYTES:
                await _on_thread(write, bytes(begun))
                n_bytes += len(begun)
                begun.clear()
        await _on_thread(write, bytes(begun))
        n_bytes += len(begun)
        if n_bytes != image.size:
            raise NotStoredError(f"{image.name}: {n_bytes} of its {image.size} bytes came")
        if digest.hexdigest() != image.sha256:
            raise NotStoredError(f"{image.name} was damaged on its way: its SHA-256 differs")

    def allocate(self, parent: Path) -> None:
        """Make the folder with a file of its length for each image; blocks. Raises OSError."""
        self.folder, self._is_made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)), True
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        for number, image in enumerate(self._plan.images):
            _allocate(self.folder / self.file(number), image)

    def remove(self) -> bool:
        """Remove the folder; blocks. Returns whether there was one."""
        was_made, self._is_made = self._is_made, False
        if was_made:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        return was_made


class ImageStores:
    """Makes stores in private folders within `parent`, by default the folder of temporary files."""

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._used_bytes = 0
        #: One plan is allocated at a time: two that have half of their room each would both fail.
        self._allocating = threading.Lock()

    @contextlib.asynccontextmanager
    async def store(self, plan: FlashPlan) -> AsyncIterator[ImageStore]:
        """Allocate a store for a plan's images, and remove it afterwards. Raises NoRoomError."""
        store = ImageStore(plan)
        try:
            await _on_thread(self._allocate, store, plan)
            yield store
        finally:
            await _on_thread(self._free, store, plan)

    def _allocate(self, store: ImageStore, plan: FlashPlan) -> None:
        with self._allocating:
            parent = self._parent or Path(tempfile.gettempdir())
            _remove_stale(parent)
            self._check_room(parent, plan)
            try:
                store.allocate(parent)
            except OSError as error:
                store.remove()
                if error.errno == errno.ENOSPC:
                    self._check_room(parent, plan)
                raise
            self._used_bytes += plan.total_bytes

    def _check_room(self, parent: Path, plan: FlashPlan) -> None:
        free_bytes = min(shutil.disk_usage(parent).free, MAX_STORED_BYTES - self._used_bytes)
        if free_bytes < plan.total_bytes:
            raise NoRoomError(f"{plan.total_bytes} bytes are needed, {max(0, free_bytes)} are free")

    def _free(self, store: ImageStore, plan: FlashPlan) -> None:
        if store.remove():
            with self._allocating:
                self._used_bytes -= plan.total_bytes


async def _on_thread(call: Callable[..., object], *arguments: object) -> None:
    """Run a call that blocks to its end, so that nothing is made after the removal."""
    try:
        await uncancelled(asyncio.to_thread(call, *arguments))
    except OSError as error:
        raise NoRoomError(error.strerror or str(error)) from None


def _write(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(at)
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]


def _allocate(path: Path, image: FlashImage) -> None:
    with path.open("xb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, image.size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
            # This file system can't allocate: its room may end while images come.
            file.truncate(image.size)


def _remove_stale(parent: Path) -> None:
    """Remove folders that killed gateways have left."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _STALE_S:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails if it is in use
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
