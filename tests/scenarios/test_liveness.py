"""Clients that move no byte, whose machine is gone, or that stop in the middle of a command."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.gateway_end import GatewayEnd, KernelSays, deliver, until_stalled
from tests.support.tcp_client import GREETING, SPEAKS_TELNET
from tests.support.telnet_wire import will
from tests.support.world import (
    Client,
    Control,
    Logged,
    Notice,
    World,
    com_port,
    control,
    moving,
    turns,
    until,
    world,
)

IDLE = "idle_timeout_s: 60"

#: TCP_USER_TIMEOUT of a client's connection.
USER_TIMEOUT_MS = 15_000


async def looks(w: World, count: int) -> None:
    """Let the gateway look so often whether its client lives."""
    for _ in range(count):
        await w.clock.advance(4.0)


# --- idle clients


async def test_a_client_without_a_byte_either_way_is_told_and_closed(tmp_path: Path) -> None:
    async with world(tmp_path, IDLE) as w:
        client = await w.connect(SPEAKS_TELNET)
        await client.receive_wire(GREETING)
        await w.pass_time(59.0)
        assert w.ends(client) == []
        await w.pass_time(5.0)
        assert w.ends(client) == ["no byte for 60 s"]
        assert await client.receive_to_end() == b"\r\ndesk: no byte for 60 s\r\n"


@pytest.mark.parametrize("from_board", [True, False])
async def test_a_byte_either_way_starts_the_time_again(tmp_path: Path, from_board: bool) -> None:
    async with world(tmp_path, IDLE) as w:
        w.board.start_reading()
        client = await w.connect(SPEAKS_TELNET)
        await client.receive_wire(GREETING)
        for n_bytes in range(1, 8):
            if from_board:
                await w.board.write(b"x")
                await until(lambda: w.status.received_bytes == n_bytes)  # noqa: B023
            else:
                await deliver(client, b"x")
            await w.pass_time(50.0)
        assert w.ends(client) == []


async def test_without_the_key_no_client_is_idle(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect(SPEAKS_TELNET)
        await client.receive_wire(GREETING)
        for _ in range(50):
            await w.clock.advance(3600.0)
        assert w.ends(client) == []


# --- machines that are gone


async def test_the_kernel_does_not_end_a_client_that_only_does_not_read(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client(receive_buffer_bytes=4096)
        end = GatewayEnd(client)

        def timeout_ms() -> int:
            return end.option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

        await w.clock.advance(4.0)
        assert timeout_ms() == USER_TIMEOUT_MS
        await w.board.write(b"x" * 200_000)
        # The bytes on their way are acknowledged; what is left has no room over there.
        for _ in range(1000):
            await turns(10)
            await w.clock.advance(4.0)
            if timeout_ms() == 0:
                break
        assert timeout_ms() == 0
        await client.receive(lambda: len(client.data) == 200_000)
        await w.clock.advance(4.0)
        assert timeout_ms() == USER_TIMEOUT_MS


@pytest.mark.parametrize(
    ("silence_s", "unanswered", "is_dead"), [(12.9, 9, False), (99.0, 1, False), (13.0, 2, True)]
)
async def test_a_client_has_died_when_nothing_is_heard_of_it_though_it_was_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    silence_s: float,
    unanswered: int,
    is_dead: bool,
) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        kernel = KernelSays(monkeypatch, client, silence_s)
        kernel.unanswered = unanswered
        await w.pass_time(4.0)
        assert w.ends(client) == (["no answer for 13 s"] if is_dead else [])


@pytest.mark.parametrize("sends", [True, False])
async def test_a_client_gets_the_port_of_a_dead_one_at_its_address(
    tmp_path: Path, sends: bool
) -> None:
    async with world(tmp_path) as w:
        dead = await w.client()
        with moving(w.clock):  # the kernel's probes take their time
            dead.fall_silent()
            await kernel_heard_nothing(dead)
            if sends:
                await w.board.write(b"into the void")
            newcomer = await w.client()
        assert w.status.controls == newcomer.name
        assert w.ends(dead) == ["no answer while another client connected from its address"]
        await w.board.write(b"hello")
        await newcomer.receive(lambda: newcomer.data.endswith(b"hello"))


async def kernel_heard_nothing(client: Client) -> None:
    """Wait until the kernel has heard nothing of a client's machine for a second."""
    end = GatewayEnd(client)
    await until(lambda: end.silence_s > 1.05)


async def doubted(
    w: World, monkeypatch: pytest.MonkeyPatch, silence_s: float, source: str = "127.0.0.1"
) -> tuple[KernelSays, Client, Client]:
    """A client of which nothing was heard for a while, and a newcomer that wants its port."""
    client = await w.client()
    kernel = KernelSays(monkeypatch, client, silence_s)
    newcomer = await w.asks(source=source)
    await w.pass_time(0.05)
    return kernel, client, newcomer


@pytest.mark.parametrize(("unanswered", "is_dead"), [(1, False), (2, True)])
async def test_one_answer_that_is_missing_proves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unanswered: int, is_dead: bool
) -> None:
    async with world(tmp_path) as w:
        kernel, client, newcomer = await doubted(w, monkeypatch, silence_s=2.0)
        assert kernel.probes_every_s == 1
        kernel.unanswered = unanswered
        for _ in range(32):
            kernel.silence_s += 0.1
            await w.pass_time(0.1)
        assert bool(w.ends(client)) is w.is_served(newcomer) is is_dead
        if not is_dead:
            assert kernel.probes_every_s > 1
            assert (await w.refused(newcomer)).startswith(Notice.in_use(client))


