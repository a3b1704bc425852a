"""Which TCP port of a pool belongs to which device: the same after each replug and restart.

A device is recognised by its serial number, wherever it is plugged in. If that number is not its
own (none, a maker's filler, or seen on two devices at once), it is recognised by its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from gateway import clock
from gateway.config.usb_match import UsbTty
from gateway.inputs import parse_json, read_regular_file
from gateway.runtime import call_blocking

T = TypeVar("T")

FILE_NAME: Final = "pools.json"

#: Ports of pools that are no longer in the YAML are remembered too: it may be changed back.
MAX_RECORDS: Final = 4096
MAX_SHARED: Final = 1024
_MAX_TEXT_CHARS: Final = 400
_MAX_NUMBER: Final = 10**9

#: A table of 4096 records takes 0.6 MB.
MAX_BYTES: Final = 4_000_000

_VERSION: Final = 1

#: Limit of a write: fsync waits for the disk, and a worn memory card takes seconds.
_WRITE_LIMIT_S: Final = 30.0
#: How long the start waits for the table, and the end for the last write.
_LOAD_LIMIT_S: Final = 5.0
_CLOSE_LIMIT_S: Final = 1.0
#: Wait before a failed write is tried again: the disk may have room then.
_RETRY_S: Final = 60.0


# --- the table


@dataclass(frozen=True, slots=True)
class Record:
    """A TCP port of a pool and its device; `serial` is empty where the socket counts.

    Both are keys as in UsbTty. `day` is the last one with the device plugged in, in days since
    1970: enough to find the device that is gone the longest, and no write to a memory card each
    time that a board is reset.
    """

    pool: str
    tcp_port: int
    serial: str
    socket: str
    day: int


@dataclass(frozen=True, slots=True)
class Served:
    """The result of an update: the device of each TCP port that has one, and those without."""

    ttys: dict[tuple[str, int], UsbTty] = field(default_factory=dict)
    left_out: list[tuple[str, UsbTty]] = field(default_factory=list)  # their pool is full
    replaced: list[Record] = field(default_factory=list)  # gone the longest


class PoolTable:
    """The ports of all pools; `records` has each TCP port of a pool once, and each device once."""

    def __init__(self, records: Iterable[Record] = (), shared: Iterable[str] = ()) -> None:
        self.records: dict[tuple[str, int], Record] = {}
        self.shared = set(shared)
        known = set()
        for record in records:
            device = (record.pool, record.serial or record.socket)
            if device not in known and (record.pool, record.tcp_port) not in self.records:
                known.add(device)
                self.records[record.pool, record.tcp_port] = record

    def update(
        self,
        pools: Mapping[str, range],
        wanted: Mapping[str, Sequence[UsbTty]],
        plugged_in: Sequence[UsbTty],
        day: int,
        held: Sequence[UsbTty] = (),
    ) -> Served:
        """Give each device of `wanted`, by pool, its port.

        `plugged_in` are all devices, `day` is today. Records of the devices in `held` are dropped,
        since no pool will serve them.
        """
        self._note_shared(plugged_in)
        self._drop(held)
        served = Served()
        for pool, ttys in wanted.items():
            new = [tty for tty in ttys if not self._find(pool, pools[pool], tty, day, served)]
            # Only now: a new device must not replace one that is plugged in.
            for tty in new:
                self._add(pool, pools[pool], tty, day, served)
        if len(self.records) > MAX_RECORDS:
            newest = sorted(self.records.values(), key=lambda each: each.day)[-MAX_RECORDS:]
            self.records = {(each.pool, each.tcp_port): each for each in newest}
        return served

    def tcp_ports(self, pool: str, tcp_ports: range) -> list[int]:
        """Return the ports of a pool that belong to a device, plugged in or not."""
        return sorted(port for name, port in self.records if name == pool and port in tcp_ports)

    def _note_shared(self, plugged_in: Sequence[UsbTty]) -> None:
        times = Counter(tty.serial_key for tty in plugged_in)
        twice = sorted(key for key, count in times.items() if key and count > 1)
        self.shared.update(twice[: MAX_SHARED - len(self.shared)])
        for place, record in self.records.items():
            if record.serial in self.shared:
                # The device seen with it last keeps the port, by its socket.
                self.records[place] = replace(record, serial="")

    def _drop(self, held: Sequence[UsbTty]) -> None:
        devices = {self._own_serial(tty) or tty.socket_key for tty in held}
        for place, record in list(self.records.items()):
            if (record.serial or record.socket) in devices:
                del self.records[place]

    def _own_serial(self, tty: UsbTty) -> str:
        return "" if tty.serial_key in self.shared else tty.serial_key

    def _find(self, pool: str, tcp_ports: range, tty: UsbTty, day: int, served: Served) -> bool:
        serial = self._own_serial(tty)
        for place, record in self.records.items():
            if record.pool != pool or record.serial != serial or place in served.ttys:
                continue
            if record.tcp_port in tcp_ports and (serial or record.socket == tty.socket_key):
                # A clock that is wrong after a reboot must not make a device seem long gone.
                last = max(day, record.day)
                self.records[place] = replace(record, socket=tty.socket_key, day=last)
                served.ttys[place] = tty
                return True
        return False

    def _add(self, pool: str, tcp_ports: range, tty: UsbTty, day: int, served: Served) -> None:
        tcp_port = self._free_port(pool, tcp_ports, served)
        if tcp_port is None:
            served.left_out.append((pool, tty))
            return
        record = Record(pool, tcp_port, self._own_serial(tty), tty.socket_key, day)
        # A record from before the pool's range was changed.
        for place, other in list(self.records.items()):
            if (pool, record.serial or record.socket) == (other.pool, other.serial or other.socket):
                del self.records[place]
        self.records[pool, tcp_port] = record
        served.ttys[pool, tcp_port] = tty

    def _free_port(self, pool: str, tcp_ports: range, served: Served) -> int | None:
        """Return an unused port, else that of the device that is gone the longest."""
        gone = []
        for tcp_port in tcp_ports:
            record = self.records.get((pool, tcp_port))
            if record is None:
                return tcp_port
            if (pool, tcp_port) not in served.ttys:
                gone.append(record)
        if not gone:
            return None
        oldest = min(gone, key=lambda record: (record.day, record.tcp_port))
        served.replaced.append(oldest)
        return oldest.tcp_port

    def to_json(self) -> dict[str, Any]:
        """Return the value that `from_json` reads."""
        records = [asdict(self.records[place]) for place in sorted(self.records)]
        return {"version": _VERSION, "shared": sorted(self.shared), "records": records}

    @classmethod
    def from_json(cls, data: Any) -> PoolTable:
        """Raise ValueError for any other value than one of `to_json`."""
        try:
            if data["version"] != _VERSION:
                raise ValueError(f"version {data['version']}")
            records = [Record(**each) for each in data["records"][:MAX_RECORDS]]
            shared = data["shared"][:MAX_SHARED]
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not a pool table ({type(exc).__name__}: {exc})") from exc
        texts = [text for each in records for text in (each.pool, each.serial, each.socket)]
        numbers = [number for each in records for number in (each.tcp_port, each.day)]
        for value in (*shared, *texts):
            if type(value) is not str or len(value) > _MAX_TEXT_CHARS:
                raise ValueError(f"invalid text {str(value)[:40]!r}")
        for value in numbers:
            if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
                raise ValueError(f"invalid number {str(value)[:40]!r}")
        return cls(records, shared)


# --- its file


def default_folder(environment: Mapping[str, str]) -> Path:
    """Return systemd's StateDirectory=, else the user's folder for the state of programs."""
    if given := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    home = environment.get("XDG_STATE_HOME", "")
    if home.startswith("/"):
        return Path(home) / "esp-gateway"
    try:
        return Path("~/.local/state/esp-gateway").expanduser()
    except RuntimeError:  # neither $HOME nor an entry of the user in /etc/passwd
        return Path("/var/lib/esp-gateway")


def today() -> int:
    """Return the days since 1970."""
    return int(time.time()) // 86400


def read_table(folder: Path) -> PoolTable:
    """Return the table of a service that may be running; empty if it can't be read. Blocks."""
    try:
        return _read(folder / FILE_NAME) or PoolTable()
    except (OSError, ValueError):
        return PoolTable()


