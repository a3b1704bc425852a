from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from gateway.client.address import Address
from gateway.client.tcp_link import Link, SendTimeoutError

LIMIT_S = 60.0
#: More than two kernels hold.
MUCH = bytes(range(256)) * 32768


class Far:
    """The other end."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(LIMIT_S)

    def receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.socket.recv(min(65536, size - len(data)))
            assert piece, "ended early"
            data += piece
        return bytes(data)


@pytest.fixture
def ends() -> Iterator[tuple[Link, Far]]:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        link = Link(Address("127.0.0.1", listener.getsockname()[1]))
        stack.callback(link.close)
        far = stack.enter_context(listener.accept()[0])
        yield link, Far(far)


def never() -> bool:
    return False


def test_nobody_there_is_an_os_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        tcp_port = listener.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        Link(Address("127.0.0.1", tcp_port))


def test_bytes_pass_both_ways(ends: tuple[Link, Far]) -> None:
    link, far = ends
    link.send(b"there")
    assert far.receive(5) == b"there"
    far.socket.sendall(b"back")
    assert link.receive() == b"back"


def test_both_ends_are_told_of_the_end(ends: tuple[Link, Far]) -> None:
    link, far = ends
    link.finish()
    assert far.socket.recv(1) == b""
    far.socket.sendall(b"last words")
    far.socket.shutdown(socket.SHUT_WR)
    assert link.receive() == b"last words"
    assert link.receive() == b""


def test_what_was_begun_before_a_time_out_goes_first_afterwards(ends: tuple[Link, Far]) -> None:
    link, far = ends
    with pytest.raises(SendTimeoutError):
        link.send(MUCH, time.monotonic() + 0.01)
    with pytest.raises(SendTimeoutError):
        link.send(b"now", time.monotonic())
    threading.Thread(target=lambda: link.send(b"end", None)).start()
    assert far.receive(len(MUCH) + 6) == MUCH + b"now" + b"end"


def test_a_send_can_be_cancelled(ends: tuple[Link, Far]) -> None:
    link, _ = ends
    asked = threading.Event()

    def is_cancelled() -> bool:
        asked.set()
        return True

    with pytest.raises(SendTimeoutError):
        link.send(MUCH, None, is_cancelled)
    assert asked.is_set()


def test_who_may_not_wait_does_not(ends: tuple[Link, Far]) -> None:
    link, far = ends
    with pytest.raises(SendTimeoutError):
        link.send(MUCH, time.monotonic())
    link.send_soon(b"answer")  # returns although nothing more fits
    threading.Thread(target=lambda: link.send(b"end", None)).start()
    assert far.receive(len(MUCH) + 9) == MUCH + b"answerend"


def test_messages_of_many_threads_stay_whole(ends: tuple[Link, Far]) -> None:
    link, far = ends
    messages = [bytes([number]) * 5000 for number in range(8)]

    def send(message: bytes) -> None:
        for _ in range(20):
            link.send(message)

    threads = [threading.Thread(target=send, args=[each]) for each in messages]
    for thread in threads:
        thread.start()
    for _ in range(20):
        link.send_soon(b"\xff" * 5000)
    data = far.receive(5000 * 20 * 9)
    for thread in threads:
        thread.join(LIMIT_S)
    pieces = [data[start : start + 5000] for start in range(0, len(data), 5000)]
    assert sorted(pieces) == sorted([*messages * 20, *[b"\xff" * 5000] * 20])


def test_closing_wakes_who_receives(ends: tuple[Link, Far]) -> None:
    link, _ = ends
    heard: list[bytes] = []
    thread = threading.Thread(target=lambda: heard.append(link.receive()))
    thread.start()
    link.interrupt()
    thread.join(LIMIT_S)
    assert heard == [b""]


def test_data_after_the_other_end_has_gone_is_an_os_error(ends: tuple[Link, Far]) -> None:
    link, far = ends
    far.socket.close()

    def send_on() -> None:
        while True:
            link.send(b"x" * 65536, time.monotonic() + LIMIT_S)

    with pytest.raises(OSError, match=r".") as error:
        send_on()
    assert not isinstance(error.value, TimeoutError)
