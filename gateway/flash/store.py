"""Images that a client sends, on the gateway's disk: whole and right, or not at all.

They lie in a private folder that is removed in any case; what a killed gateway has left there is
removed by the next. Nothing here blocks the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterable, Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from gateway.errors import ClientError
from gateway.flash.plan import FlashImage, FlashPlan

_PREFIX = "esp-gateway-flash-"

#: So much is collected before it goes to the disk, in another thread.
_WRITE_BYTES = 1 << 20

#: A folder that is not locked and older than this belongs to nobody: one is locked at once.
_STALE_S = 60.0


class NotStoredError(ClientError):
    """For the client: why its images are not on the gateway."""


class NoRoomError(NotStoredError):
    """For the client, and the operator: the gateway's disk is full or does not work."""


class ImageStore:
    """The images of one plan; an async context manager, whose end removes them.

    `parent` is the folder in which the private one is made, by default the system's for temporary
    files.
    """

    def __init__(self, plan: FlashPlan, parent: Path | None = None) -> None:
        self._plan = plan
        self._parent = parent or Path(tempfile.gettempdir())
        self._lock = -1
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the images are; only inside of the context."""
        assert self._folder is not None  # noqa: S101 - a programming error
        return self._folder

    def file(self, number: int) -> str:
        """The name of an image's file in the folder."""
        return f"{self._plan.images[number].offset:#x}.bin"

    async def __aenter__(self) -> Self:
        """Raises NotStoredError when there is no room."""
        await self._to_thread(self._make_folder)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._to_thread(self._remove_folder)

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

    def _make_folder(self) -> None:
        _remove_stale(self._parent)
        free = shutil.disk_usage(self._parent).free
        if free < self._plan.total_bytes:
            raise NoRoomError(
                f"the gateway can't store the images: {self._plan.total_bytes} bytes are needed,"
                f" {free} are free"
            )
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
        self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


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
            self._file = self._path.open("xb", buffering=0)
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._hash.update(data)
        self.size += len(data)

    def close(self) -> None:
        """Nothing happens the second time."""
        if self._file is not None:
            self._file.close()


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