def write_table(folder: Path, state: dict[str, Any]) -> None:
    """Replace the file by one with `state`, whole or not at all. Blocks; raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{FILE_NAME}.new"
    try:
        with new.open("w", encoding="utf-8") as file:
            json.dump(state, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(folder / FILE_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # the new name
    finally:
        os.close(descriptor)


def _read(path: Path) -> PoolTable | None:
    """Return None without a file; raise OSError, or ValueError for an invalid file."""
    try:
        data = read_regular_file(path, MAX_BYTES).data
    except FileNotFoundError:
        return None
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    return PoolTable.from_json(parse_json(data))


class PoolStore:
    """The table and its file; made and used on the loop.

    Without a writable folder pools work all the same, and assign ports again after a restart.
    """

    def __init__(self, folder: Path, log: structlog.typing.FilteringBoundLogger) -> None:
        self.table = PoolTable()
        self._folder = folder
        self._log = log
        self._loading: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._written: dict[str, Any] | None = None
        self._changed = asyncio.Event()
        self._last_failure = ("", "")  # event and reason
        self._is_closing = False

    async def load(self) -> None:
        """Read the table, the first time; bounded, a slow disk delivers it later."""
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_LOAD_LIMIT_S):
                await asyncio.shield(self._loading)

    def save(self) -> None:
        """Write the table if it differs from the file."""
        self._changed.set()
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._save())

    async def close(self) -> None:
        """Wait a moment for the last write."""
        self._is_closing = True
        self._changed.set()
        tasks = [task for task in (self._loading, self._saving) if task is not None]
        if tasks:
            with contextlib.suppress(TimeoutError):
                async with clock.timeout(_CLOSE_LIMIT_S):
                    await asyncio.wait(tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _load(self) -> None:
        path = self._folder / FILE_NAME
        try:
            table = await self._blocking(partial(_read, path))
        except OSError as error:
            self._report("pool_state_read_failed", _reason(error))
        except ValueError as error:
            self._report("pool_state_read_failed", str(error))
            with contextlib.suppress(OSError):  # for a person to look at
                await self._blocking(partial(path.replace, f"{path}.unreadable"))
        else:
            if table is not None:
                self.table = table
                self._written = table.to_json()

    async def _save(self) -> None:
        """Write until the file is up to date; a failed write is tried again."""
        if self._loading is not None:
            await asyncio.shield(self._loading)
        while (state := self.table.to_json()) != self._written:
            self._changed.clear()
            try:
                await self._blocking(partial(write_table, self._folder, state))
            except OSError as error:
                self._report("pool_state_write_failed", _reason(error))
                if self._is_closing:
                    return
                with contextlib.suppress(TimeoutError):
                    async with clock.timeout(_RETRY_S):
                        await self._changed.wait()
            else:
                self._written = state
                self._last_failure = ("", "")

    async def _blocking(self, call: Callable[[], T]) -> T:
        async with clock.timeout(_WRITE_LIMIT_S):
            return await call_blocking(call, "pool-state")

    def _report(self, event: str, reason: str) -> None:
        if (event, reason) != self._last_failure:
            self._last_failure = event, reason
            self._log.warning(event, path=str(self._folder / FILE_NAME), reason=reason)


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return f"the disk has not answered within {_WRITE_LIMIT_S:g} s"
    return error.strerror or str(error)
