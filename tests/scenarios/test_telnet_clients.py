"""People at telnet clients, and clients that break the protocol."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.support.com_port import SIGNATURE
from tests.support.gateway_end import GatewayEnd, deliver
from tests.support.tcp_client import GREETING
from tests.support.telnet_wire import (
    AO,
    AYT,
    BRK,
    DM,
    IP,
    NOP,
    RFC2217_CLIENT,
    SB,
    WIRE_CASES,
    command,
    do,
    subnegotiation,
    will,
)
from tests.support.world import (
    RESET,
    Control,
    Logged,
    State,
    World,
    baudrate,
    com_port,
    control,
    turns,
    until,
    world,
)

STATUS_LINE = b"\r\ndesk: 115200 8N1, DTR off, RTS off\r\n"


async def test_a_client_is_greeted_as_a_console_that_echoes(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect()
        await w.pass_until(lambda: w.is_served(client))
        await client.receive_wire(GREETING)
        assert client.received == GREETING


async def test_line_ends_reach_the_board_as_the_key_that_was_pressed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect(command(NOP) + b"a\r\0b\r\nc\xff\xff")
        await w.board.reads(b"a\rb\rc\xff")
        await client.send(will(0) + b"\r\0\r\n")  # BINARY
        await w.board.reads(b"a\rb\rc\xff\r\0\r\n")


async def test_are_you_there_is_answered_with_the_state_of_the_port(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect(command(AYT))
        await client.receive_data(STATUS_LINE)
        await client.send(RFC2217_CLIENT + baudrate(9600) + command(AYT))  # in its turn
        await client.receive(lambda: client.data.endswith(STATUS_LINE.replace(b"115200", b"9600")))


async def test_keys_that_telnet_has_commands_for_reach_the_board(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.connect(b"a" + command(IP) + command(247) + command(248))
        await w.board.reads(b"a\x03\x7f\x15")


async def test_a_synch_with_its_urgent_byte_takes_nothing_along(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect(b"before" + command(IP))
        client.send_urgent(command(DM))
        await client.send(b"behind")
        await w.board.reads(b"before\x03behind")


async def test_a_telnet_break_lasts_250_ms_and_what_follows_waits(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect()
        w.board.calls.forget()
        await client.send(b"before" + command(BRK) + b"behind")
        await w.until(lambda: w.board.calls.named("break"))
        await w.pass_time(0.24)
        assert w.board.calls.since(0, "write", "break") == [("write", b"before"), ("break", True)]
        await w.pass_time(0.02)
        ended = [("break", False), ("write", b"behind")]
        assert w.board.calls.since(0, "write", "break")[2:] == ended


async def test_a_break_that_the_tty_cannot_send_ends_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.board.calls.break_is_supported = False
        await w.connect(b"before" + command(BRK) + b"behind")
        await w.pass_time(0.3)
        await w.board.reads(b"beforebehind")


async def test_abort_output_drops_what_the_board_has_sent_and_nothing_else(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.connect()
        w.board.calls.forget()
        await client.send(b"a" + command(AO) + b"b")
        await w.board.reads(b"ab")
        assert w.board.calls.since(0) == [("write", b"a"), ("flush", "input"), ("write", b"b")]


async def test_a_client_s_signature_is_logged_once_and_answered(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        client = await w.client()
        await client.send(com_port(SIGNATURE, b"tool 1.0\x1b[2J") * 100 + com_port(SIGNATURE))
        await client.receive_wire(com_port(SIGNATURE + 100, b"esp-serial-gateway ")[:-2])
        await client.settled()
        assert w.said(Logged.IDENTIFIED, "signature") == [r"'tool 1.0\x1b[2J'"]


#: What a client sends, and the reasons that are logged for it.
BAD_INPUT = {
    "half a negotiation": (b"\xff\xfb", ["left"]),
    "half a subnegotiation": (command(SB) + b"\x2c\x01\0", ["left"]),
    "never-ending subnegotiation": (
        command(SB) + b"\x2c" * 100_000,
        ["subnegotiation longer than 256 bytes"],
    ),
    "unknown command": (
        RFC2217_CLIENT + com_port(99, b"x") * 1000,
        ["COM-PORT-OPTION: unknown command 99", "left"],
    ),
    "undefined value": (
        RFC2217_CLIENT + com_port(5, b"\xee") * 1000,
        ["SET-CONTROL with undefined value 238", "left"],
    ),
    "subnegotiations of a refused option": (
        subnegotiation(b"\x1f\0\x50\0\x19") * 1000,
        ["subnegotiation of refused option 31", "left"],
    ),
    "negotiations": ((do(31) + will(31)) * 5000, ["more than 1000 option negotiations"]),
    "commands without COM-PORT-OPTION": (com_port(1, b"\0\0\0\x01") * 3, ["left"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
async def test_bad_input_is_logged_once_and_the_next_is_served(tmp_path: Path, case: str) -> None:
    bad, reasons = BAD_INPUT[case]
    async with world(tmp_path) as w:
        w.board.start_reading()
        client = await w.connect()
        await w.pass_until(lambda: w.is_served(client))
        await deliver(client, bad)
        client.stop_sending()
        await w.run(client.receive_to_end())
        await w.until_idle()
        assert [entry["reason"] for entry in w.log if "reason" in entry] == reasons
        await serves_again(w)


async def test_nothing_behind_a_fatal_violation_is_carried_out(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.board.start_reading()
        client = await w.client()
        too_long = command(SB) + b"x" * 300
        await client.send(b"a" + too_long + b"b" + control(Control.RTS_ON))
        await client.receive_to_end()
        await w.until_idle()
        assert [call.value for call in w.board.calls.named("write")] == [b"a"]
        assert RESET not in w.board.lines


@pytest.mark.parametrize("seed", range(12))
async def test_random_bytes_end_in_a_board_that_is_served_again(tmp_path: Path, seed: int) -> None:
    pieces = [case[0] for case in WIRE_CASES.values()]
    pieces += [com_port(code, bytes([value])) for code in range(14) for value in (0, 1, 9, 255)]
    rng = random.Random(seed)
    noise = rng.randbytes(20_000) if seed % 2 else b"".join(rng.choices(pieces, k=400))
    async with world(tmp_path) as w:
        w.board.start_reading()
        client = await w.connect()
        await w.pass_until(lambda: w.is_served(client))
        reading = asyncio.create_task(client.receive_to_end())
        await client.send(noise)
        end = GatewayEnd(client)
        await w.pass_until(lambda: end.read_bytes >= len(noise) or not end.exists or w.ends(client))
        client.stop_sending()
        await w.pass_until(reading.done)
        await w.until_idle()
        assert len(w.logged(Logged.VIOLATED)) <= 1
        assert len(w.ends(client)) == 1
        await serves_again(w)


async def serves_again(w: World) -> None:
    """The board can be had, and is as a new client expects it."""
    assert (w.state, w.status.settings, w.status.lines) == (
        State.IDLE,
        "115200 8N1",
        "DTR off, RTS off",
    )
    client = await w.client()
    await client.send(b"ping")
    await until(lambda: w.board.received.endswith(b"ping"))
    await turns(2)
