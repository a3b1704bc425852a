"""The measuring client and the boards' ends of the ttys, in a process of its own.

Reads one job as JSON from stdin, writes its result as JSON to stdout. Both ends of a port are held
by the same process: a byte's time needs no other clock, and nothing but the server is between them.
What the jobs are for, and what their numbers mean, is `rows`'s matter.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
import zlib
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tools.benchmarks.wire import (
    Payload,
    Uart,
    escaped,
    hello,
    payload,
    set_baudrate,
    set_dtr,
    unescaped,
)

_HOST = "127.0.0.1"
_CHUNK_BYTES = 65536
#: A server that has not answered or delivered by then does not.
_LIMIT_S = 60.0
#: Answers to the greeting may trickle in; then the connection is quiet.
_QUIET_S = 0.05
_PR_SET_TIMERSLACK = 29  # linux/prctl.h
#: sleep() may be late by this much even so; the rest is spun.
_SPIN_S = 0.0002

#: What a board answers to a block: an esptool response packet is about that long.
_REPLY = b"\xc0" + b"\x01" * 8 + b"\xc0"
BLOCK_BYTES = 16384

#: What is read or written at once of a paced stream: what a USB bridge hands over.
PACED_CHUNK_BYTES = 512
_TICK_S = 0.001  # the frames of USB
#: A byte that has been under way longer than that is late.
_LATE_S = 0.1
#: How long the last bytes are waited for.
_STRAGGLERS_S = 2.0


@dataclass
class Port:
    """One port of the server: the client's socket and the board's end of the tty."""

    tcp_port: int
    master: int
    is_telnet: bool
    baudrate: int
    socket: socket.socket = field(init=False)

    def connect(self) -> None:
        """Connect and say hello; afterwards only data comes."""
        self.socket = _connect(self.tcp_port)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.is_telnet:
            request, answer = hello(self.baudrate)
            self.socket.sendall(request)
            self.wait_for(answer)
        self._drain()

    def wait_for(self, wanted: bytes) -> None:
        """Read from the server until this has come."""
        received = b""
        while wanted not in received:
            self.socket.settimeout(_LIMIT_S)
            chunk = self.socket.recv(_CHUNK_BYTES)
            if not chunk:
                raise ConnectionError(f"hung up after {received!r}")
            received += chunk

    def _drain(self) -> None:
        ends = [self.socket.fileno(), self.master]
        while readable := select.select(ends, [], [], _QUIET_S)[0]:
            for end in readable:
                os.read(end, _CHUNK_BYTES)
        self.socket.settimeout(_LIMIT_S)


def _connect(tcp_port: int) -> socket.socket:
    """Single-client servers may still be ending the connection before."""
    deadline = time.monotonic() + _LIMIT_S
    while True:
        try:
            return socket.create_connection((_HOST, tcp_port))
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def cpu_s(pids: list[int]) -> float:
    """CPU time that processes have used so far, ended threads and children that they have waited
    for apart: clock_getcpuclockid(3)."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)


def memory_mb(pids: list[int]) -> tuple[float, float]:
    """Resident memory, shared pages counted once for each process, and divided among them."""
    rss_kb = pss_kb = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Rss":
                rss_kb += int(value.split()[0])
            elif name == "Pss":
                pss_kb += int(value.split()[0])
    return rss_kb / 1024, pss_kb / 1024


def family(pids: list[int]) -> list[int]:
    """The processes and all that they have forked."""
    found = list(pids)
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def bulk(ports: list[Port], job: dict[str, Any]) -> dict[str, Any]:
    """One way as fast as it goes."""
    port = ports[0]
    data = payload(Payload(job["payload"]), job["size_bytes"])
    wire = escaped(data, is_telnet=port.is_telnet)
    client, board = port.socket.fileno(), port.master
    to_serial = job["to_serial"]
    out, into = (client, board) if to_serial else (board, client)
    wanted_bytes = len(data if to_serial else wire)
    pids = family(job["pids"])
    began_cpu_s, began = cpu_s(pids), time.monotonic()
    received = _transfer(out, into, memoryview(wire if to_serial else data), wanted_bytes)
    seconds, used_s = time.monotonic() - began, cpu_s(pids) - began_cpu_s
    if not to_serial:
        received = unescaped(received, is_telnet=port.is_telnet)
    if received != data:
        raise AssertionError(f"{len(data)} bytes sent, others received: {len(received)}")
    size_mb = len(data) / 1e6
    return {"mb_per_s": size_mb / seconds, "cpu_ms_per_mb": used_s * 1000 / size_mb}


def _transfer(out: int, into: int, data: memoryview, wanted_bytes: int) -> bytes:
    os.set_blocking(out, False)
    os.set_blocking(into, False)
    poll = select.epoll()
    poll.register(out, select.EPOLLOUT)
    poll.register(into, select.EPOLLIN)
    sent, received, chunks = 0, 0, []
    deadline = time.monotonic() + _LIMIT_S
    while received < wanted_bytes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{wanted_bytes - received} of {wanted_bytes} bytes did not come")
        for end, _ in poll.poll(1):
            if end == into:
                chunks.append(os.read(into, _CHUNK_BYTES))
                received += len(chunks[-1])
            else:
                try:
                    sent += os.write(out, data[sent : sent + _CHUNK_BYTES])
                except BlockingIOError:
                    continue
                if sent == len(data):
                    poll.unregister(out)
    poll.close()
    return b"".join(chunks)