async def test_a_client_that_answers_late_keeps_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w:
        kernel, client, newcomer = await doubted(w, monkeypatch, silence_s=2.0)
        await w.pass_time(1.0)
        assert not w.logged(Logged.REFUSED)  # the newcomer waits for the answer
        kernel.silence_s = 0.0
        assert (await w.refused(newcomer)).startswith(Notice.in_use(client))
        assert w.status.refused == len(w.logged_for(newcomer, Logged.REFUSED)) == 1
        await w.board.write(b"still here")
        await client.receive_data(b"still here")


async def test_the_newcomer_is_served_at_once_when_the_doubted_client_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w:
        _, client, newcomer = await doubted(w, monkeypatch, silence_s=2.0)
        client.close()
        await until(lambda: w.is_served(newcomer))
        await w.pass_time(5.0)
        assert (w.status.controls, len(w.ends(client))) == (newcomer.name, 1)


@pytest.mark.parametrize(("silence_s", "source"), [(0.9, "127.0.0.1"), (99.0, "127.0.0.2")])
async def test_a_client_that_was_just_heard_of_or_a_newcomer_from_elsewhere_raises_no_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silence_s: float, source: str
) -> None:
    async with world(tmp_path) as w:
        kernel, client, newcomer = await doubted(w, monkeypatch, silence_s, source)
        kernel.unanswered = 1
        assert kernel.probes_every_s > 1
        assert (await w.refused(newcomer)).startswith(Notice.in_use(client))
        assert w.ends(client) == []


async def test_a_newcomer_that_takes_the_port_anyway_raises_no_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, "sharing: takeover") as w:
        _, client, newcomer = await doubted(w, monkeypatch, silence_s=99.0)
        assert await client.receive_to_end() == Notice.taken_over(newcomer)


# --- unfinished commands

#: What a client may begin and never end: a lone IAC, a negotiation, a subnegotiation, and one that
#: lacks only its SE.
UNFINISHED = [b"\xff", b"\xff\xfb", b"\xff\xfa\x2c\x01", b"\xff\xfa\x2c\x01\0\0\x25\x80\xff"]
UNFINISHED_REASON = "left a telnet command unfinished"


@pytest.mark.parametrize("unfinished", UNFINISHED)
async def test_a_command_that_is_never_finished_ends_the_session_and_frees_the_port(
    tmp_path: Path, unfinished: bytes
) -> None:
    async with world(tmp_path) as w:
        w.board.start_reading()
        client = await w.connect(SPEAKS_TELNET)
        await client.receive_wire(GREETING)
        await deliver(client, b"data" + unfinished)
        for _ in range(5):
            await w.board.write(b"x")  # that the board talks is no sign of the client
            await w.pass_time(1.9)
        assert w.ends(client) == []
        await w.pass_time(8.5)
        (end,) = w.logged_for(client, Logged.DISCONNECTED)
        assert (end["reason"], end["log_level"]) == (UNFINISHED_REASON, "warning")
        said = await client.receive_to_end()
        assert said.endswith(f"\r\ndesk: {UNFINISHED_REASON}\r\n".encode())
        await w.until_idle()
        following = await w.client()
        await following.send(b"next")
        await until(lambda: w.board.received == b"datanext")


async def test_a_command_may_come_a_byte_at_a_time_as_long_as_they_come(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        for octet in com_port(1, b"\0\0\x25\x80"):
            await deliver(client, bytes([octet]))
            await looks(w, 2)
            assert w.ends(client) == []
        await looks(w, 15)  # it is whole: the client may say nothing for any time
        assert w.ends(client) == []
        await client.receive_wire(com_port(101, b"\0\0\x25\x80"))


async def test_a_command_that_trickles_on_ends_at_its_greatest_length(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect(will(44))
        await deliver(client, b"\xff\xfa\x2c")
        for _ in range(255):
            await deliver(client, b"x")
            await looks(w, 1)
        assert w.ends(client) == []
        await client.send(b"x")
        await until(lambda: w.ends(client) == ["subnegotiation longer than 256 bytes"])


async def test_the_rest_of_a_command_may_wait_while_the_client_is_not_read(tmp_path: Path) -> None:
    # Each segment ends in the middle of a command, and begins with the end of one.
    begins, ends = control(Control.REQUEST_DTR)[:-2], control(Control.REQUEST_DTR)[-2:]
    async with world(tmp_path) as w:
        client = await w.client()
        w.board.calls.room = 0
        await client.send(begins)
        while await until_stalled(client) == client.sent_bytes:
            await client.send(ends + b"x" * 8192 + begins)
        await looks(w, 10)
        assert w.ends(client) == []
        w.board.calls.room = None
        w.board.start_reading()
        await until(lambda: GatewayEnd(client).read_bytes == client.sent_bytes)
        await looks(w, 2)
        assert w.ends(client) == []
        await looks(w, 2)
        assert w.ends(client) == [UNFINISHED_REASON]


async def test_a_raw_port_has_no_commands(tmp_path: Path) -> None:
    async with world(tmp_path, "protocol: raw") as w:
        client = await w.connect(b"\xff\xfa\x2c")
        await w.board.reads(b"\xff\xfa\x2c")
        await looks(w, 10)
        assert w.ends(client) == []
