import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.delay_proxy import MAX_HELD_BYTES, DelayProxy

LIMIT_S = 10.0


class Clock:
    """Time that passes when a test says so."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        assert chunk, f"ended after {len(data)} of {size} bytes"
        data += chunk
    return data


def nothing_to_receive(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        sock.recv(1)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(LIMIT_S)
    return False


@dataclass
class Network:
    """A proxy with a client and the server's end of its connection; `clock` unless it is real."""

    proxy: DelayProxy
    client: socket.socket
    server: socket.socket
    clock: Clock

    def advance(self, seconds: float) -> None:
        self.clock.now_s += seconds
        self.proxy.poke()


@pytest.fixture
def network() -> Iterator[Callable[..., Network]]:
    """Starts a proxy, whose arguments it takes, and connects through it."""
    with contextlib.ExitStack() as stack:

        def start(delay_s: float, **options: Any) -> Network:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            clock = options.setdefault("clock", Clock())
            target = listener.getsockname()[1]
            proxy = stack.enter_context(DelayProxy(target, delay_s, **options))
            address = ("127.0.0.1", proxy.port)
            client = stack.enter_context(socket.create_connection(address, LIMIT_S))
            server = stack.enter_context(listener.accept()[0])
            server.settimeout(LIMIT_S)
            return Network(proxy, client, server, clock)

        yield start


Start = Callable[..., Network]


def test_each_direction_holds_a_chunk_until_it_is_due(network: Start) -> None:
    ends = network(60.0)
    ends.client.sendall(b"question")
    until(lambda: ends.proxy.held_bytes() == (8, 0))
    ends.advance(59.9)
    assert ends.proxy.held_bytes() == (8, 0)
    assert nothing_to_receive(ends.server)
    ends.advance(0.1)
    assert ends.server.recv(100) == b"question"

    ends.server.sendall(b"answer")
    until(lambda: ends.proxy.held_bytes() == (0, 6))
    ends.proxy.poke()
    assert ends.proxy.held_bytes() == (0, 6)
    assert nothing_to_receive(ends.client)
    ends.advance(60)
    assert ends.client.recv(100) == b"answer"


def test_jitter_delays_up_to_its_bound_and_keeps_the_order(network: Start) -> None:
    ends = network(10.0, jitter_s=40.0, seed=3)
    for number in range(20):
        ends.client.sendall(bytes([number]))
        until(lambda sent=number + 1: ends.proxy.held_bytes() == (sent, 0))  # type: ignore[misc]
    ends.advance(9.9)
    assert ends.proxy.held_bytes() == (20, 0)
    ends.advance(40.1)
    assert receive_exactly(ends.server, 20) == bytes(range(20))


def test_a_trickle_delivers_byte_by_byte_and_the_end_behind_the_last(
    network: Start,
) -> None:
    ends = network(0.0, trickle_s=1.0)
    ends.client.sendall(b"abc")
    ends.client.shutdown(socket.SHUT_WR)
    until(lambda: ends.proxy.held_ends() == (1, 0))
    assert ends.server.recv(100) == b"a"
    for byte in (b"b", b"c"):
        assert nothing_to_receive(ends.server)
        ends.advance(1.0)
        assert ends.server.recv(100) == byte
    assert ends.server.recv(100) == b""


def test_by_the_real_clock_both_directions_carry_everything_in_order(
    network: Start,
) -> None:
    rng = random.Random(7)
    there, back = rng.randbytes(3 * MAX_HELD_BYTES), rng.randbytes(3 * MAX_HELD_BYTES)
    ends = network(0.002, jitter_s=0.005, clock=time.monotonic)
    senders = [
        threading.Thread(target=ends.client.sendall, args=[there]),
        threading.Thread(target=ends.server.sendall, args=[back]),
    ]
    for sender in senders:
        sender.start()
    # One after the other: the other direction has to wait in bounded buffers meanwhile.
    assert receive_exactly(ends.server, len(there)) == there
    assert receive_exactly(ends.client, len(back)) == back
    for sender in senders:
        sender.join()


def test_a_sender_is_made_to_wait_when_the_buffers_are_full(network: Start) -> None:
    ends = network(60.0)
    ends.client.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        # Far more than what the kernel's two socket buffers take (4 + 6 MB at most).
        while sent < 64 * 1024 * 1024:
            sent += ends.client.send(bytes(65536))
    until(lambda: ends.proxy.held_bytes()[0] > MAX_HELD_BYTES)
    # One read of asyncio (256 KiB) may come on top of the bound.
    assert ends.proxy.held_bytes()[0] <= MAX_HELD_BYTES + 256 * 1024
    assert sent < 64 * 1024 * 1024


def test_a_half_close_passes_behind_the_data_and_leaves_the_other_direction_open(
    network: Start,
) -> None:
    ends = network(0.01, clock=time.monotonic)
    ends.client.sendall(b"last words")
    ends.client.shutdown(socket.SHUT_WR)
    assert receive_exactly(ends.server, 10) == b"last words"
    assert ends.server.recv(1) == b""
    ends.server.sendall(b"still here")
    assert receive_exactly(ends.client, 10) == b"still here"
    ends.server.close()
    assert ends.client.recv(1) == b""


def test_a_reset_passes_after_the_delay(network: Start) -> None:
    ends = network(60.0)
    # Unread data at close is what makes a kernel send RST by itself.
    ends.server.sendall(b"unread")
    until(lambda: ends.proxy.held_bytes() == (0, 6))
    ends.advance(60)
    assert ends.client.recv(1, socket.MSG_PEEK) == b"u"
    ends.client.close()
    until(lambda: ends.proxy.held_ends() == (1, 0))
    ends.proxy.poke()
    assert nothing_to_receive(ends.server)
    ends.advance(60)
    with pytest.raises(ConnectionResetError):
        ends.server.recv(1)


def test_a_refused_connection_resets_the_client() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with (
            DelayProxy(unused.getsockname()[1], delay_s=0) as proxy,
            pytest.raises(ConnectionResetError),  # it may come before connect() has returned
            socket.create_connection(("127.0.0.1", proxy.port), LIMIT_S) as client,
        ):
            client.recv(1)


def test_it_knows_how_long_clients_have_been_quiet(network: Start) -> None:
    ends = network(0.0)
    ends.clock.now_s += 5
    assert ends.proxy.quiet_s() == 0
    ends.client.sendall(b"hello")
    assert receive_exactly(ends.server, 5) == b"hello"
    ends.clock.now_s += 5
    ends.server.sendall(b"you too")
    ends.proxy.poke()
    assert receive_exactly(ends.client, 7) == b"you too"
    assert ends.proxy.quiet_s() == 5


def test_after_a_cut_nothing_passes_and_nobody_is_told(network: Start) -> None:
    ends = network(60.0)
    ends.client.sendall(b"under way")
    until(lambda: ends.proxy.held_bytes() == (9, 0))
    ends.proxy.cut()
    ends.server.sendall(b"later")
    until(lambda: ends.proxy.held_bytes() == (9, 5))
    ends.advance(3600)
    assert ends.proxy.held_bytes() == (9, 5)
    assert nothing_to_receive(ends.server)
    assert nothing_to_receive(ends.client)


def test_reset_ends_both_sides(network: Start) -> None:
    ends = network(60.0, clock=time.monotonic)
    ends.client.sendall(b"x")
    until(lambda: ends.proxy.held_bytes() == (1, 0))
    ends.proxy.reset()
    with pytest.raises(ConnectionResetError):
        ends.client.recv(1)
    with pytest.raises(ConnectionResetError):
        ends.server.recv(1)
    assert ends.proxy.held_bytes() == (0, 0)