def round_trip(ports: list[Port], job: dict[str, Any]) -> dict[str, Any]:
    """Some bytes to the board and the same back, one after the other."""
    os.set_blocking(ports[0].master, True)
    ports[0].socket.setblocking(True)  # with a time limit, each call would poll first
    pids, count = family(job["pids"]), job["count"]
    began_cpu_s = cpu_s(pids)
    times_us = {str(size): _round_trips(ports[0], b"x" * size, count) for size in job["sizes"]}
    trips = len(times_us) * (count + _WARM_UP)
    return {"times_us": times_us, "cpu_us": (cpu_s(pids) - began_cpu_s) * 1e6 / trips}


def _round_trips(port: Port, data: bytes, count: int) -> list[float]:
    times_us = []
    for number in range(count + _WARM_UP):
        began = time.monotonic_ns()
        port.socket.sendall(data)
        _read(port.master, len(data))
        os.write(port.master, data)
        _read(port.socket.fileno(), len(data))
        if number >= _WARM_UP:
            times_us.append((time.monotonic_ns() - began) / 1000)
    return times_us


_WARM_UP = 20


def _read(end: int, count: int) -> None:
    while count:
        count -= len(os.read(end, count))


def flash(ports: list[Port], job: dict[str, Any]) -> dict[str, Any]:
    """Blocks to a board behind a UART, each when the one before has been answered."""
    port, blocks = ports[0], job["blocks"]
    block = escaped(payload(Payload.RANDOM, BLOCK_BYTES), is_telnet=port.is_telnet)
    port.socket.setblocking(True)
    os.set_blocking(port.master, False)
    uart = Uart(job["baudrate"])
    pids = family(job["pids"])
    began_cpu_s, began = cpu_s(pids), time.monotonic()
    for _ in range(blocks):
        port.socket.sendall(block)
        _receive_block(port.master, uart)
        _sleep_until(uart.free_at + uart.duration(len(_REPLY)))
        os.write(port.master, _REPLY)
        _read(port.socket.fileno(), len(_REPLY))
    seconds, used_s = time.monotonic() - began, cpu_s(pids) - began_cpu_s
    wire_s = blocks * uart.duration(BLOCK_BYTES + len(_REPLY))
    return {"overhead_percent": (seconds / wire_s - 1) * 100, "cpu_percent": used_s / seconds * 100}


def _receive_block(master: int, uart: Uart) -> None:
    missing = BLOCK_BYTES
    while missing:
        now = time.monotonic()
        room = uart.room(now)
        if room < PACED_CHUNK_BYTES <= missing:
            time.sleep(uart.duration(PACED_CHUNK_BYTES))
            continue
        select.select([master], [], [])
        taken = len(os.read(master, min(room, missing)))
        uart.take(time.monotonic(), taken)
        missing -= taken


def _sleep_until(moment: float) -> None:
    if (left := moment - time.monotonic() - _SPIN_S) > 0:
        time.sleep(left)
    while time.monotonic() < moment:
        pass


class _Stream:
    """One direction of one paced port: what is due, sent, received, and how long it took."""

    def __init__(self, out: int, into: int, *, escaped_out: bool, escaped_in: bool) -> None:
        self.out, self.into = out, into
        chunk = payload(Payload.RANDOM, PACED_CHUNK_BYTES)
        self._sent_as = escaped(chunk, is_telnet=escaped_out)
        self._comes_as = escaped(chunk, is_telnet=escaped_in)
        self._unsent = bytearray()
        self._expected: deque[tuple[int, float]] = deque()  # complete at so many bytes, sent at
        self.expected_bytes = self.received_bytes = 0
        self._sent_crc = self._received_crc = 0
        self.lags_s: list[float] = []

    def send(self, now: float) -> None:
        """Send one more chunk, or as much as goes."""
        self.expected_bytes += len(self._comes_as)
        self._expected.append((self.expected_bytes, now))
        self._sent_crc = zlib.crc32(self._comes_as, self._sent_crc)
        self._unsent += self._sent_as
        self.flush()

    def flush(self) -> None:
        """Send what would not go before."""
        if self._unsent:
            with contextlib.suppress(BlockingIOError):
                del self._unsent[: os.write(self.out, self._unsent)]

    def receive(self) -> None:
        """Take what has come."""
        try:
            data = os.read(self.into, _CHUNK_BYTES)
        except BlockingIOError:
            return
        now = time.monotonic()
        self.received_bytes += len(data)
        self._received_crc = zlib.crc32(data, self._received_crc)
        while self._expected and self._expected[0][0] <= self.received_bytes:
            self.lags_s.append(now - self._expected.popleft()[1])

    @property
    def lost_bytes(self) -> int:
        """What did not come, or came wrong."""
        if self.received_bytes == self.expected_bytes and self._sent_crc != self._received_crc:
            return self.expected_bytes
        return abs(self.expected_bytes - self.received_bytes)


