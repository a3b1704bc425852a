"""Which TCP port of a pool belongs to which device: the same one each time, for as long as it can.

A device is known again by its serial number, wherever it is plugged in. Where that number is not
its own (none, a maker's filler, or the same as another's that was seen beside it), it is known by
the socket that it is in. Pure but for what it remembers; how that outlives the process is
`state_file`'s matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from gateway.config.usb_match import UsbTty

#: Ports of pools that are no longer in the YAML are remembered too: it may be changed back.
MAX_RECORDS = 4096
MAX_SHARED = 1024
_MAX_TEXT_CHARS = 400

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One TCP port of a pool and its device; `serial` is empty where the socket counts.

    Both are keys as UsbTty gives them. `day` is the last one on which the device was there, in
    days since 1970: enough to know which one has been gone the longest, and no reason to write to
    a memory card each time that a board is reset.
    """

    pool: str
    tcp_port: int
    serial: str
    socket: str
    day: int


@dataclass(frozen=True, slots=True)
class Served:
    """What came of an update: the device of each TCP port that has one, and who has none."""

    ttys: dict[tuple[str, int], UsbTty] = field(default_factory=dict)
    left_out: list[tuple[str, UsbTty]] = field(default_factory=list)  # their pool is full
    replaced: list[Record] = field(default_factory=list)  # gone the longest, given up for others


class PoolTable:
    """See the module. `records` has each TCP port of a pool once, and each device once."""

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

        `plugged_in` are all devices, `day` is today. `held` are the devices of ports that the YAML
        names: records of these are dropped, since no pool will serve them.
        """
        self._note_shared(plugged_in)
        self._drop(held)
        served = Served()
        for pool, ttys in wanted.items():
            new = [tty for tty in ttys if not self._find(pool, pools[pool], tty, day, served)]
            # Only now: a new device takes no port of one that is there.
            for tty in new:
                self._add(pool, pools[pool], tty, day, served)
        self._bound()
        return served

    def tcp_ports(self, pool: str, tcp_ports: range) -> list[int]:
        """The ports of a pool that belong to a device, there or not."""
        return sorted(port for name, port in self.records if name == pool and port in tcp_ports)

    def _note_shared(self, plugged_in: Sequence[UsbTty]) -> None:
        times = Counter(tty.serial_key for tty in plugged_in)
        twice = sorted(key for key, count in times.items() if key and count > 1)
        self.shared.update(twice[: MAX_SHARED - len(self.shared)])
        for place, record in self.records.items():
            if record.serial in self.shared:
                # Whoever was seen with it last keeps the port, by its socket.
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
                # A clock that is wrong after a reboot does not make a device seem long gone.
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
        # One that it had before the pool's range was changed.
        for place, other in list(self.records.items()):
            if (pool, record.serial or record.socket) == (other.pool, other.serial or other.socket):
                del self.records[place]
        self.records[pool, tcp_port] = record
        served.ttys[pool, tcp_port] = tty

    def _free_port(self, pool: str, tcp_ports: range, served: Served) -> int | None:
        """A port that was never used, else that of the device that has been gone the longest."""
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

    def _bound(self) -> None:
        if len(self.records) > MAX_RECORDS:
            newest = sorted(self.records.values(), key=lambda each: each.day)[-MAX_RECORDS:]
            self.records = {(each.pool, each.tcp_port): each for each in newest}

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        records = [asdict(self.records[place]) for place in sorted(self.records)]
        return {"version": _VERSION, "shared": sorted(self.shared), "records": records}

    @classmethod
    def from_json(cls, data: Any) -> PoolTable:
        """ValueError when it is not what `to_json` gives."""
        try:
            if data["version"] != _VERSION:
                raise ValueError(f"version {data['version']}")
            records = [_record(**each) for each in data["records"][:MAX_RECORDS]]
            shared = [_text(each) for each in data["shared"][:MAX_SHARED]]
        except (KeyError, TypeError, AttributeError) as exc:
            raise ValueError(f"not a pool table ({type(exc).__name__}: {exc})") from exc
        return cls(records, shared)


def _record(pool: Any, tcp_port: Any, serial: Any, socket: Any, day: Any) -> Record:
    return Record(_text(pool), _number(tcp_port), _text(serial), _text(socket), _number(day))


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT_CHARS:
        raise ValueError(f"not a text: {str(value)[:40]}")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**9:
        raise ValueError(f"not a number: {str(value)[:40]}")
    return value
