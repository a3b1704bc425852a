import asyncio
import os

import pytest
import serial

from gateway.simulator import link
from gateway.simulator.link import Link, Pacer, carry, garble_table

SECOND = 1_000_000_000

#: Fast enough that nothing here takes long; a rate that pyserial can set.
FAST_BAUD = 4_000_000

#: For hung tests only.
LIMIT_S = 20.0


class FakeUart:
    """A board's UART that sends what is put into `outgoing` and keeps what it hears."""

    def __init__(self) -> None:
        self.baudrate = FAST_BAUD
        self.outgoing = bytearray()
        self.heard = bytearray()
        self.sent = asyncio.Event()  # set when `outgoing` has become empty

    @property
    def unsent_bytes(self) -> int:
        return len(self.outgoing)

    def take(self, now_ns: int, limit: int) -> bytes:
        chunk = bytes(self.outgoing[:limit])
        del self.outgoing[:limit]
        if not self.outgoing:
            self.sent.set()
        return chunk

    def receive_data(self, now_ns: int, data: bytes) -> None:
        self.heard += data


class Wire:
    """A link with a fake UART at its far end; news is set whenever something has happened."""

    def __init__(self, usb_baudrate: int | None = None) -> None:
        self.uart = FakeUart()
        self.news = asyncio.Event()
        self.n_lost = 0
        self.rates: list[int] = []
        self.link = Link(
            self.uart,
            self.news.set,
            self._count_lost,
            usb_baudrate=usb_baudrate,
            rate_set=None if usb_baudrate is None else self._note_rate,
        )

    def _note_rate(self, baudrate: int) -> None:
        self.rates.append(baudrate)
        self.news.set()

    def _count_lost(self, n_bytes: int) -> None:
        self.n_lost += n_bytes
        self.news.set()

    def open_tty(self, baudrate: int = FAST_BAUD) -> serial.Serial:
        return serial.Serial(self.link.path, baudrate, timeout=0)

    async def hears(self, n_bytes: int) -> bytes:
        async with asyncio.timeout(LIMIT_S):
            while len(self.uart.heard) < n_bytes:
                self.news.clear()
                await self.news.wait()
        return bytes(self.uart.heard)

    async def is_told_rates(self, *rates: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while self.rates != list(rates):
                self.news.clear()
                await self.news.wait()

    async def send(self, data: bytes) -> None:
        """Have the UART send `data`; all of it has left when this returns."""
        self.start_sending(data)
        async with asyncio.timeout(LIMIT_S):
            await self.uart.sent.wait()

    def start_sending(self, data: bytes) -> None:
        self.uart.sent.clear()
        self.uart.outgoing += data
        self.link.wake()


def write_until_full(fd: int) -> int:
    os.set_blocking(fd, False)
    written = 0
    while True:
        try:
            written += os.write(fd, bytes(1000))
        except BlockingIOError:
            return written


async def read_exactly(tty: serial.Serial, n_bytes: int) -> bytes:
    data = b""
    async with asyncio.timeout(LIMIT_S):
        while len(data) < n_bytes:
            data += tty.read(n_bytes - len(data))
            await asyncio.sleep(0.001)
    return data


def test_pacer_is_exact_over_any_time() -> None:
    pacer = Pacer(921600, now_ns=7)
    carried = 0
    for now_ns in range(7, 7 + 10 * SECOND, 3_333_333):
        due = pacer.due(now_ns)
        pacer.carry(due)
        carried += due
    pacer_end = pacer.due(7 + 10 * SECOND)
    assert carried + pacer_end == 921600


def test_pacer_catches_up_after_a_late_wake_up() -> None:
    pacer = Pacer(115200, now_ns=0)
    assert pacer.due(SECOND) == 11520
    pacer.carry(20)
    assert pacer.due(SECOND) == 11500


def test_pacer_tells_when_bytes_will_have_passed() -> None:
    pacer = Pacer(115200, now_ns=0)
    pacer.carry(1000)
    due_ns = pacer.due_ns(5)
    assert pacer.due(due_ns) == 5
    assert pacer.due(due_ns - 1) == 4


@pytest.mark.parametrize(
    ("host", "board"), [(115200, 115200), (118_000, 115200), (112_000, 115200)]
)
def test_rates_within_3_percent_understand_each_other(host: int, board: int) -> None:
    data = bytes(range(256))
    assert carry(data, host, board) == data


@pytest.mark.parametrize(
    ("host", "board"), [(9600, 115200), (74880, 115200), (115200, 921600), (119_000, 115200)]
)
def test_other_rates_garble_every_byte_both_ways(host: int, board: int) -> None:
    for sender, receiver in ((host, board), (board, host)):
        table = garble_table(sender, receiver)
        assert len(table) == 256
        assert all(table[byte] != byte for byte in range(256))


def test_garbage_echoed_and_garbled_again_is_not_what_was_sent() -> None:
    text = b"help version bytes"
    assert carry(carry(text, 9600, 115200), 115200, 9600) != text


async def test_bytes_go_both_ways_unchanged_and_in_order() -> None:
    wire = Wire()
    data = os.urandom(10_000)
    with wire.open_tty() as tty:
        wire.start_sending(data)
        assert await read_exactly(tty, len(data)) == data
        tty.write(data[:3000])
        assert await wire.hears(3000) == data[:3000]
    wire.link.close()


async def test_host_at_another_rate_gets_and_sends_garbage() -> None:
    wire = Wire()
    with wire.open_tty(1_000_000) as tty:
        wire.start_sending(b"boot log")
        assert await read_exactly(tty, 8) == carry(b"boot log", FAST_BAUD, 1_000_000)
        tty.write(b"help")
        assert await wire.hears(4) == carry(b"help", 1_000_000, FAST_BAUD)
    wire.link.close()


async def test_rate_that_is_no_standard_one_is_seen() -> None:
    wire = Wire()
    wire.uart.baudrate = 74880
    with wire.open_tty(74880) as tty:
        assert wire.link.host_baudrate == 74880
        tty.write(b"x")
        assert await wire.hears(1) == b"x"
    wire.link.close()


async def test_new_host_rate_does_not_concern_bytes_already_written() -> None:
    wire = Wire()
    wire.uart.baudrate = 9600
    with wire.open_tty(9600) as tty:
        tty.write(b"before")
        await wire.hears(1)  # all six have been on their way then
        tty.baudrate = FAST_BAUD
        assert await wire.hears(6) == b"before"
        wire.uart.baudrate = FAST_BAUD
        tty.write(b"after")
        assert await wire.hears(11) == b"beforeafter"
    wire.link.close()


async def test_fast_writer_feels_backpressure() -> None:
    wire = Wire()
    with wire.open_tty() as tty:
        written = write_until_full(tty.fileno())
        assert written < 64 * 1024
        assert await wire.hears(written) == bytes(written)
    wire.link.close()


async def test_what_the_host_does_not_read_in_time_is_lost_and_counted() -> None:
    wire = Wire()
    data = os.urandom(150_000)
    with wire.open_tty() as tty:
        await wire.send(data)
        assert wire.n_lost > 0
        kept = len(data) - wire.n_lost
        # The first that no longer fitted are gone; what had been kept is whole.
        assert await read_exactly(tty, kept) == data[:kept]
    wire.link.close()


async def test_what_was_sent_while_nobody_listened_is_gone() -> None:
    wire = Wire()
    await wire.send(b"before the first open")
    with wire.open_tty() as tty:
        wire.start_sending(b"one")
        assert await read_exactly(tty, 3) == b"one"
    await wire.send(b"between")
    fd = os.open(wire.link.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)  # flushes nothing
    await wire.send(b"two")
    assert os.read(fd, 100) == b"two"
    os.close(fd)
    wire.link.close()


async def test_what_the_host_left_unread_is_not_there_for_the_next() -> None:
    wire = Wire()
    with wire.open_tty():
        await wire.send(b"unread")
    await wire.send(b"x")  # sent into the void, so that the link has looked
    fd = os.open(wire.link.path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    assert os.read(fd, 100) == b""  # pyserial's settings: does not wait
    os.close(fd)
    wire.link.close()


async def test_settings_of_the_tty_stay_between_two_opens() -> None:
    wire = Wire()
    wire.open_tty(57600).close()
    assert wire.link.host_baudrate == 57600
    wire.link.close()


async def test_fresh_tty_echoes_until_the_host_sets_raw_mode() -> None:
    wire = Wire()
    wire.uart.baudrate = wire.link.host_baudrate
    fd = os.open(wire.link.path, os.O_RDWR | os.O_NOCTTY)
    wire.start_sending(b"log")
    assert await wire.hears(3) == b"log"
    os.close(fd)
    wire.link.close()


async def test_host_between_opening_its_tty_and_raw_mode_causes_no_echo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "COOKED_LIMIT_S", 1e9)  # for a machine that is as slow as that
    wire = Wire()
    wire.uart.baudrate = wire.link.host_baudrate
    fd = os.open(wire.link.path, os.O_RDWR | os.O_NOCTTY)
    await wire.send(b"log")
    with wire.open_tty(wire.link.host_baudrate) as tty:
        os.close(fd)
        assert await read_exactly(tty, 3) == b"log"
        tty.write(b"x")
        assert await wire.hears(1) == b"x"
    wire.link.close()


async def test_rate_of_a_usb_device_is_a_number_and_nothing_else() -> None:
    wire = Wire(usb_baudrate=FAST_BAUD)
    with wire.open_tty(9600) as tty:
        tty.write(b"to the board")
        assert await wire.hears(12) == b"to the board"
        await wire.send(b"to the host")
        assert await read_exactly(tty, 11) == b"to the host"
        assert wire.rates == []  # a new device is at 9600
        tty.baudrate = 1200
        await wire.is_told_rates(1200)
        tty.baudrate = 115200
        await wire.is_told_rates(1200, 115200)
    wire.link.close()


async def test_closing_the_link_hangs_the_host_up() -> None:
    wire = Wire()
    with wire.open_tty() as tty:
        wire.link.close()
        assert os.read(tty.fileno(), 1) == b""
        with pytest.raises(OSError, match="Input/output error"):
            os.write(tty.fileno(), b"x")
        with pytest.raises(FileNotFoundError):
            os.open(wire.link.path, os.O_RDWR | os.O_NOCTTY)