def duplex(ports: list[Port], job: dict[str, Any]) -> dict[str, Any]:
    """Every port both ways at the rate of its UART."""
    streams = []
    for port in ports:
        client, telnet = port.socket.fileno(), port.is_telnet
        os.set_blocking(client, False)
        os.set_blocking(port.master, False)
        streams.append(_Stream(client, port.master, escaped_out=telnet, escaped_in=False))
        streams.append(_Stream(port.master, client, escaped_out=False, escaped_in=telnet))
    pids = family(job["pids"])
    chunk_s = Uart(job["baudrate"]).duration(PACED_CHUNK_BYTES)
    began_cpu_s, began = cpu_s(pids), time.monotonic()
    _pace(streams, began, chunk_s, job["seconds"])
    seconds, used_s = time.monotonic() - began, cpu_s(pids) - began_cpu_s
    rss_mb, pss_mb = memory_mb(pids)
    _catch_up(streams)
    lags_s = [lag for stream in streams for lag in stream.lags_s]
    return {
        "cpu_percent": used_s / seconds * 100,
        "rss_mb": rss_mb,
        "pss_mb": pss_mb,
        "lags_us": [lag * 1e6 for lag in lags_s],
        "late_bytes": sum(lag > _LATE_S for lag in lags_s) * PACED_CHUNK_BYTES,
        "lost_bytes": sum(stream.lost_bytes for stream in streams),
    }


def _poll_of(streams: list[_Stream]) -> tuple[select.epoll, dict[int, _Stream]]:
    poll = select.epoll()
    by_end = {stream.into: stream for stream in streams}
    for end in by_end:
        poll.register(end, select.EPOLLIN)
    return poll, by_end


def _pace(streams: list[_Stream], began: float, chunk_s: float, seconds: float) -> None:
    """Send a chunk on each stream every `chunk_s`, evenly spread over that time."""
    poll, by_end = _poll_of(streams)
    count, sent = len(streams), 0
    while (now := time.monotonic()) < began + seconds:
        due = int((now - began) / chunk_s * count)
        while sent < due:
            streams[sent % count].send(now)
            sent += 1
        next_tick = now + min(_TICK_S, chunk_s / count)
        for end, _ in poll.poll(max(0.0, next_tick - time.monotonic())):
            by_end[end].receive()
        for stream in streams:
            stream.flush()
    poll.close()


def _catch_up(streams: list[_Stream]) -> None:
    poll, by_end = _poll_of(streams)
    deadline = time.monotonic() + _STRAGGLERS_S
    while time.monotonic() < deadline and any(stream.lost_bytes for stream in streams):
        for end, _ in poll.poll(0.01):
            by_end[end].receive()
        for stream in streams:
            stream.flush()
    poll.close()


def command(ports: list[Port], job: dict[str, Any]) -> dict[str, Any]:
    """Commands on the first port, one after the other: when each was sent, and answered."""
    port = ports[0]
    asked_ns, times_us = [], []
    port.socket.settimeout(job["answer_limit_s"])
    if job["delays"]:
        # From here on, calls on the other port's tty hang.
        Path(job["delay_file"]).write_text(job["delays"])
        ports[1].socket.sendall(set_baudrate(57600)[0])
        time.sleep(_QUIET_S)
    for number in range(job["count"]):
        if job["command"] == "baudrate":
            request, answer = set_baudrate((115200, 921600)[number % 2])
        else:
            request, answer = set_dtr(number % 2 == 0)
        asked_ns.append(time.monotonic_ns())
        port.socket.sendall(request)
        try:
            _receive_answer(port.socket, answer)
        except TimeoutError:
            return {"asked_ns": asked_ns, "times_us": []}
        times_us.append((time.monotonic_ns() - asked_ns[-1]) / 1000)
        time.sleep(job["gap_s"])
    return {"asked_ns": asked_ns, "times_us": times_us}


def _receive_answer(connection: socket.socket, answer: bytes) -> None:
    received = b""
    while answer not in received:
        received += connection.recv(_CHUNK_BYTES)


def idle(ports: list[Port], job: dict[str, Any]) -> dict[str, Any]:
    """Nothing, for a while."""
    pids = family(job["pids"])
    began_cpu_s, began = cpu_s(pids), time.monotonic()
    time.sleep(job["seconds"])
    used_s = cpu_s(pids) - began_cpu_s
    rss_mb, pss_mb = memory_mb(pids)
    cpu_percent = used_s / (time.monotonic() - began) * 100
    return {"cpu_percent": cpu_percent, "rss_mb": rss_mb, "pss_mb": pss_mb}


JOBS = {job.__name__: job for job in (bulk, round_trip, flash, duplex, command, idle)}


def main() -> None:
    """Carry out the job."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    job = json.loads(sys.stdin.readline())
    signal.alarm(job["limit_s"])
    ports = [Port(*port) for port in job["ports"]]
    for port in ports:
        port.connect()
    print(json.dumps("ready"), flush=True)
    print(json.dumps(JOBS[job["job"]](ports, job)), flush=True)


if __name__ == "__main__":
    main()
