"""Images that a client sends, on the gateway's disk: whole and right, or not at all.

Their room on the disk is allocated before the first byte of them is read, so that of several
uploads at once those that fit succeed and the others are refused at their plan. They lie in a
private folder that is removed in any case; what a killed gateway has left is removed by the next.
Nothing here blocks the event loop.
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
from collections.abc import AsyncIterable, Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from gateway.errors import ClientError
from gateway.flash.plan import FlashImage, FlashPlan

_PREFIX = "esp-gateway-flash-"

#: So much is collected before it goes to the disk, in another thread.
_WRITE_BYTES = 1 << 18

#: All images of all ports: 16 boards of the largest plan, 256 of 4 MB. $TMPDIR is in memory on many
#: hosts.
MAX_STORED_BYTES = 1 << 30

#: A folder that is older and not locked is of a killed gateway: others are locked at once.
_STALE_S = 60.0


class NotStoredError(ClientError):
    """For the client: why its images are not on the gateway."""


class NoRoomError(NotStoredError):
    """For the client, and the operator: the gateway's disk is full or does not work."""


class ImageStores:
    """Where images are stored, and how much of it is in use.

    `parent` is the folder in which private ones are made, by default the system's for temporary
    files.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self._used_bytes = 0
        #: One plan is allocated at a time: two that have half of their room each would both fail.
        self._allocating = threading.Lock()

    def store(self, plan: FlashPlan) -> ImageStore:
        """A store for the images of one plan, to be entered."""
        return ImageStore(plan, self)

    def allocate(self, plan: FlashPlan) -> tuple[Path, int]:
        """Make a folder with a file of its length for each image; NoRoomError. Blocks.

        Returns the folder and a descriptor of it, locked while it is in use.
        """
        with self._allocating:
            parent = self._parent or Path(tempfile.gettempdir())
            _remove_stale(parent)
            free_bytes = shutil.disk_usage(parent).free
            left_bytes = min(free_bytes, MAX_STORED_BYTES - self._used_bytes)
            if left_bytes < plan.total_bytes:
                raise _no_room(plan, left_bytes)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for image in plan.images:
                    _allocate(folder / _file_of(image), image.size)
            except OSError as error:
                _remove(folder, lock)
                free_bytes = shutil.disk_usage(parent).free
                if error.errno == errno.ENOSPC and free_bytes < plan.total_bytes:
                    raise _no_room(plan, free_bytes) from None
                raise
            self._used_bytes += plan.total_bytes
            return folder, lock

    def free(self, plan: FlashPlan, folder: Path, lock: int) -> None:
        """Remove what `allocate` has made. Blocks."""
        _remove(folder, lock)
        with self._allocating:
            self._used_bytes -= plan.total_bytes


class ImageStore:
    """The images of one plan; an async context manager, whose end removes them."""

    def __init__(self, plan: FlashPlan, stores: ImageStores) -> None:
        self._plan = plan
        self._stores = stores
        self._made: tuple[Path, int] | None = None

    @property
    def folder(self) -> Path:
        """Where the images are; only inside of the context."""
        assert self._made is not None  # noqa: S101 - a programming error
        return self._made[0]

    def file(self, number: int) -> str:
        """The name of an image's file in the folder."""
        return _file_of(self._plan.images[number])

    async def __aenter__(self) -> Self:
        """Raises NoRoomError."""
        try:
            await self._to_thread(self._allocate)
        except asyncio.CancelledError:
            await self._to_thread(self._free)  # it was allocated all the same
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._to_thread(self._free)

    def read(self, number: int, at: int, n_bytes: int) -> bytes:
        """Bytes of an image that was added, fewer at its end; blocks."""
        with (self.folder / self.file(number)).open("rb") as file:
            file.seek(at)
            return file.read(n_bytes)

    async def add(self, number: int, chunks: AsyncIterable[bytes]) -> None:
        """Store an image; NotStoredError when it is not the one of the plan."""
        image = self._plan.images[number]
        writer = _Writer(self.folder / self.file(number))
        try:
            begun = bytearray()
            async for chunk in chunks:
                begun += chunk
                if writer.size + len(begun) > image.size:
                    raise NotStoredError(f"{image.name}: more than its {image.size} bytes came")
                if len(begun) >= _WRITE_BYTES:
                    whole, begun = bytes(begun), bytearray()
                    await self._to_thread(writer.write, whole)
            await self._to_thread(writer.write, bytes(begun))
        finally:
            await self._to_thread(writer.close)
        _check(image, writer)

    async def _to_thread(self, call: Callable[..., object], *arguments: object) -> None:
        """Run it to its end whatever happens here, so that nothing is made behind the removal."""
        running = asyncio.ensure_future(asyncio.to_thread(call, *arguments))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            with contextlib.suppress(OSError, NotStoredError):
                await running
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            raise NoRoomError(f"the gateway can't store the images: {reason}") from None

    def _allocate(self) -> None:
        self._made = self._stores.allocate(self._plan)

    def _free(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            self._stores.free(self._plan, *made)


class _Writer:
    """One file being written; its methods block."""

    def __init__(self, path: Path) -> None:
        self.size = 0
        self._path = path
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None

    @property
    def sha256(self) -> str:
        """Of what was written."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Raises OSError when it can't, no room left for instance."""
        if self._file is None:
            self._file = self._path.open("r+b", buffering=0)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._hash.update(data)
        self.size += len(data)

    def close(self) -> None:
        """Nothing happens the second time."""
        if self._file is not None:
            self._file.close()


def _file_of(image: FlashImage) -> str:
    return f"{image.offset:#x}.bin"


def _allocate(path: Path, size: int) -> None:
    with path.open("xb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:
                raise
            file.truncate(size)  # a file system that can't: its room may end while images come


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _no_room(plan: FlashPlan, left_bytes: int) -> NoRoomError:
    return NoRoomError(
        f"the gateway can't store the images: {plan.total_bytes} bytes are needed,"
        f" {max(0, left_bytes)} are free"
    )


def _check(image: FlashImage, written: _Writer) -> None:
    if written.size != image.size:
        raise NotStoredError(f"{image.name}: {written.size} of its {image.size} bytes came")
    if written.sha256 != image.sha256:
        raise NotStoredError(f"{image.name} was damaged on its way: its SHA-256 is another")


def _remove_stale(parent: Path) -> None:
    """Remove what gateways have left that were killed; a lock says that one is in use."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _STALE_S:
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
