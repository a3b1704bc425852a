import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

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


class Ends:
    """A client and the server's end of its connection, with a proxy between them."""

    def __init__(self, proxy: DelayProxy, listener: socket.socket) -> None:
        self.client = socket.create_connection(("127.0.0.1", proxy.port), LIMIT_S)
        self.server, _ = listener.accept()
        self.server.settimeout(LIMIT_S)

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(LIMIT_S)
        yield sock


def connected(proxy: DelayProxy, listener: socket.socket) -> "contextlib.closing[Ends]":
    return contextlib.closing(Ends(proxy, listener))


def test_each_direction_holds_a_chunk_until_it_is_due(listener: socket.socket) -> None:
    clock = Clock()
    target = listener.getsockname()[1]
    with (
        DelayProxy(target, delay_s=60.0, clock=clock) as proxy,
        connected(proxy, listener) as ends,
    ):
        ends.client.sendall(b"question")
        until(lambda: proxy.held_bytes() == (8, 0))
        clock.now_s += 59.9
        proxy.poke()
        assert proxy.held_bytes() == (8, 0)
        assert nothing_to_receive(ends.server)
        clock.now_s += 0.1
        proxy.poke()
        assert ends.server.recv(100) == b"question"

        ends.server.sendall(b"answer")
        until(lambda: proxy.held_bytes() == (0, 6))
        proxy.poke()
        assert proxy.held_bytes() == (0, 6)
        assert nothing_to_receive(ends.client)
        clock.now_s += 60
        proxy.poke()
        assert ends.client.recv(100) == b"answer"


def test_jitter_delays_up_to_its_bound_and_keeps_the_order(listener: socket.socket) -> None:
    clock = Clock()
    target = listener.getsockname()[1]
    with (
        DelayProxy(target, delay_s=10.0, jitter_s=40.0, seed=3, clock=clock) as proxy,
        connected(proxy, listener) as ends,
    ):
        for number in range(20):
            ends.client.sendall(bytes([number]))
            until(lambda sent=number + 1: proxy.held_bytes() == (sent, 0))  # type: ignore[misc]
        clock.now_s += 9.9
        proxy.poke()
        assert proxy.held_bytes() == (20, 0)
        clock.now_s += 40.1
        proxy.poke()
        assert receive_exactly(ends.server, 20) == bytes(range(20))


def test_a_trickle_delivers_byte_by_byte_and_the_end_behind_the_last(
    listener: socket.socket,
) -> None:
    clock = Clock()
    target = listener.getsockname()[1]
    with (
        DelayProxy(target, delay_s=0.0, clock=clock, trickle_s=1.0) as proxy,
        connected(proxy, listener) as ends,
    ):
        ends.client.sendall(b"abc")
        ends.client.shutdown(socket.SHUT_WR)
        until(lambda: proxy.held_ends() == (1, 0))
        assert ends.server.recv(100) == b"a"
        for byte in (b"b", b"c"):
            assert nothing_to_receive(ends.server)
            clock.now_s += 1.0
            proxy.poke()
            assert ends.server.recv(100) == byte
        assert ends.server.recv(100) == b""


def test_by_the_real_clock_both_directions_carry_everything_in_order(
    listener: socket.socket,
) -> None:
    rng = random.Random(7)
    there, back = rng.randbytes(3 * MAX_HELD_BYTES), rng.randbytes(3 * MAX_HELD_BYTES)
    target = listener.getsockname()[1]
    with (
        DelayProxy(target, delay_s=0.002, jitter_s=0.005) as proxy,
        connected(proxy, listener) as ends,
    ):
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


def test_a_sender_is_made_to_wait_when_the_buffers_are_full(listener: socket.socket) -> None:
    clock = Clock()
    target = listener.getsockname()[1]
    with (
        DelayProxy(target, delay_s=60.0, clock=clock) as proxy,
        connected(proxy, listener) as ends,
    ):
        ends.client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            # Far more than what the kernel's two socket buffers take (4 + 6 MB at most).
            while sent < 64 * 1024 * 1024:
                sent += ends.client.send(bytes(65536))
        until(lambda: proxy.held_bytes()[0] > MAX_HELD_BYTES)
        # One read of asyncio (256 KiB) may come on top of the bound.
        assert proxy.held_bytes()[0] <= MAX_HELD_BYTES + 256 * 1024
        assert sent < 64 * 1024 * 1024


def test_a_half_close_passes_behind_the_data_and_leaves_the_other_direction_open(
    listener: socket.socket,
) -> None:
    target = listener.getsockname()[1]
    with DelayProxy(target, delay_s=0.01) as proxy, connected(proxy, listener) as ends:
        ends.client.sendall(b"last words")
        ends.client.shutdown(socket.SHUT_WR)
        assert receive_exactly(ends.server, 10) == b"last words"
        assert ends.server.recv(1) == b""
        ends.server.sendall(b"still here")
        assert receive_exactly(ends.client, 10) == b"still here"
        ends.server.close()
        assert ends.client.recv(1) == b""


def test_a_reset_passes_after_the_delay(listener: socket.socket) -> None:
    clock = Clock()
    target = listener.getsockname()[1]
    with (
        DelayProxy(target, delay_s=60.0, clock=clock) as proxy,
        connected(proxy, listener) as ends,
    ):
        # Unread data at close is what makes a kernel send RST by itself.
        ends.server.sendall(b"unread")
        until(lambda: proxy.held_bytes() == (0, 6))
        clock.now_s += 60
        proxy.poke()
        assert ends.client.recv(1, socket.MSG_PEEK) == b"u"
        ends.client.close()
        until(lambda: proxy.held_ends() == (1, 0))
        proxy.poke()
        assert nothing_to_receive(ends.server)
        clock.now_s += 60
        proxy.poke()
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


def test_it_knows_how_long_clients_have_been_quiet(listener: socket.socket) -> None:
    clock = Clock()
    with DelayProxy(listener.getsockname()[1], 0.0, clock=clock) as proxy:
        clock.now_s += 5
        assert proxy.quiet_s() == 0
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            target, _ = listener.accept()
            with target:
                client.sendall(b"hello")
                assert receive_exactly(target, 5) == b"hello"
                clock.now_s += 5
                target.sendall(b"you too")
                proxy.poke()
                assert receive_exactly(client, 7) == b"you too"
                assert proxy.quiet_s() == 5


def test_after_a_cut_nothing_passes_and_nobody_is_told(listener: socket.socket) -> None:
    clock = Clock()
    target = listener.getsockname()[1]
    with (
        DelayProxy(target, delay_s=60.0, clock=clock) as proxy,
        connected(proxy, listener) as ends,
    ):
        ends.client.sendall(b"under way")
        until(lambda: proxy.held_bytes() == (9, 0))
        proxy.cut()
        ends.server.sendall(b"later")
        until(lambda: proxy.held_bytes() == (9, 5))
        clock.now_s += 3600
        proxy.poke()
        assert proxy.held_bytes() == (9, 5)
        assert nothing_to_receive(ends.server)
        assert nothing_to_receive(ends.client)


def test_reset_ends_both_sides(listener: socket.socket) -> None:
    target = listener.getsockname()[1]
    with DelayProxy(target, delay_s=60.0) as proxy, connected(proxy, listener) as ends:
        ends.client.sendall(b"x")
        until(lambda: proxy.held_bytes() == (1, 0))
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            ends.client.recv(1)
        with pytest.raises(ConnectionResetError):
            ends.server.recv(1)
        assert proxy.held_bytes() == (0, 0)
